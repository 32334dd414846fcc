"""``vst export``: what is written is what is in the run or store."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from cli_place import Vst
from exported import needs_anndata, pooled
from tiny_run import LICENCE, TILTED
from tiny_store import make_records, write_records

import virchow_st
from virchow_st.field.bins import rounded


def test_a_run_as_images(of_run: Path, tiny_run: Path) -> None:
    assert [p.name for p in of_run.parent.iterdir()] == ["T.zarr"]
    root = zarr.open_group(of_run, mode="r")
    names = {"he", "rates_2um", "rates_8um", "counts_2um", "counts_8um"}
    assert set(root["images"]) == names
    with h5py.File(tiny_run / "maps" / "T.h5") as f:
        rate, counts, mask, image = (
            f[name][:] for name in ("rate", "counts", "scored_mask", "image")
        )
    there = np.ones(mask.shape, bool)
    there[128:, 128:] = False  # the fourth place has no patch
    for name, expected in ("rates", rounded(rate.astype(np.float32))), ("counts", counts):
        actual = root[f"images/{name}_2um/s0"][:]
        np.testing.assert_array_equal(actual[:, there], expected[:, there])
        assert np.isnan(actual[:, ~there]).all()
        coarse = root[f"images/{name}_8um/s0"][:]
        np.testing.assert_allclose(coarse[:, :32], pooled(expected[:, :128]), rtol=1e-4)
        assert np.isnan(coarse[:, 32:, 32:]).all()
        half = root[f"images/{name}_2um/s1"][:, :64]
        np.testing.assert_allclose(half, pooled(expected[:, :128], 2) / 4, rtol=1e-4)
    np.testing.assert_array_equal(root["labels/tissue/s0"][:], mask)
    np.testing.assert_array_equal(np.moveaxis(root["images/he/s0"][:], 0, 2), image)


def test_a_run_says_where_it_came_from(of_run: Path, tiny_run: Path) -> None:
    about = zarr.open_group(of_run, mode="r").attrs["virchow_st"]
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert about["format"] == "virchow_st.export/1"
    assert about["run"]["path"] == tiny_run.name
    assert about["run"]["epoch"] == metrics["epoch"]
    assert (about["patient"], about["slide"]) == ("T", "T")
    assert about["encoder"] == {"name": "tiny", "weights": "0" * 16}
    assert about["licence"] == LICENCE
    assert about["homography"] == TILTED.matrix.tolist()
    panel = (tiny_run / "panel.tsv").read_text().splitlines()[1:]
    assert about["genes"]["id"] == [line.split("\t")[0] for line in panel]


def test_genes_in_the_order_asked_for(vst: Vst, tiny_run: Path, of_run: Path, tmp_path: Path):
    genes = zarr.open_group(of_run, mode="r").attrs["virchow_st"]["genes"]
    names = tmp_path / "genes.tsv"
    names.write_text(f"gene_id\tsymbol\n{genes['id'][3]}\tx\n{genes['symbol'][1]}\n")
    for given, out in (
        (f"{genes['id'][3]}, {genes['symbol'][1]}", "a.npz"), (str(names), "b.npz"),
    ):  # fmt: skip
        answer = vst("export", tiny_run, "--out", tmp_path / out, "--format", "npz", "--genes",
                     given)  # fmt: skip
        assert answer.code == 0, answer.err
        assert f"warning: tiny: {LICENCE}" in answer.err
        every = zarr.open_group(of_run, mode="r")
        with np.load(tmp_path / out) as actual:
            assert list(actual["gene_id"]) == [genes["id"][3], genes["id"][1]]
            for kind in ("rates_8um", "counts_8um"):
                expected = every[f"images/{kind}/s0"][:][[3, 1]]
                np.testing.assert_allclose(actual[kind], expected, rtol=2e-4)
            tissue = every["labels/tissue/s0"][:][None]
            np.testing.assert_array_equal(actual["tissue_bins"], pooled(tissue)[0])
            assert json.loads(str(actual["virchow_st"]))["options"]["format"] == "npz"


@needs_anndata
def test_scores_of_the_table_are_those_of_evaluation(
    vst: Vst, tiny_run: Path, tmp_path: Path
) -> None:
    """Rows are the bins that are scored at 8 µm, so anybody can check per_gene.csv."""
    out = tmp_path / "T.h5ad"
    answer = vst("export", tiny_run, "--out", out, "--format", "h5ad")
    assert answer.code == 0, answer.err
    with open(tiny_run / "per_gene.csv") as f:
        scores = {r["gene_id"]: float(r["pcc"]) for r in csv.DictReader(f) if r["scale_um"] == "8"}
    with h5py.File(out) as f:
        rates, counts = f["X"][:], f["layers/counts"][:]
        genes = f["var/gene_id"].asstr()[:]
        for g, gene in enumerate(genes):
            pcc = np.corrcoef(rates[:, g], counts[:, g])[0, 1]
            assert pcc == pytest.approx(scores[gene], abs=2e-5)
        row, col = f["obs/array_row"][:], f["obs/array_col"][:]
        xy = np.stack([col, row], axis=1) * 8 + 4
        np.testing.assert_array_equal(f["obsm/spatial"][:], xy)
        x, y = TILTED.to_px(4 * col + 1.5, 4 * row + 1.5)
        np.testing.assert_allclose(f["obsm/spatial_fullres_px"][:], np.stack([x, y], 1))
        hires = f["uns/spatial/T/images/hires"][:]
        assert hires.shape == (512, 512, 3)
        assert f["uns/spatial/T/scalefactors/tissue_hires_scalef"][()] == 1


# --- a store --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tiny_run: Path) -> virchow_st.Store:
    return virchow_st.open_store(tiny_run.parent / "T.vst")


def test_counts_of_a_store(vst: Vst, store: virchow_st.Store, tmp_path: Path) -> None:
    out = tmp_path / "T.npz"
    answer = vst("export", store.path, "--out", out, "--format", "npz", "--genes", "GENE2,GENE0")
    assert answer.code == 0, answer.err
    with np.load(out) as actual:
        assert list(actual["gene_symbol"]) == ["GENE2", "GENE0"]
        for patch in store:
            r, c = patch.row0 // 4, patch.col0 // 4
            expected = pooled(patch.dense_counts([2, 0]))
            np.testing.assert_array_equal(actual["counts_8um"][:, r : r + 32, c : c + 32], expected)


@needs_anndata
def test_every_gene_of_a_store(vst: Vst, store: virchow_st.Store, tmp_path: Path) -> None:
    out = tmp_path / "T.h5ad"
    answer = vst("export", store.path, "--out", out, "--format", "h5ad")
    assert answer.code == 0, answer.err
    assert "6 genes" in answer.out
    import anndata

    table = anndata.read_h5ad(out)
    np.testing.assert_array_equal(np.asarray(table.X.sum(axis=0)).ravel(), store.genes.totals)
    patch = store[1]
    at_8um = pooled(patch.dense_counts(range(6)))
    for name, r, c in ("s_008um_00005_00040-1", 5, 8), ("s_008um_00031_00063-1", 31, 31):
        np.testing.assert_array_equal(table[name].X.toarray()[0], at_8um[:, r, c])
    n_tissue = sum(int(p.tissue_mask.sum()) for p in store)
    assert table.obs["tissue_bins"].sum() == n_tissue
    assert table.obs["tissue_bins"].min() >= 1


@needs_anndata
def test_a_lattice_off_the_8_um_bins_has_names_of_its_own(vst: Vst, tmp_path: Path) -> None:
    (record,) = make_records(1)
    moved = replace(record, info=replace(record.info, row0=5, col0=3))
    store = write_records(tmp_path / "a.vst", [moved], 6)
    out = tmp_path / "a.h5ad"
    answer = vst("export", store.path, "--out", out, "--format", "h5ad")
    assert answer.code == 0, answer.err
    with h5py.File(out) as f:
        names, xy = f["obs/_index"].asstr()[:], f["obsm/spatial"][:]
    assert not any(name.startswith("s_008um") for name in names)
    row2, col2 = (int(part) for part in names[-1].split("_")[1:])
    np.testing.assert_array_equal(xy[-1], (2 * col2 + 4, 2 * row2 + 4))
    assert (row2 - 5) % 4 == (col2 - 3) % 4 == 0
