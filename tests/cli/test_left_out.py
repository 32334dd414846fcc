"""All commands leave out a few impossible rates as not predicted, and refuse many."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import zarr
from changed_weights import GENE, change_weights, flatten, spike
from cli_place import Answer, Vst

import virchow_st
from virchow_st.errors import ConfigError
from virchow_st.run.panel import Panel
from virchow_st.run.rates import check_left_out
from virchow_st.types import BoolArray

N = 20
CPU = ("--device", "cpu")


@pytest.fixture
def run(stain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stain_run, tmp_path / "run"))


def warnings(answer: Answer) -> list[str]:
    assert answer.code == 0, answer.err
    return [line for line in answer.err.splitlines() if "left out" in line]


def test_evaluate_scores_the_other_bins(vst: Vst, run: Path, stores: dict[str, Path]) -> None:
    store = virchow_st.open_store(stores["P5"])
    lost = spike(run, store, N)
    (warning,) = warnings(vst("evaluate", run, *CPU))
    n_bins = 128**2 * len(store)
    assert f"{run}: {N} of {n_bins:,} bins" in warning
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["left_out_bins"] == N
    tissue = np.stack([patch.tissue_mask for patch in store])
    assert 0 < (scored := int((tissue & ~np.stack(lost)).sum())) < tissue.sum()
    for scores in (metrics["scales"]["2"], metrics["baselines"]["ridge"]["2"]):
        assert scores["n_bins"] == scored  # all models on the same bins
    with h5py.File(run / "maps" / "P5.h5") as f:
        rate, counts, mask = (f[name][:] for name in ("rate", "counts", "scored_mask"))
        row0, col0 = f.attrs["row0"], f.attrs["col0"]
    for info, of_patch, in_tissue in zip(store.patch_table, lost, tissue, strict=True):
        at = np.s_[..., info.row0 - row0 :, info.col0 - col0 :]
        np.testing.assert_array_equal(mask[at][:128, :128], in_tissue & ~of_patch)
        for gene in rate[at][:, :128, :128]:
            np.testing.assert_array_equal(np.isnan(gene), of_patch)
    with open(run / "per_gene.csv", newline="") as file:
        pcc = [float(row["pcc"]) for row in csv.DictReader(file) if row["scale_um"] == "2"]
    expected = [
        np.corrcoef(r[mask].astype(float), k[mask])[0, 1] for r, k in zip(rate, counts, strict=True)
    ]
    np.testing.assert_allclose(pcc, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_reads_the_maps(vst: Vst, run: Path, stores: dict[str, Path]) -> None:
    lost = np.stack(spike(run, virchow_st.open_store(stores["P5"]), N))
    warnings(vst("evaluate", run, *CPU))
    gene = Panel.read(run / "panel.tsv").ids[GENE]
    assert warnings(vst("report", run, "--genes", gene)) == []
    assert f"{N} bins left out" in (run / "report.html").read_text("utf-8")
    out = run.parent / "out"
    for name in ("spatialdata", "ome-zarr", "h5ad", "npz"):
        assert warnings(vst("export", run, "--format", name, "--out", f"{out}.{name}")) == []
    rates, counts = (
        zarr.open_array(f"{out}.spatialdata/images/{kind}_2um/s0", mode="r")[:]
        for kind in ("rates", "counts")
    )
    assert (np.isnan(rates) & ~np.isnan(counts)).sum(axis=(1, 2)).tolist() == [lost.sum()] * 6
    table = anndata.read_h5ad(f"{out}.h5ad")
    assert not np.isnan(table.X).any()


def test_predict_leaves_the_same_kind_out(
    vst: Vst, run: Path, simulated: Path, stores: dict[str, Path]
) -> None:
    image, out = simulated / "P5" / "tissue_image.tif", run.parent
    predict = ["predict", run, image, *CPU]
    change_weights(run, flatten)
    assert warnings(vst(*predict, "--out", out / "plain.zarr")) == []
    spike(run, virchow_st.open_store(stores["P5"]), N)
    (warning,) = warnings(vst(*predict, "--out", out / "spiked.zarr"))
    plain, spiked = (
        zarr.open_group(out / f"{name}.zarr", mode="r") for name in ("plain", "spiked")
    )
    before, after = (of["images/rates_2um/s0"][:] for of in (plain, spiked))
    lost = np.isnan(after[0]) & ~np.isnan(before[0])
    n, n_bins = int(lost.sum()), int((~np.isnan(before[0])).sum())
    assert 0 < n < 0.01 * n_bins
    assert f"{run}: {n} of {n_bins:,} bins" in warning
    assert spiked.attrs["virchow_st"]["left_out_bins"] == n
    assert plain.attrs["virchow_st"]["left_out_bins"] == 0
    there = np.isnan(before[0]) | lost
    for gene in after:
        np.testing.assert_array_equal(np.isnan(gene), there)
    np.testing.assert_array_equal(after[0][~there], before[0][~there])
    coarse = spiked["images/rates_8um/s0"][0]
    np.testing.assert_array_equal(np.isnan(coarse), pooled(there))
    # A cell of 8 µm with such a bin is no row of a table; a second run does not fill it.
    also = ["--also", shutil.copytree(run, out / "other")]
    change_weights(out / "other", flatten)
    answer = vst(*predict, *also, "--out", out / "both.zarr")
    assert len(warnings(answer)) == 1
    both = zarr.open_group(out / "both.zarr", mode="r")
    for name in ("rates", "spread"):
        np.testing.assert_array_equal(np.isnan(both[f"images/{name}_2um/s0"][0]), there)
    vst(*predict, "--format", "h5ad", "--out", out / "spiked.h5ad")
    tissue = spiked["labels/tissue/s0"][:].astype(bool)
    assert anndata.read_h5ad(out / "spiked.h5ad").n_obs == (tissue & ~pooled(there)).sum()


def pooled(mask: BoolArray) -> BoolArray:
    """8 µm cells with a bin of the mask."""
    rows, cols = (n // 4 for n in mask.shape)
    found: BoolArray = mask.reshape(rows, 4, cols, 4).any(axis=(1, 3))
    return found


def test_many_are_refused_by_all(
    vst: Vst, run: Path, simulated: Path, stores: dict[str, Path]
) -> None:
    store = virchow_st.open_store(stores["P5"])
    lost = np.stack(spike(run, store, 9 * 256 // 33, everywhere=True))
    assert 0.01 < lost.mean() < 0.04
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    image, out = simulated / "P5" / "tissue_image.tif", run.parent / "out.zarr"
    for arguments in (["evaluate", run], ["predict", run, image, "--out", out]):
        answer = vst(*arguments, *CPU)
        assert answer.code == 2
        (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {run}: expected rates of at most 65504 UMIs per 2 µm bin;")
        assert "more than 1% the weights are damaged" in line
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
        assert not out.exists()
    trained = virchow_st.load_run(run, "cpu")
    with pytest.raises(ConfigError, match="more than 1%"):
        list(trained.predict_store(store))
    with pytest.raises(ConfigError, match="more than 1%"):
        trained.predict(store[int(lost.sum(axis=(1, 2)).argmax())])


def test_in_python(run: Path, stores: dict[str, Path]) -> None:
    store = virchow_st.open_store(stores["P5"])
    lost = spike(run, store, N)
    trained = virchow_st.load_run(run, "cpu")
    for i, rates in enumerate(trained.predict_store(store)):
        for gene in rates:
            np.testing.assert_array_equal(np.isnan(gene), lost[i])
        np.testing.assert_array_equal(trained.predict(store[i]), rates)


def test_one_per_cent_is_the_most() -> None:
    check_left_out(100, 10_000, "run")
    with pytest.raises(ConfigError, match="101 of 10,000 bins"):
        check_left_out(101, 10_000, "run")
