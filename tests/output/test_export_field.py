"""``vst export FIELD``: genes of a field as images and as files."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cli_place import Vst
from tiny_field import CORNER_UM, PROVENANCE, TinyField

import virchow_st
from virchow_st.field.interval import RateErrors
from virchow_st.field.write import write_field

NAMES = "GENE5,ENSG00000"


@pytest.fixture(scope="module")
def tiny() -> TinyField:
    return TinyField()


@pytest.fixture(scope="module")
def path(tiny: TinyField, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("field") / "slide.zarr")


@pytest.mark.parametrize("flavour", ["spatialdata", "ome-zarr"])
def test_genes_become_images_of_a_field_that_holds_them(
    vst: Vst, tiny: TinyField, path: Path, tmp_path: Path, flavour: str
) -> None:
    out = tmp_path / "out.zarr"
    answer = vst("export", path, "--out", out, "--genes", NAMES, "--format", flavour)
    assert answer.code == 0, answer.err
    assert answer.out == f"{out}: 264×520 bins, 2 genes as images\n"
    field = virchow_st.open_field(out)
    assert field.is_direct
    assert field.genes == ("ENSG00005", "ENSG00000")
    np.testing.assert_allclose(field.gene("GENE5"), tiny.rates[5], rtol=6.2e-5)
    np.testing.assert_allclose(field.gene("ENSG00000"), tiny.rates[0], rtol=6.2e-5)
    at_8um = tiny.rates[5].reshape(66, 4, 130, 4).sum(axis=(1, 3))
    np.testing.assert_allclose(field.gene("GENE5", 8), at_8um, rtol=1e-4)
    np.testing.assert_array_equal(field.tissue_mask, tiny.tissue)
    assert field.corner_um == CORNER_UM
    picture = field.picture()
    assert picture is not None
    np.testing.assert_array_equal(picture[0], tiny.picture)
    about = field.provenance["field"]
    assert about == {"path": "slide.zarr", "provenance": PROVENANCE}
    if flavour == "spatialdata":
        assert field.layers.um_to_px is not None
        np.testing.assert_allclose(field.layers.um_to_px, [[0, 4, 7], [4, 0, 9.0]], atol=1e-9)


def test_npz(vst: Vst, tiny: TinyField, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    answer = vst("export", path, "--out", out, "--genes", NAMES, "--format", "npz", "--keep-paths")
    assert answer.code == 0, answer.err
    cells = tiny.tissue.reshape(66, 4, 130, 4).all(axis=(1, 3))
    with np.load(out) as found:
        assert list(found["gene_id"]) == ["ENSG00005", "ENSG00000"]
        at_8um = tiny.rates[[5, 0]].reshape(2, 66, 4, 130, 4).sum(axis=(2, 4))
        np.testing.assert_allclose(found["rates_8um"], at_8um, rtol=1e-4)
        np.testing.assert_array_equal(found["tissue"], cells)
        assert json.loads(str(found["virchow_st"]))["field"]["path"] == str(path)


@pytest.mark.skipif(find_spec("anndata") is None, reason="pip install 'virchow_st[spatial]'")
def test_anndata_lies_in_the_frame_of_the_field(vst: Vst, tmp_path: Path) -> None:
    import anndata

    tiny = TinyField()
    tiny.tissue = tiny.covered.copy()
    path = tiny.write(tmp_path / "slide.zarr")
    out = tmp_path / "out.h5ad"
    answer = vst("export", path, "--out", out, "--genes", "GENE5", "--format", "h5ad")
    assert answer.code == 0, answer.err
    table = anndata.read_h5ad(out)
    row, col = np.nonzero(tiny.covered.reshape(66, 4, 130, 4).all(axis=(1, 3)))
    at_8um = tiny.rates[5].reshape(66, 4, 130, 4).sum(axis=(1, 3))
    np.testing.assert_allclose(table.X[:, 0], at_8um[row, col], rtol=1e-4)
    xy = np.stack([col, row], axis=1) * 8 + 4 + np.array(CORNER_UM)
    np.testing.assert_array_equal(table.obsm["spatial"], xy)
    assert table.obs_names[0] == f"s_008um_{row[0] + 2:05d}_{col[0] + 5:05d}-1"
    of_slide = table.uns["spatial"]["slide"]
    scale = of_slide["scalefactors"]["tissue_hires_scalef"]
    x, y = CORNER_UM  # where the picture begins, in the frame of obsm["spatial"]
    hires = of_slide["images"]["hires"]
    np.testing.assert_array_equal(hires[int(y * scale), int(x * scale)], tiny.picture[0, 0])


def test_what_is_refused(vst: Vst, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    for arguments, words in (
        ([], "expected the genes to write; a field by factors has 30"),
        (["--genes", "GENE77"], "has no gene 'GENE77'"),
        (["--genes", "GENE5", "--slide", "S"], "is a field, of one slide"),
    ):
        answer = vst("export", path, "--out", out, *arguments)
        assert answer.code == 2
        assert words in answer.err
    assert not list(tmp_path.iterdir())


def test_all_genes_of_a_field_that_holds_them(vst: Vst, tmp_path: Path) -> None:
    tiny = TinyField(direct=True, n_genes=3, shape=(16, 24))
    path = tiny.write(tmp_path / "a.zarr", picture=False)
    answer = vst("export", path, "--out", tmp_path / "b.zarr")
    assert answer.code == 0, answer.err
    np.testing.assert_array_equal(virchow_st.open_field(tmp_path / "b.zarr").factors(), tiny.maps)


def errors_of(n_genes: int) -> RateErrors:
    """Bounds of half and twice the rate, three times where bins were filled; two groups."""
    tables = {name: np.ones((4, 2, 2, 2)) for name in ("level", "low", "high", "sd")}
    tables["level"][..., 0] = 0.5
    tables["low"] *= 0.5
    tables["high"] *= 2.0
    tables["high"][:, 1] = 3.0
    tables["sd"][:, :, 1] = 0.25  # of the second group
    return RateErrors((2, 4, 8, 16), np.arange(n_genes) % 2, np.full(n_genes, 1.0), **tables)


def test_errors_and_failed_bins_go_with_the_genes(vst: Vst, tmp_path: Path) -> None:
    tiny = TinyField()
    path, failed = tmp_path / "slide.zarr", np.zeros(tiny.shape, bool)
    failed[6:8, 4:8] = True
    write_field(
        path, tiny.blocks(), tiny.loadings, tiny.tissue, PROVENANCE, failed=failed,
        errors=errors_of(tiny.n_genes),
    )  # fmt: skip
    whole, out = virchow_st.open_field(path), tmp_path / "out.zarr"
    assert vst("export", path, "--out", out, "--genes", NAMES).code == 0
    field = virchow_st.open_field(out)
    np.testing.assert_array_equal(field.failed, failed)
    for gene in field.genes:
        for mine, theirs in zip(field.interval(gene), whole.interval(gene), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3)
        np.testing.assert_allclose(field.spread(gene, 8), whole.spread(gene, 8), rtol=1e-3)
    answer = vst("export", path, "--out", tmp_path / "out.npz", "--genes", NAMES,
                 "--format", "npz")  # fmt: skip
    assert answer.code == 0, answer.err
    with np.load(tmp_path / "out.npz") as found:
        low, high = whole.interval("GENE5", 8)
        np.testing.assert_allclose(found["low_8um"][0], low, rtol=1e-3)
        np.testing.assert_allclose(found["high_8um"][0], high, rtol=1e-3)
        np.testing.assert_allclose(found["spread_8um"][0], whole.spread("GENE5", 8), rtol=1e-3)
        assert found["filled"][1, 1] == 0.5
        assert found["filled"].sum() == 0.5


@pytest.mark.skipif(find_spec("anndata") is None, reason="pip install 'virchow_st[spatial]'")
def test_anndata_has_layers_of_the_errors(vst: Vst, tmp_path: Path) -> None:
    import anndata

    tiny = TinyField()
    tiny.tissue, failed = tiny.covered.copy(), np.zeros(tiny.shape, bool)
    failed[::8] = True
    path, out = tmp_path / "slide.zarr", tmp_path / "out.h5ad"
    write_field(
        path, tiny.blocks(), tiny.loadings, tiny.tissue, PROVENANCE, failed=failed,
        errors=errors_of(tiny.n_genes),
    )  # fmt: skip
    assert vst("export", path, "--out", out, "--genes", NAMES, "--format", "h5ad").code == 0
    table = anndata.read_h5ad(out)
    assert set(table.layers) == {"low", "high", "spread"}
    was_filled = table.obs["filled"].to_numpy() > 0
    assert 0 < was_filled.mean() < 1
    np.testing.assert_allclose(table.layers["low"], 0.5 * table.X, rtol=1e-5)
    np.testing.assert_allclose(table.layers["high"][was_filled], 3 * table.X[was_filled], rtol=1e-5)
    np.testing.assert_allclose(table.layers["high"][~was_filled], 2 * table.X[~was_filled],
                               rtol=1e-5)  # fmt: skip
    np.testing.assert_allclose(table.layers["spread"][:, 0], 0.25 * table.X[:, 0], rtol=1e-5)
