"""The command line: its commands, options and messages."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
from cli_place import Place, records, run_vst

GOLDEN = Path(__file__).parents[1] / "golden" / "command_line.txt"

# --- the surface --------------------------------------------------------------------------------


def surface() -> str:
    """Every command with its arguments, options, kinds, choices, defaults and help."""
    from virchow_st_cli.main import cli

    lines = []
    for name in sorted(cli.commands):
        command = cli.commands[name]
        lines.append(f"vst {name}: {(command.help or '').splitlines()[0]}")
        for p in command.params:
            kind = f"[{'|'.join(p.type.choices)}]" if isinstance(p.type, click.Choice) else p.type
            shown = [f"{', '.join(p.opts)} <{getattr(kind, 'name', kind)}>"]
            if isinstance(p, click.Option) and p.is_flag:
                shown = [f"{', '.join(p.opts)} <flag>"]
            elif isinstance(p.default, str | int | float | Path):
                shown.append(f"default {p.default!s}")
            if p.required:
                shown.append("required")
            if p.nargs == -1:
                shown.append("any number")
            if isinstance(p, click.Option):
                shown.append(f"# {p.help}")
            lines.append("    " + "  ".join(shown))
    return "\n".join(lines) + "\n"


def test_command_line_is_frozen() -> None:
    """A change is a decision; VST_WRITE_GOLDEN=1 in the environment writes it anew."""
    now = surface()
    if os.environ.get("VST_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(now, "utf-8")
    assert now == GOLDEN.read_text("utf-8"), (
        "the command line changed; if that is meant, run with VST_WRITE_GOLDEN=1 and commit "
        f"{GOLDEN.name}"
    )


def test_every_setting_has_one_option() -> None:
    from dataclasses import fields

    from virchow_st.config import ExtractConfig, SimulateConfig, TrainConfig
    from virchow_st_cli.main import cli

    for name, cls in (
        ("simulate", SimulateConfig), ("extract", ExtractConfig), ("train", TrainConfig),
    ):  # fmt: skip
        options = {p.name: p for p in cli.commands[name].params}
        for f in fields(cls):
            assert f.name in options, f"vst {name} has no --{f.name}"
            if f.name != "stores":
                assert options[f.name].help == f.metadata["help"]


def test_help_and_version(vst) -> None:
    for arguments in ([], ["--help"], ["-h"], ["extract", "--help"]):
        answer = vst(*arguments)
        assert answer.code == 0
        assert answer.out.startswith("Usage: vst")
        assert answer.err == ""
    from virchow_st import __version__

    assert vst("--version") == (0, f"vst, version {__version__}\n", "")


# --- what is said -------------------------------------------------------------------------------


def test_inspect_says_what_the_store_holds(vst, stores: dict[str, Path]) -> None:
    from virchow_st import open_store

    store = open_store(stores["P1"])
    answer = vst("inspect", stores["P1"], "--json")
    assert (answer.code, answer.err) == (0, "")
    said = json.loads(answer.out)
    assert "genes" not in said
    assert (said["patient"], said["n_patches"]) == ("P1", 9)
    dense = np.stack([patch.counts().toarray() for patch in store])
    assert said["total_umi"] == dense.sum()
    tissue = np.stack([patch.tissue_mask.ravel() for patch in store])
    top = np.argsort(-dense.sum(axis=(0, 2)), kind="stable")[:50]
    assert said["nonzero_top50"] == pytest.approx(
        (dense[:, top] > 0).sum() / (tissue.sum() * 50), rel=1e-12
    )
    assert said["n_nonzero"] == np.count_nonzero(dense)
    assert said["nonzero"] == pytest.approx(
        np.count_nonzero(dense) / (tissue.sum() * 120), rel=1e-12
    )
    by_kind = dict.fromkeys(range(1, 8), 0)
    for key, value in records(stores["P1"]).items():
        by_kind[key[4]] += len(value)
    assert said["record_bytes"] == {
        "tokens": by_kind[7] + by_kind[6], "counts": by_kind[4], "images": by_kind[5],
        "masks": by_kind[2] + by_kind[3], "patch_table": by_kind[1],
    }  # fmt: skip
    assert said["bytes_per_nonzero"] == pytest.approx(by_kind[4] / said["n_nonzero"], rel=1e-12)
    for source in ("image", "matrix"):
        assert said["job"]["inputs"][source]["fingerprint"]
    table = vst("inspect", stores["P1"]).out
    for text in (f"{said['total_umi']:,}", "float16", "min_tissue 0.5", "filtered_feature_bc"):
        assert text in table
    assert "aligned: the image lies (" in table
    assert "…" not in table
    assert "\x1b" not in table


def test_inspect_of_several_stores_has_a_column_each(vst, stores: dict[str, Path]) -> None:
    paths = [stores["P1"], stores["P5"]]
    said = json.loads(vst("inspect", *paths, "--json").out)
    assert said == [json.loads(vst("inspect", path, "--json").out) for path in paths]
    table = vst("inspect", *paths).out
    (line,) = [line for line in table.splitlines() if line.startswith("│ UMIs")]
    assert re.findall(r"[\d,]+", line) == [f"{s['total_umi']:,}" for s in said]


def test_inspect_shows_a_registration_check(vst, place: Place) -> None:
    store = Path(shutil.copytree(place.stores["P1"], place.folder / "copy.vst"))
    manifest = json.loads((store / "store.json").read_text("utf-8"))
    found = manifest["registration"]
    found |= {"verdict": "shifted", "shift_row_um": 16.04, "shift_col_um": -6.0}
    (store / "store.json").write_text(json.dumps(manifest), "utf-8")
    said = " ".join(vst("inspect", store).out.replace("│", " ").split())
    assert "shifted: the image lies (+16.0, -6.0) µm off the counts (rows, cols)" in said
    assert json.loads(vst("inspect", store, "--json").out)["registration"] == found
    found["strength"] = "high"
    (store / "store.json").write_text(json.dumps(manifest), "utf-8")
    answer = vst("inspect", store)
    assert answer.code == 2
    assert "registration.strength: expected a number; got" in answer.err


def test_paths_are_printed_as_they_are(vst, place: Place) -> None:
    store = place.folder / "[bold]:cat:[" / "new.vst"
    answer = vst(*place.extract(store=str(store.relative_to(place.folder))))
    assert answer.code == 0, answer.err
    assert f"{store}: 9 patches" in answer.out
    assert "[bold]:cat:[" in answer.err + vst("verify", store).out


def test_verify_finds_a_changed_byte(vst, place: Place) -> None:
    store = place.folder / "copy.vst"
    shutil.copytree(place.stores["P1"], store)
    answer = vst("verify", store)
    assert answer.code == 0
    assert "9 patches, all intact" in answer.out
    data = bytearray((store / "data.mdb").read_bytes())
    data[data.index(b"\xff\xd8\xff") + 400] ^= 1  # within the first JPEG
    (store / "data.mdb").write_bytes(data)
    done = run_vst("verify", store)  # afresh: this process has mapped the file as it was
    assert done.returncode == 1
    assert "IMAGE" in done.stdout
    assert "damaged" in done.stdout


def test_quiet_says_only_the_result(vst, place: Place) -> None:
    loud, quiet = place.extract(), [*place.extract(), "--quiet"]
    assert "9/9 patches" in vst(*loud).err
    answer = vst(*quiet)
    assert answer.err == ""
    assert len(answer.out.splitlines()) == 1


def test_debug_shows_the_traceback(place: Place) -> None:
    done = run_vst("inspect", place.folder / "none.vst", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_errors_are_one_line_whatever_they_hold(capfd) -> None:
    from virchow_st_cli.console import Console

    Console().error("first\nsecond  [third] :cat:")
    assert capfd.readouterr().err == "error: first second [third] :cat:\n"


def test_long_cells_are_not_cut_off(capfd) -> None:
    from virchow_st_cli.console import Console

    long = "/".join(["folder"] * 40)
    Console().table("title", ["", "value"], [["[name]", long]])
    out = capfd.readouterr().out
    assert "[name]" in out
    assert re.sub(r"[^a-z/]", "", out.split("[name]")[1]) == long


def test_plain_progress_tells_rate_and_time_left(capfd, monkeypatch) -> None:
    from virchow_st_cli import console as module

    clock = iter([100.0, 105.0, 120.0, 130.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    shown = module.Console()
    for done in (4, 6, 12, 16):  # a resumed job: 4 of 16 were there
        shown.step(done, 16, "patches", "detail")
    assert capfd.readouterr().err.splitlines() == [
        "  4/16 patches  detail",
        "  12/16 patches, 0.4/s, 10 s left  detail",
        "  16/16 patches, 0.4/s  detail",
    ]
