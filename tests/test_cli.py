"""The command line: its surface, its refusals, and what being stopped leaves behind."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import cv2
import lmdb
import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = Path(__file__).parent / "golden" / "command_line.txt"
SQUARE = "binned_outputs/square_002um"

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
    """A change is a decision: ``VST_WRITE_GOLDEN=1 pytest tests/test_cli.py`` writes it anew."""
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


# --- refusals -----------------------------------------------------------------------------------


class Place:
    """A folder to make a mistake in, over read-only slides and stores."""

    def __init__(self, folder: Path, simulated: Path, stores: dict[str, Path]) -> None:
        self.folder, self.stores = folder, stores
        self.slide = simulated / "P1"

    def listing(self) -> dict[str, bytes]:
        """Every path below the folder, with the content of files."""
        return {
            str(p.relative_to(self.folder)): p.read_bytes() if p.is_file() else b""
            for p in sorted(self.folder.rglob("*"))
        }

    def outs(self) -> Path:
        """A copy of the slide's outs to damage."""
        return Path(shutil.copytree(self.slide / "outs", self.folder / "outs"))

    def extract(
        self, outs: Path | None = None, image: Path | None = None, store: str = "new.vst"
    ) -> list[object]:
        return [
            "extract", outs or self.slide / "outs", "--image",
            image or self.slide / "tissue_image.tif", "--store", self.folder / store,
            "--patient", "P1", "--encoder", "stain",
        ]  # fmt: skip

    def train(self, *more: object) -> list[object]:
        return ["train", self.stores["P1"], self.stores["P5"], "--run", self.folder / "run",
                "--decoder", "linear", "--epochs", 1, "--device", "cpu", *more]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, simulated: Path, stores: dict[str, Path]) -> Place:
    return Place(tmp_path, simulated, stores)


def refused(vst, place: Place, arguments: list[object]) -> str:
    """Run a mistake; assert one line, exit code 2 and an untouched folder; return the line."""
    before = place.listing()
    answer = vst(*arguments)
    assert answer.code == 2, answer
    assert place.listing() == before, "something was left behind"
    lines = answer.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, answer.err
    assert lines[-1] == errors[0], "the error is not the last thing said"
    for text in (answer.err, answer.out):
        assert "Traceback" not in text
        assert "fault of virchow_st" not in text
        assert "\x1b" not in text
    return errors[0]


def test_missing_image(vst, place: Place) -> None:
    image = place.folder / "no_such.tif"
    assert str(image) in refused(vst, place, place.extract(image=image))


def test_cytassist_image(vst, place: Place) -> None:
    image = place.folder / "cytassist_image.tiff"
    cv2.imwrite(str(image), np.full((300, 300, 3), 200, np.uint8))
    line = refused(vst, place, place.extract(image=image))
    assert str(image) in line
    assert "microscope image" in line


@pytest.mark.parametrize("slide", ["C2", "C5"])
def test_cytassist_image_of_a_shared_slide(vst, place: Place, slide: str) -> None:
    outs = SHARED / "slides" / slide
    images = sorted(outs.rglob("*cytassist_image.tiff"))
    if not images:
        pytest.skip(f"{outs} with a cytassist_image.tiff is not here")
    line = refused(vst, place, place.extract(outs=outs, image=images[0]))
    assert "microscope image" in line


def test_image_that_is_no_image(vst, place: Place) -> None:
    image = place.folder / "slide.tif"
    image.write_text("not a TIFF")
    assert str(image) in refused(vst, place, place.extract(image=image))


def test_image_of_another_slide(vst, place: Place) -> None:
    other = place.slide.parent / "P2" / "tissue_image.tif"
    assert str(other) in refused(vst, place, place.extract(image=other))


def test_8_um_folder(vst, place: Place) -> None:
    eight = place.outs() / "binned_outputs" / "square_008um"
    (eight.parent / "square_002um").rename(eight)
    path = eight / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bin_size_um": 8.0}))
    line = refused(vst, place, place.extract(outs=eight))
    assert "8 µm" in line
    assert "square_002um" in line
    assert "square_008um" in refused(vst, place, place.extract(outs=eight.parent))


def test_8_um_fixture(vst, place: Place) -> None:
    outs = SHARED / "fixtures" / "seurat_hd"
    if not outs.is_dir():
        pytest.skip(f"{outs} is not here")
    for folder in (outs, outs / "binned_outputs" / "square_008um"):
        assert "square_002um" in refused(vst, place, place.extract(outs=folder))


def test_missing_outs(vst, place: Place) -> None:
    outs = place.folder / "none"
    assert str(outs) in refused(vst, place, place.extract(outs=outs))


def test_empty_outs(vst, place: Place) -> None:
    outs = place.folder / "empty"
    outs.mkdir()
    assert "square_002um" in refused(vst, place, place.extract(outs=outs))


@pytest.mark.parametrize(
    "missing",
    [
        "spatial/tissue_positions.parquet",
        "spatial/scalefactors_json.json",
        "filtered_feature_bc_matrix.h5",
    ],
)
def test_outs_without_a_part(vst, place: Place, missing: str) -> None:
    outs = place.outs()
    (outs / SQUARE / missing).unlink()
    assert missing.split("/")[-1] in refused(vst, place, place.extract(outs=outs))


@pytest.mark.parametrize(
    "damaged", ["spatial/tissue_positions.parquet", "filtered_feature_bc_matrix.h5"]
)
def test_outs_with_a_part_cut_off(vst, place: Place, damaged: str) -> None:
    outs = place.outs()
    path = outs / SQUARE / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert damaged.split("/")[-1] in refused(vst, place, place.extract(outs=outs))


def test_store_place_that_is_not_a_store(vst, place: Place) -> None:
    (place.folder / "new.vst").mkdir()
    (place.folder / "new.vst" / "thesis.docx").write_text("years of work")
    assert "new.vst" in refused(vst, place, place.extract())


def test_store_place_below_a_file(vst, place: Place) -> None:
    (place.folder / "file").write_text("")
    assert "file" in refused(vst, place, place.extract(store="file/new.vst"))


def test_finished_store_of_other_options(vst, place: Place) -> None:
    shutil.copytree(place.stores["P1"], place.folder / "new.vst")
    line = refused(vst, place, [*place.extract(), "--min-tissue", 0.9])
    assert "other inputs or options" in line


def test_begun_store_of_other_options(vst, place: Place, monkeypatch) -> None:
    from virchow_st.store.writer import StoreWriter

    def killed(self: StoreWriter, manifest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finish", killed)
        answer = vst(*place.extract())
    assert answer.code == 130
    assert answer.err.splitlines()[-1].startswith("error: stopped")
    before = {k: v for k, v in place.listing().items() if "lock" not in k}
    answer = vst(*place.extract(), "--matrix", "raw")
    assert answer.code == 2
    assert "other inputs or options" in answer.err
    assert {k: v for k, v in place.listing().items() if "lock" not in k} == before
    assert "unfinished" in refused(vst, place, ["inspect", place.folder / "new.vst"])
    assert vst(*place.extract()).code == 0


def test_min_tissue_that_no_patch_has(vst, place: Place) -> None:
    outs = place.outs()
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = outs / SQUARE / "spatial" / "tissue_positions.parquet"
    table = pq.read_table(path)
    thin = table["in_tissue"].to_numpy() & (table["array_row"].to_numpy() % 2 == 0)
    at = table.schema.get_field_index("in_tissue")
    pq.write_table(table.set_column(at, "in_tissue", pa.array(thin.astype(np.uint8))), path)
    line = refused(vst, place, [*place.extract(outs=outs), "--min-tissue", 0.9])
    assert "--min-tissue" in line


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--min-tissue", "1.5", "min_tissue"),
        ("--min-tissue", "half", "--min-tissue"),
        ("--matrix", "both", "--matrix"),
        ("--token-um", "12", "token_um"),
        ("--device", "gpu", "device"),
        ("--weights", "w.bin", "weights"),
        ("--patient", "", "--patient"),
        ("--colour", "1", "--colour"),
    ],
)
def test_bad_extract_options(vst, place: Place, option: str, value: str, expected: str) -> None:
    arguments = [*place.extract(), option, value]
    if option == "--device":
        arguments += ["--encoder", "vit_tiny_patch16_224"]
    assert expected in refused(vst, place, arguments)


def test_extract_without_a_slide(vst, place: Place) -> None:
    assert "--manifest" in refused(vst, place, ["extract"])
    both = [*place.extract(), "--manifest", "slides.csv"]
    assert "--manifest" in refused(vst, place, both)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read"),
        ("", "patient,outs,image,store"),
        ("patient,outs,image\nP1,a,b\n", "store is missing"),
        ("patient,outs,image,store\n", "there is none"),
        ("patient,outs,image,store\nP1,a,b\n", "store is empty"),
        ("patient,outs,image,store\nP1,,b,c\n", "outs is empty"),
        ("patient,outs,image,store\nP1,a,b,c\nP2,d,e,c\n", "named twice"),
    ],
)
def test_bad_manifests(vst, place: Place, text: str | None, expected: str) -> None:
    manifest = place.folder / "slides.csv"
    if text is not None:
        manifest.write_text(text)
    line = refused(vst, place, ["extract", "--manifest", manifest, "--encoder", "stain"])
    assert str(manifest) in line
    assert expected in line


def test_simulate_refusals(vst, place: Place) -> None:
    out = place.folder / "out"
    assert "bins" in refused(vst, place, ["simulate", out, "--bins", 100])
    assert "--bins" in refused(vst, place, ["simulate", out, "--bins", "many"])
    assert "patients" in refused(vst, place, ["simulate", out, "--patients", "a/b"])
    (place.folder / "file").write_text("")
    assert "file" in refused(vst, place, ["simulate", place.folder / "file", "--bins", 128])


def test_demo_leaves_other_folders_alone(vst, place: Place) -> None:
    (place.folder / "mine").mkdir()
    (place.folder / "mine" / "thesis.docx").write_text("years of work")
    assert "mine" in refused(vst, place, ["demo", place.folder / "mine"])
    (place.folder / "mine" / "demo.json").write_text('{"title": "my own demo"}')
    assert "mine" in refused(vst, place, ["demo", place.folder / "mine"])


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_stores_that_are_none(vst, place: Place, command: str) -> None:
    folder = place.folder / "folder"
    folder.mkdir()
    assert "no such store" in refused(vst, place, [command, place.folder / "none.vst"])
    assert "not a store" in refused(vst, place, [command, folder])
    (folder / "store.json").write_text('{"format": "another/1"}')
    assert "expected format" in refused(vst, place, [command, folder])
    (folder / "store.json").write_text("{")
    assert "JSON" in refused(vst, place, [command, folder])


def test_train_refusals(vst, place: Place) -> None:
    unknown = refused(vst, place, place.train("--test-patient", "P9"))
    assert "P9" in unknown
    assert "P1, P5" in unknown
    assert "--test-patient" in refused(vst, place, place.train())
    folder = place.folder / "folder"
    folder.mkdir()
    assert "not a store" in refused(
        vst, place, ["train", folder, place.stores["P1"], "--run", "r", "--test-patient", "P1"]
    )
    assert "another patient" in refused(
        vst, place, ["train", place.stores["P1"], "--run", "r", "--test-patient", "P1"]
    )
    nothing = ["train", "--run", place.folder / "r", "--test-patient", "P1"]
    assert "stores" in refused(vst, place, nothing)
    assert "--run" in refused(vst, place, ["train", place.stores["P1"]])
    resumed = refused(vst, place, place.train("--test-patient", "P5", "--resume"))
    assert "nothing to resume" in resumed


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--scales", "2,x", "scales"),
        ("--scales", "2,3", "scales"),
        ("--epochs", "0", "epochs"),
        ("--epochs", "1.5", "--epochs"),
        ("--decoder", "unet", "--decoder"),
        ("--loss", "mae", "--loss"),
        ("--panel", "top:0", "panel"),
        ("--panel", "top:100000", "panel"),
        ("--panel", "no_such_file.txt", "panel"),
        ("--device", "gpu", "device"),
        ("--config", "no_such.toml", "no_such.toml"),
    ],
)
def test_bad_train_options(vst, place: Place, option: str, value: str, expected: str) -> None:
    arguments = place.train("--test-patient", "P5", option, value)
    assert expected in refused(vst, place, arguments)


def test_train_into_a_folder_that_is_there(vst, place: Place) -> None:
    (place.folder / "run").mkdir()
    assert "already there" in refused(vst, place, place.train("--test-patient", "P5"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("epochs = ", "TOML"), ("epoch = 1", "unknown keys"), ("epochs = 'x'", "expected int")],
)
def test_broken_config_file(vst, place: Place, text: str, expected: str) -> None:
    path = place.folder / "config.toml"
    path.write_text(text)
    line = refused(vst, place, place.train("--test-patient", "P5", "--config", path))
    assert str(path) in line
    assert expected in line


@pytest.mark.parametrize("command", ["evaluate", "figures"])
def test_runs_that_are_none(vst, place: Place, command: str) -> None:
    assert "no such" in refused(vst, place, [command, place.folder / "none"])
    (place.folder / "folder").mkdir()
    assert "folder" in refused(vst, place, [command, place.folder / "folder"])


def test_a_comparison_needs_two_runs_and_a_place(vst, place: Place) -> None:
    runs = [place.folder / "a", place.folder / "b"]
    arguments = ["evaluate", runs[0], "--json", place.folder / "comparison.json"]
    assert "several runs" in refused(vst, place, arguments)
    arguments = ["evaluate", *runs, "--json", place.folder / "none" / "comparison.json"]
    assert "no folder" in refused(vst, place, arguments)


def test_unknown_commands(vst, place: Place) -> None:
    assert "'bogus'" in refused(vst, place, ["bogus"])
    assert "extra" in refused(vst, place, ["verify", "a", "b"])


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
    assert "registration: expected a verdict and the numbers shift_row_um" in answer.err


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
    assert "9 patches, all sound" in answer.out
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


# --- as a process -------------------------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "virchow_st_cli.main", *map(str, arguments)]


def run_vst(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


def test_a_process_refuses_as_well(place: Place) -> None:
    before = place.listing()
    done = run_vst(*place.extract(image=place.folder / "none.tif"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert place.listing() == before


def test_entry_point_is_installed() -> None:
    vst = shutil.which("vst", path=str(Path(sys.executable).parent))
    if vst is None:
        pytest.skip("vst is not installed beside this Python")
    done = subprocess.run([vst, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("vst, version ")


def test_a_closed_pipe_is_quiet(stores: dict[str, Path]) -> None:
    for arguments in (("inspect", stores["P1"]), ("inspect", stores["P1"], "--json"), ("--help",)):
        process = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.close()  # as `| head -0` does
        _, err = process.communicate(timeout=60)
        assert err == b"", arguments


def records(store: Path) -> dict[bytes, bytes]:
    """Every record of a store."""
    with (
        lmdb.open(str(store), readonly=True, lock=False, max_dbs=0) as env,
        env.begin() as txn,
        txn.cursor() as cursor,
    ):
        return {bytes(k): bytes(v) for k, v in cursor}


# One patch a commit instead of sixteen, and slowly: many moments to be killed at.
SLOW = """
import sys, time
from virchow_st.encoders.stain import StainEncoder
from virchow_st.store.writer import StoreWriter
from virchow_st_cli.main import main
StainEncoder.batch = 1
append = StoreWriter.append
def slow_append(self, records):
    append(self, records)
    print("appended", self.next_index, file=sys.stderr, flush=True)
    time.sleep(0.05)
StoreWriter.append = slow_append
main()
"""


def stop_and_repeat(place: Place, how: signal.Signals, rng: random.Random) -> tuple[int, int]:
    """Stop an extraction after a random patch and moment; finish it; (code, patches kept)."""
    arguments = [sys.executable, "-c", SLOW, *map(str, place.extract())]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    at, said = rng.randrange(9), []  # 0: as soon as the first line comes
    for raw in process.stderr:
        said.append(raw.decode())
        if at == 0 or f"appended {at}\n" in said:
            break
    time.sleep(rng.random() * 0.06)
    process.send_signal(how)
    rest = process.stderr.read().decode()
    code = process.wait(timeout=60)
    process.stderr.close()
    if how is signal.SIGINT:
        assert "Traceback" not in rest, rest
    done = run_vst_slow(place)
    assert done.returncode == 0, done.stderr
    return code, sum(line.startswith("appended") for line in said)


def run_vst_slow(place: Place) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", SLOW, *map(str, place.extract())]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120)


def check_stopping(place: Place, how: signal.Signals, times: int, seed: int) -> None:
    rng = random.Random(seed)
    # Made in one go, sixteen patches a commit; a copy, as this process may have it open already.
    whole = records(shutil.copytree(place.stores["P1"], place.folder / "whole"))
    manifest = json.loads((place.stores["P1"] / "store.json").read_text())
    for _ in range(times):
        code, _ = stop_and_repeat(place, how, rng)
        assert code in (-how, 130, 0)  # 0: it was already done
        store = place.folder / "new.vst"
        assert records(store) == whole
        again = json.loads((store / "store.json").read_text())
        assert again["job"]["encoding"]["batches"] == [[0, 1]]
        again["job"]["encoding"]["batches"] = [[0, 16]]
        assert {**again, "slide": "P1"} == manifest
        assert {p.name for p in store.iterdir()} == {"data.mdb", "store.json"}
        shutil.rmtree(store)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_extraction_resumes_to_the_same_bytes(place: Place, how: signal.Signals) -> None:
    check_stopping(place, how, times=2, seed=int(how))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_extraction_resumes_whenever(place: Place, how: signal.Signals) -> None:
    check_stopping(place, how, times=8, seed=100 + int(how))
