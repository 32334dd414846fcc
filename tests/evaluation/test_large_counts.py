"""Counts that 16 bits or the 13 digits of rates would change are exact in maps and exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import zarr
from cli_place import Answer
from tiny_store import make_record, make_records, write_records, write_store

from virchow_st.store.reader import open_store

LARGE = {(100, 100): 70_001, (100, 102): 20_001, (101, 100): 65_536, (127, 127): 16_385}


def test_counts_stay_as_they_are(vst: Callable[..., Answer], tmp_path: Path) -> None:
    write_store(tmp_path / "A.vst", "A", 4, slide="A", n_genes=3)
    (drawn,) = make_records(1, n_genes=3, seed=1)
    dense = np.zeros((3, 128 * 128), np.int64)
    dense[drawn.gene, drawn.position] = drawn.count
    for (r, c), n in LARGE.items():
        dense[1, r * 128 + c] = n
    mask = np.ones((128, 128), bool)
    changed = make_record(drawn.tokens, dense.reshape(3, 128, 128), mask, drawn.image)
    store = write_records(tmp_path / "T.vst", [changed], 3, patient="T", slide="T")
    expected = store[0].dense_counts([0, 1, 2])
    run, of_run, of_store = tmp_path / "run", tmp_path / "run.zarr", tmp_path / "store.npz"
    for arguments in (
        ["train", tmp_path / "A.vst", store.path, "--run", run, "--test-patient", "T", "--panel",
         "top:3", "--decoder", "linear", "--epochs", 1, "--device", "cpu"],
        ["evaluate", run, "--device", "cpu"],
        ["export", run, "--out", of_run, "--genes", "GENE0,GENE1,GENE2"],
        ["export", store.path, "--out", of_store, "--format", "npz", "--genes", "GENE1"],
    ):  # fmt: skip
        answer = vst(*arguments)
        assert answer.code == 0, answer.err
    panel = [line.split("\t")[1] for line in (run / "panel.tsv").read_text().splitlines()[1:]]
    with h5py.File(run / "maps" / "T.h5") as maps:
        counts = maps["counts"][panel.index("GENE1")]
    exported = zarr.open_group(of_run, mode="r")["images/counts_2um/s0"][1]
    at_8um = zarr.open_group(of_run, mode="r")["images/counts_8um/s0"][1]
    for (r, c), n in LARGE.items():
        assert expected[1, r, c] == counts[r, c] == exported[r, c] == n
    np.testing.assert_array_equal(counts, expected[1])
    np.testing.assert_array_equal(exported, expected[1])
    pooled = expected[1].reshape(32, 4, 32, 4).sum(axis=(1, 3))
    np.testing.assert_array_equal(at_8um, pooled)
    with np.load(of_store) as arrays:
        np.testing.assert_array_equal(arrays["counts_8um"][0], pooled)
    assert open_store(store.path).manifest["genes"]["total"][1] == expected[1].sum()
