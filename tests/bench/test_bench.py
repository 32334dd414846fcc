"""`vst bench`: every target at a size that takes seconds, and the command itself."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from virchow_st.bench import (
    TARGETS,
    extract,
    ingest,
    limits,
    loss,
    metrics,
    run_target,
    store,
    train,
)
from virchow_st.bench.encoder import open_encoder
from virchow_st.bench.tables import Table
from virchow_st.bench.train_gains import gains_table
from virchow_st.errors import ConfigError
from virchow_st.kernels.table import TABLE
from virchow_st.run.panel import choose_panel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One scratch folder: the simulated slide in it is drawn once."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for a busy core slow down work as small as this many times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check(table: Table) -> dict[str, dict[str, float]]:
    """Every figure of a table is positive; the cells by row and column."""
    assert table.title
    assert table.rows
    for row in table.rows:
        assert isinstance(row[0], str)
        assert row[0]
        for cell in row[1:]:
            assert cell is None or isinstance(cell, int | float)
            assert cell is None or (math.isfinite(cell) and cell > 0), (table.title, row)
    return {str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


# --- targets --------------------------------------------------------------------------------------


def test_ingest(folder) -> None:
    (table,) = ingest.measure(folder, bins=256, genes=80, rounds=1)
    rows = check(table)
    plain = rows["plain: h5py, scipy, a sort"]
    assert plain["ratio to plain"] == 1
    ours = rows["ours"]
    assert ours["s"] * ours["ratio to plain"] == pytest.approx(plain["s"])


def test_ingest_compares_what_both_sides_read(folder) -> None:
    outs = ingest.simulate_slide(folder, 256, 80).outs
    slide = ingest.VisiumHDSlide.open(outs)
    patches = ingest.lay_patches(slide.tissue_mask, ingest.MIN_TISSUE)
    plain = ingest.read_plainly(slide.matrix_path, slide.files.positions, patches)
    ours = ingest.read_counts(outs)
    ingest.check_equal(ours, plain)
    plain[3][-1] += 1
    with pytest.raises(AssertionError, match=f"patch {len(patches) - 1}"):
        ingest.check_equal(ours, plain)


def test_store(folder) -> None:
    read, writing, panels = store.measure(folder, n_patches=5, dim=16, rounds=1)
    assert check(read)["numpy memmap copy"]["ratio to memmap"] == 1
    assert check(writing)["plain file"]["ratio to plain"] == 1
    assert check(panels)["scipy: unpack, slice rows, toarray"]["ratio to scipy"] == 1
    assert {"store", "HDF5, one patch per chunk"} < set(check(read))


def test_loss() -> None:
    for table in loss.measure(device="cpu", sizes=((1, 3), (2, 1)), rounds=1):
        plain, ours = check(table).values()
        assert ours["ratio to plain"] == pytest.approx(plain["ms"] / ours["ms"])
    assert "B = 2, G = 1" in table.title


def test_loss_refuses_to_compare_different_losses(monkeypatch) -> None:
    plain = loss.plain_poisson
    monkeypatch.setattr(loss, "plain_poisson", lambda *a: 1.1 * plain(*a))
    with pytest.raises(AssertionError, match="not close"):
        loss.measure(device="cpu", sizes=((1, 3),), rounds=1)


def test_metrics() -> None:
    pairs = tuple(p for p in TABLE if p.name in ("pool_mask", "find_panel"))
    kernels, scoring = metrics.measure(n_genes=2, rounds=1, pairs=pairs)
    assert set(check(kernels)) == {"pool_mask", "find_panel"}
    parts = check(scoring)
    whole = parts.pop("all four")["ms per patch"]
    assert whole == pytest.approx(sum(row["ms per patch"] for row in parts.values()))


def test_extract(folder) -> None:
    (table,) = extract.measure(folder, bins=256, genes=80, rounds=1)
    rows = check(table)
    assert rows["vst extract"]["share of the whole"] == 1
    assert rows["of which encoding"]["share of the whole"] < 1
    parts = [name for name in rows if name.split(",")[0] in (
        "positions", "read the image", "warp it", "encode", "pack", "compare with counts"
    )]  # fmt: skip
    in_turn = rows["these one after the other"]["ms per patch"]
    assert in_turn == pytest.approx(sum(rows[name]["ms per patch"] for name in parts))
    assert "stain" in table.title


def test_extract_with_a_vit_knows_its_share_of_the_peak(folder, monkeypatch) -> None:
    encoder = small_random_vit(monkeypatch)
    parts, peak = extract.measure(folder, encoder=encoder, bins=256, genes=80, rounds=1)
    check(parts)
    assert "random weights" in parts.title
    rows = check(peak)
    alone, most = rows["encoder alone"], rows["matrix product"]
    assert most["share of the peak"] == 1
    assert alone["share of the peak"] == pytest.approx(alone["TFLOP/s"] / most["TFLOP/s"])
    # 2 blocks on 256 + 5 tokens of 32 channels and the embedding of 14×14×3 pixels, a product each
    # of 2·n·k·m; torch counts at least these.
    tokens, dim = 261, 32
    at_least = 2 * 256 * 588 * dim + 2 * (2 * tokens * dim * 3 * dim)
    assert alone["TFLOP/s"] * 1e12 / alone["images/s"] > at_least


def small_random_vit(monkeypatch):
    """`open_encoder` with ``--random-weights``, a two-block ViT in Virchow2's place."""
    from virchow_st.models.encoders import published

    tiny = {**published.VIRCHOW2.arguments, "embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(published, "VIRCHOW2", replace(published.VIRCHOW2, arguments=tiny))
    return open_encoder("stain", "", True, "cpu")


def test_train(folder) -> None:
    steps, shares = train.measure(
        folder, device="cpu", decoder="linear", batch_size=2, bins=256, genes=80, panel="top:5",
        rounds=1,
    )  # fmt: skip
    rows = check(steps)
    assert list(rows) == ["from memory", "resident", "from the store", "encoder in the loop"]
    assert rows["from memory"]["ratio of time to memory"] == 1
    assert rows["encoder in the loop"]["ratio to the encoder"] == 1
    parts = check(shares)
    assert parts.pop("all")["share of the step"] == 1
    assert sum(row["share of the step"] for row in parts.values()) == pytest.approx(1)


@pytest.mark.slow
def test_gains_one_after_the_other(folder) -> None:
    """What runs on a GPU only, here with a small decoder on the CPU."""
    made = extract.extracted_store(folder, open_encoder("stain", "", False, "cpu"), 256, 80)
    panel = choose_panel("top:5", [made])
    table = gains_table(made, panel, "cpu", 2, decoder="linear", rounds=1)
    rows = check(table)
    assert list(rows) == [
        "plain loss, from the store", "and the fused loss", "and resident", "and compiled",
    ]  # fmt: skip
    ratio = 1.0
    for row in rows.values():
        ratio *= row["ratio to the row above"]
        assert row["ratio to plain"] == pytest.approx(ratio)


def test_unknown_target(tmp_path) -> None:
    with pytest.raises(ValueError, match="expected one of ingest"):
        run_target("nonsense", tmp_path)


@pytest.mark.parametrize(
    ("name", "weights"), [("uni2", ""), ("virchow2", "x.safetensors"), ("stain", "x.bin")]
)
def test_random_weights_stand_alone(name, weights) -> None:
    with pytest.raises(ConfigError, match="--random-weights"):
        open_encoder(name, weights, True, "cpu")


# --- limits ---------------------------------------------------------------------------------------


def once_in_4_s(function, **_):
    """`interleaved` of a machine that takes 4 s."""
    function()
    return [4.0]


def test_rates_are_what_was_done_over_the_time_it_took(monkeypatch) -> None:
    copied = []
    monkeypatch.setattr(limits, "_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(limits, "interleaved", once_in_4_s)
    with monkeypatch.context() as spied:
        spied.setattr(np, "copyto", lambda target, source: copied.append(source.nbytes))
        rate = limits.copy_rate(1 << 16)
    assert copied == [1 << 16] * 16
    assert rate == sum(copied) / 4
    with FlopCounterMode(display=False) as counted:
        rate = limits.matmul_rate(torch.device("cpu"))
    assert rate == counted.get_total_flops() / 4 > 0


@pytest.mark.parametrize(("kept", "read"), [(0.0, (2 << 20) / 0.5), (0.5, None)])
def test_disk_rates(tmp_path, monkeypatch, kept, read) -> None:
    """2 MiB, written in 8 s and read in half a second; what memory still holds is not the disk."""
    sizes = []
    clock = iter([10.0, 18.0, 20.0, 20.5])
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(
        limits, "drop_pages", lambda paths: sizes.extend(p.stat().st_size for p in paths) or kept
    )
    assert limits.disk_rates(tmp_path, 2 << 20) == limits.DiskRates((2 << 20) / 8, read)
    assert sizes == [2 << 20]
    assert list(tmp_path.iterdir()) == []


def test_pages_that_stay_in_memory_are_counted(tmp_path, monkeypatch) -> None:
    """One of three files of a page each is forgotten, as the kernel does or says it did."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"x")
    asked, reads = [], []

    def forget(descriptor, offset, length, advice):
        asked.append((os.readlink(f"/proc/self/fd/{descriptor}"), offset, length, advice))

    def read(descriptor, buffers, offset, flags):
        assert flags == os.RWF_NOWAIT
        reads.append(offset)
        if len(reads) == 2:
            raise BlockingIOError
        return 1

    monkeypatch.setattr(os, "posix_fadvise", forget)
    monkeypatch.setattr(os, "preadv", read)
    assert limits.drop_pages(paths) == pytest.approx(2 / 3)
    assert asked == [(str(path), 0, 0, os.POSIX_FADV_DONTNEED) for path in paths]
    reads.clear()
    paths[0].write_bytes(bytes(2 << 20))
    assert limits.drop_pages(paths[:1]) == 0.5
    assert reads == [0, 1 << 20]


# --- the command ----------------------------------------------------------------------------------


def test_command(vst, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    seen: list[Path] = []

    def run(target, folder, progress, **options):
        assert folder.is_dir()
        seen.append(folder)
        progress.step(1, 1, "steps")
        return [Table(f"T of {target}", ["a", "ratio"], [["r [b]", 2.0]], ["note"])]

    monkeypatch.setattr("virchow_st_cli.bench.run_target", run)
    answer = vst("bench", "--json", tmp_path / "out.json")
    assert answer.code == 0, answer.err
    for target in TARGETS:
        assert f"T of {target}" in answer.out
    assert "r [b]" in answer.out
    assert "2.00×" in answer.out
    content = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert content["name"] == "all"
    assert [t["title"] for t in content["tables"]] == [f"T of {t}" for t in TARGETS]
    assert {p.parent for p in seen} == {tmp_path}
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_command_refuses(vst, tmp_path) -> None:
    answer = vst("bench", "nonsense")
    assert answer.code == 2
    assert "nonsense" in answer.err.splitlines()[-1]
    answer = vst("bench", "metrics", "--json", tmp_path / "absent" / "out.json")
    assert answer.code == 2
    assert answer.out == ""
    assert "create the folder" in answer.err
    answer = vst("bench", "train", "--device", "tpu")
    assert answer.code == 2
    assert answer.err.startswith("error: device: expected")


def test_command_stopped(vst, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def run(target, folder, progress, **options):
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    monkeypatch.setattr("virchow_st_cli.bench.run_target", run)
    answer = vst("bench", "store", "--json", tmp_path / "out.json")
    assert answer.code == 130
    assert answer.err == "error: stopped; the tables so far are above, no file was written\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_real_command(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "virchow_st_cli.main", "bench", "loss", "--device", "cpu", "--json",
         str(tmp_path / "loss.json")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for table in json.loads((tmp_path / "loss.json").read_text("utf-8"))["tables"]:
        assert np.isfinite([row[1] for row in table["rows"]]).all()
