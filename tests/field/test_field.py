"""A field is the product of its factors and loadings, by gene, window, scale and label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from tiny_field import CORNER_UM, PROVENANCE, TinyField

import virchow_st
from virchow_st.errors import ConfigError, FieldError
from virchow_st.field.loadings import Loadings
from virchow_st.field.write import write_field
from virchow_st.run.leading_genes import leading_genes
from virchow_st.run.panel import Panel


@pytest.fixture(scope="module")
def tiny() -> TinyField:
    return TinyField()


@pytest.fixture(scope="module")
def field(tiny: TinyField, tmp_path_factory: pytest.TempPathFactory) -> virchow_st.Field:
    path = tmp_path_factory.mktemp("field") / "tiny.zarr"
    assert tiny.write(path) == path
    assert [p.name for p in path.parent.iterdir()] == ["tiny.zarr"]
    return virchow_st.open_field(path)


def pooled(values: np.ndarray, factor: int) -> np.ndarray:
    *first, rows, cols = values.shape
    shape = *first, rows // factor, factor, cols // factor, factor
    return values.reshape(shape).sum(axis=(-3, -1))


def test_what_it_says_of_itself(tiny: TinyField, field: virchow_st.Field) -> None:
    assert repr(field) == "Field(30 genes by 4 factors, 264×520 bins of 2 µm)"
    assert (field.genes, field.symbols) == (tiny.genes.ids, tiny.genes.symbols)
    assert field.labels == tiny.genes.labels
    assert field.provenance == PROVENANCE
    assert field.corner_um == CORNER_UM
    assert field.shape == tiny.shape
    assert field.bin_um == 2
    assert not field.is_direct
    assert field.factor_names == tiny.loadings.factor_names
    np.testing.assert_array_equal(field.loadings, tiny.weights)
    np.testing.assert_array_equal(field.covered, tiny.covered)
    np.testing.assert_array_equal(field.tissue_mask, tiny.tissue)
    picture = field.picture(2000)
    assert picture is not None
    np.testing.assert_array_equal(picture[0], tiny.picture)
    assert picture[1] == 1.0


@pytest.mark.parametrize("scale_um", [2, 4, 8, 16])
@pytest.mark.parametrize("gene", [0, 2, 17])
def test_a_gene_is_the_product(
    tiny: TinyField, field: virchow_st.Field, gene: int, scale_um: int
) -> None:
    actual = field.gene(tiny.genes.ids[gene], scale_um)
    expected = pooled(tiny.rates[gene], scale_um // 2)
    assert actual.dtype == np.float32
    # At 2 and 4 µm the factors are exact; the sums at 8 µm are rounded to ten binary digits.
    np.testing.assert_allclose(actual, expected, rtol=1e-6 if scale_um < 8 else 5e-4)


def test_sums_at_8_um_are_those_of_2_um(tiny: TinyField, field: virchow_st.Field) -> None:
    expected = pooled(tiny.maps.astype(np.float64), 4)
    np.testing.assert_allclose(field.factors(scale_um=8), expected, rtol=2**-11)
    np.testing.assert_array_equal(field.factors(), tiny.maps)


@pytest.mark.parametrize(
    ("row", "col", "height", "width"),
    [(0, 0, 5, 7), (250, 250, 14, 14), (3, 5, 261, 515), (255, 511, 1, 2), (260, 510, 20, 30),
     (-5, -9, 20, 30), (300, 600, 4, 4), (10, 10, 0, 3)],
)  # fmt: skip
@pytest.mark.parametrize("scale_um", [2, 16])
def test_windows(
    tiny: TinyField, field: virchow_st.Field,
    row: int, col: int, height: int, width: int, scale_um: int,
) -> None:  # fmt: skip
    """Over borders of chunks and of the field; beyond it there is nothing."""
    every = pooled(tiny.rates, scale_um // 2)
    padded = np.pad(every, ((0, 0), (700, 700), (700, 700)), constant_values=np.nan)
    at = np.s_[700 + row : 700 + row + height, 700 + col : 700 + col + width]
    names = [tiny.genes.ids[7], "GENE3", "GENE5"]
    rtol = 1e-6 if scale_um == 2 else 5e-4
    actual = field.window(row, col, height, width, names, scale_um)
    np.testing.assert_allclose(actual, padded[[7, 3, 5], *at], rtol=rtol)
    every_gene = field.window(row, col, height, width, scale_um=scale_um)
    np.testing.assert_allclose(every_gene, padded[:, *at], rtol=rtol)
    factors = np.pad(
        pooled(tiny.maps, scale_um // 2), ((0, 0), (700, 700), (700, 700)), constant_values=np.nan
    )
    found = field.factors(row, col, height, width, scale_um)
    np.testing.assert_allclose(found, factors[:, *at], rtol=rtol)


@pytest.mark.parametrize("bytes_held", [1, 64 << 20])
def test_pieces_do_not_matter(
    tiny: TinyField, field: virchow_st.Field, monkeypatch: pytest.MonkeyPatch, bytes_held: int
) -> None:
    monkeypatch.setattr("virchow_st.field.pieces._READ_BYTES", bytes_held)
    np.testing.assert_allclose(field.gene("GENE7"), tiny.rates[7], rtol=1e-6)


@pytest.mark.parametrize("side", [1, 4])
@pytest.mark.parametrize("lazy", [False, True])
def test_sums_over_labels_are_dense_sums(
    tiny: TinyField, field: virchow_st.Field, tmp_path: Path, side: int, lazy: bool
) -> None:
    rng = np.random.default_rng(1)
    shape = tuple(n // side for n in tiny.shape)
    labels = rng.integers(0, 40, shape).astype(np.int32)
    labels[labels == 9] = 0  # a label that no bin has
    rates = np.nan_to_num(pooled(tiny.rates, side))
    expected = np.stack([rates[:, labels == label].sum(axis=1) for label in range(1, 40)])
    given = labels
    if lazy:
        given = zarr.create_array(tmp_path / "labels", data=labels)
    actual = field.sum_over(given)
    assert actual.shape == (39, 30)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6 if side == 1 else 5e-4)
    assert not actual[8].any()
    some = field.sum_over(given, ["GENE5", "ENSG00002"])
    np.testing.assert_allclose(some, expected[:, [5, 2]], rtol=1e-6 if side == 1 else 5e-4)
    np.testing.assert_allclose(field.factor_sums(given) @ tiny.weights.T, actual, rtol=1e-6)


def test_genes_held_directly(tmp_path: Path) -> None:
    tiny = TinyField(direct=True, n_genes=5)
    tiny.maps -= np.float32(0.5)  # scores may be below zero
    field = virchow_st.open_field(tiny.write(tmp_path / "a.zarr", picture=False))
    assert repr(field) == "Field(5 genes, 264×520 bins of 2 µm)"
    assert field.is_direct
    assert field.factor_names == (
        "GENE0 (ENSG00000)",
        "GENE1",
        "GENE2",
        "GENE3",
        "GENE0 (ENSG00004)",
    )
    np.testing.assert_array_equal(field.loadings, np.eye(5))
    order = ["GENE3", "ENSG00004", "ENSG00000", "GENE2", "GENE1"]  # all, in another order
    actual = field.window(0, 0, *tiny.shape, order)
    np.testing.assert_array_equal(actual, tiny.maps[[3, 4, 0, 2, 1]])
    np.testing.assert_array_equal(field.gene("GENE2"), tiny.maps[2])
    labels = np.ones(tiny.shape, np.uint8)
    expected = np.nansum(tiny.maps.astype(float), axis=(1, 2))
    np.testing.assert_allclose(field.sum_over(labels)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(field.sum_over(labels, order)[0, 0], expected[3], rtol=1e-6)
    assert field.picture() is None


def test_what_cannot_be_asked(field: virchow_st.Field) -> None:
    with pytest.raises(ConfigError, match=r"tiny.zarr: has no gene 'GENE77'; did you mean"):
        field.gene("GENE77")
    with pytest.raises(ConfigError, match="symbol 'GENE0' belongs to ENSG00000, ENSG00029"):
        field.gene("GENE0")
    with pytest.raises(ConfigError, match=r"expected a list of names; .*write \['GENE1'\]"):
        field.window(0, 0, 1, 1, "GENE1")
    with pytest.raises(ConfigError, match=r"scale_um: expected one of \(2, 4, 8, 16\); got 3"):
        field.gene("GENE1", 3)
    for wrong in (np.zeros((5, 5), int), np.zeros((264, 520))):
        with pytest.raises(ConfigError, match=r"integers on 264×520 \(2 µm\) or 66×130 \(8 µm\)"):
            field.sum_over(wrong)
    with pytest.raises(ConfigError, match="labels: expected 0 or more; got -3"):
        field.sum_over(np.full((264, 520), -3))
    with pytest.raises(ConfigError, match="labels: expected numbers from 1 on, .* number them"):
        field.sum_over(np.full((264, 520), 1 << 40))
    assert field.sum_over(np.zeros((264, 520), np.uint8)).shape == (0, 30)


# --- what is written ----------------------------------------------------------------------------


def test_blocks_that_are_no_part_of_a_field(tmp_path: Path) -> None:
    tiny = TinyField()
    _, _, maps = next(tiny.blocks())

    def write(maps: np.ndarray) -> None:
        write_field(tmp_path / "a.zarr", [(0, 0, maps)], tiny.loadings, tiny.tissue, {})

    row, col = np.argwhere(tiny.covered)[0]
    for value in (np.nan, np.inf, -0.1):
        wrong = maps.copy()
        wrong[1, row, col] = value
        with pytest.raises(FieldError, match=r"^2: .*: expected .*; got"):
            write(wrong)
    row, col = np.argwhere(~tiny.covered)[0]
    wrong = maps.copy()
    wrong[1, row, col] = 1
    with pytest.raises(FieldError, match=r"^2: .*: expected NaN in the bins where another map is"):
        write(wrong)
    with pytest.raises(ValueError, match="expected 4 maps; got 3"):
        write(maps[:3])
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_there_is_kept(tmp_path: Path) -> None:
    tiny = TinyField(shape=(8, 8))
    path = tiny.write(tmp_path / "a.zarr")
    before = sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*"))
    with pytest.raises(ConfigError, match="already there"):
        tiny.write(path)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*"))


def test_an_empty_field(tmp_path: Path) -> None:
    tiny = TinyField(shape=(264, 264))
    path = tmp_path / "a.zarr"
    write_field(path, [], tiny.loadings, tiny.tissue, PROVENANCE)
    field = virchow_st.open_field(path)
    assert np.isnan(field.gene("GENE4", 8)).all()
    assert not field.sum_over(np.ones(tiny.shape, int)).any()


def test_loadings_that_are_none() -> None:
    genes = Panel(("a", "b"), ("A", "B"))
    for wrong in (np.ones((3, 2)), np.ones((2, 0)), np.ones(2), [[1, np.nan], [1, 1]],
                  [[-1, 1], [1, 1]]):  # fmt: skip
        with pytest.raises(ValueError, match="loadings: expected"):
            Loadings(genes, np.asarray(wrong, np.float32))


def test_leading_genes_are_those_of_the_formula() -> None:
    """Against the definition, factor by factor and with every other factor in turn."""
    rng = np.random.default_rng(2)
    values = rng.gamma(0.4, 1, (60, 5)) + 1e-3
    theta = values / values.sum(axis=0)
    found = leading_genes(values.astype(np.float32), 8)
    for k in range(5):
        weight = np.zeros(60)
        for g in np.flatnonzero(theta.argmax(axis=1) == k):
            weight[g] = min(
                theta[g, k] * np.log(theta[g, k] / theta[g, other]) + theta[g, other] - theta[g, k]
                for other in range(5)
                if other != k
            )
        led = np.flatnonzero(weight)
        expected = led[np.argsort(-weight[led])][:8]
        assert found[k][: len(expected)].tolist() == expected.tolist()


def test_a_factor_that_no_gene_has() -> None:
    loadings = Loadings(Panel(("a", "b"), ("A", "B")), np.array([[1, 0], [2, 0]], np.float32))
    assert loadings.factor_names == ("1: B, A", "2: ")
    one = Loadings(Panel(("a", "b"), ("A", "B")), np.array([[1], [2]], np.float32))
    assert one.factor_names == ("1: B, A",)
