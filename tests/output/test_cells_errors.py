"""Bounds and variance of cells' expected UMIs, from the tables of a denoised field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from cell_files import write_mappings
from cli_place import Answer
from tiny_field import TinyField

from virchow_st import CellsConfig, cell_interval, cell_rates, cell_table, open_field, write_cells
from virchow_st.errors import ConfigError
from virchow_st.field.interval import RateErrors
from virchow_st.field.write import write_field
from virchow_st.output.cells import table as table_module
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.geometry import Homography
from virchow_st.types import SCALES_UM

PX = np.array([[4.0, 0.0, 2.0], [0.0, 4.0, 2.0], [0, 0, 1]])
SHAPE = 64, 96


def errors_of(n_genes: int, mean: float) -> RateErrors:
    """Ratios that differ by scale, class, group and level."""
    rng = np.random.default_rng(4)
    shape = len(SCALES_UM), 2, 3, 5
    level = np.sort(rng.uniform(0.2, 3, shape), axis=-1)
    low, high, sd = (rng.uniform(*of, shape) for of in ((0.2, 0.9), (1.1, 3), (0.1, 0.6)))
    group = np.arange(n_genes) % 3
    return RateErrors(SCALES_UM, group, np.linspace(0.5, 2, n_genes) * mean, level, low, high, sd)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A field all of whose bins are tissue with values, with errors, and some bins filled."""
    tiny = TinyField(SHAPE)
    rng = np.random.default_rng(1)
    maps = (rng.integers(1, 32, (4, *SHAPE)) / 16).astype(np.float32)
    tiny.maps, tiny.tissue, tiny.covered = maps, np.ones(SHAPE, bool), np.ones(SHAPE, bool)
    failed = np.zeros(SHAPE, bool)
    failed[:, 40:42] = True
    about = {"homography": PX.tolist(), "slide": "S", "patient": "P9"}
    out = tmp_path_factory.mktemp("field") / "f.zarr"
    errors = errors_of(30, float(np.nanmean(tiny.rates)))
    write_field(out, tiny.blocks(), tiny.loadings, tiny.tissue, about, failed=failed, errors=errors)
    return out


@pytest.fixture(scope="module")
def lattice() -> Lattice:
    return Lattice("S", Homography(PX), 0, 0, np.ones(SHAPE, bool))


def squares(side: int) -> np.ndarray:
    rows, cols = (n // side for n in SHAPE)
    number = np.arange(1, 1 + rows * cols).reshape(rows, cols)
    return number.repeat(side, axis=0).repeat(side, axis=1)


@pytest.mark.parametrize("scale_um", SCALES_UM)
def test_square_cells_have_the_errors_of_the_field_s_bins(
    field: Path, lattice: Lattice, tmp_path: Path, scale_um: int
) -> None:
    cells = write_mappings(tmp_path / "barcode_mappings.parquet", squares(scale_um // 2), lattice)
    adata = cell_table(field, cells)
    opened = open_field(field)
    for g in (0, 7, 22):  # of each group
        gene = opened.genes[g]
        for ours, theirs in zip(
            cell_interval(adata, gene), opened.interval(gene, scale_um), strict=True
        ):
            np.testing.assert_allclose(ours, theirs.ravel(), rtol=2e-3, atol=1e-6)
        spread = opened.spread(gene, scale_um).ravel()
        np.testing.assert_allclose(adata.layers["variance"][:, g], spread**2, rtol=4e-3, atol=1e-6)
    assert 0 < (adata.obs["filled"] > 0).mean() < 0.5


def test_between_scales_ratios_are_interpolated_by_bins(
    field: Path, lattice: Lattice, tmp_path: Path
) -> None:
    labels = np.zeros(SHAPE, int)
    labels[:4, :8] = 1  # 32 bins, midway between 16 and 64
    labels[8:24, :16] = 2  # 256 bins: as 64
    cells = write_mappings(tmp_path / "barcode_mappings.parquet", labels, lattice)
    adata = cell_table(field, cells)
    errors = open_field(field).layers.errors
    assert errors is not None
    g = 5
    rate = cell_rates(adata, "GENE5")
    low, _ = cell_interval(adata, "GENE5")
    at = np.log(rate / (errors.mean[g] * np.array([32, 256])))
    of_8um, of_16um = (
        np.interp(at, np.log(errors.level[s, 0, 2]), errors.low[s, 0, 2]) for s in (2, 3)
    )
    np.testing.assert_allclose(low / rate, [(of_8um[0] + of_16um[0]) / 2, of_16um[1]], rtol=1e-5)


def test_bounds_are_those_of_the_whole_table_from_any_part_of_a_file(
    field: Path, lattice: Lattice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = write_mappings(tmp_path / "barcode_mappings.parquet", squares(6), lattice)
    whole = cell_interval(cell_table(field, cells), "GENE9")
    two = CellsConfig(genes="GENE2,GENE9")
    _, content = write_cells(field, cells, tmp_path / "two.h5ad", two)
    assert content.endswith("2 genes: 4 factors, expected UMIs and their variance")
    some = anndata.read_h5ad(tmp_path / "two.h5ad")
    np.testing.assert_array_equal(cell_interval(some, "GENE9"), whole)
    monkeypatch.setattr(table_module, "MOST_DENSE", 100)
    _, content = write_cells(field, cells, tmp_path / "c.h5ad")
    assert content == "160 cells × 30 genes: 4 factors"
    adata = anndata.read_h5ad(tmp_path / "c.h5ad")
    assert adata.uns["X"] == "absent"
    assert "variance" not in adata.layers
    part = adata[40:50, 5:20]
    np.testing.assert_array_equal(cell_interval(part, "GENE9"), np.array(whole)[:, 40:50])
    write_cells(field, cells, tmp_path / "c.zarr")
    stored = anndata.read_zarr(tmp_path / "c.zarr" / "tables" / "table")
    np.testing.assert_array_equal(cell_interval(stored, "GENE9"), whole)
    del stored.uns["interval"]["sd"]
    with pytest.raises(ConfigError, match=r"uns\['interval'\] is damaged \('sd'\)"):
        cell_interval(stored, "GENE9")
    del stored.uns["interval"]
    with pytest.raises(ConfigError, match="expected cells of a field of `vst denoise`"):
        cell_interval(stored, "GENE9")


def test_bounds_are_measurements_for_qupath(
    field: Path, lattice: Lattice, tmp_path: Path, vst: Callable[..., Answer]
) -> None:
    cells = write_mappings(tmp_path / "barcode_mappings.parquet", squares(8), lattice)
    out = tmp_path / "q.geojson"
    answer = vst("cells", field, "--cells", cells, "--out", out, "--genes", "GENE4")
    assert answer.code == 0, answer
    table = cell_table(field, cells)
    features = json.loads(out.read_text())["features"]
    for name, values in zip(("lower", "upper"), cell_interval(table, "GENE4"), strict=True):
        written = [f["properties"]["measurements"][f"GENE4: {name} bound"] for f in features]
        np.testing.assert_allclose(written, values, rtol=1e-6)
    written = [f["properties"]["measurements"]["Filled share"] for f in features]
    np.testing.assert_allclose(written, table.obs["filled"], rtol=1e-6)
