"""The Python interface for notebooks: genes by name, a plotted gene, rates of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_field import TinyField

import virchow_st
from virchow_st.errors import ConfigError
from virchow_st.predict.array import ImageRates
from virchow_st.run.panel import Panel


def panels(figure: Any) -> dict[str, Any]:
    """Axes with an image by their titles; the colour bar has none."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def text_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_a_run_is_drawn_as_predicted_and_observed(tiny_run: Path) -> None:
    import csv

    with open(tiny_run / "per_gene.csv") as f:
        row = next(r for r in csv.DictReader(f) if r["scale_um"] == "8")
    figure = virchow_st.plot_gene(tiny_run, row["symbol"])
    drawn = panels(figure)
    assert list(drawn) == ["H&E", f"predicted, PCC {float(row['pcc']):.2f}", "observed"]
    assert text_of(figure) == [row["symbol"], "patient T"]
    _, predicted, observed = (axes.images[0] for axes in drawn.values())
    assert predicted.get_clim() == observed.get_clim()
    shown = np.ma.masked_array(observed.get_array())
    store = virchow_st.open_store(tiny_run.parent / "T.vst")
    (gene,) = store.genes.indices(row["symbol"])
    counts = store[1].dense_counts([gene])[0].reshape(32, 4, 32, 4).sum(axis=(1, 3))
    whole = store[1].tissue_mask.reshape(32, 4, 32, 4).all(axis=(1, 3))
    np.testing.assert_array_equal(shown[:32, 32:].mask, ~whole)
    np.testing.assert_array_equal(shown[:32, 32:][whole], counts[whole])
    assert shown[32:, 32:].mask.all()  # no patch there


@pytest.mark.parametrize("scale_um", [2, 16])
def test_a_store_is_drawn_as_observed(tiny_run: Path, scale_um: int) -> None:
    path = tiny_run.parent / "T.vst"
    figure = virchow_st.plot_gene(virchow_st.open_store(path), "GENE1", scale_um)
    drawn = panels(figure)
    assert list(drawn) == ["H&E", "observed"]
    assert drawn["observed"].images[0].get_array().shape == (512 // scale_um, 512 // scale_um)
    assert f"UMIs per {scale_um} µm bin" in [axes.get_ylabel() for axes in figure.axes]
    again = virchow_st.plot_gene(str(path), "GENE1", scale_um)
    np.testing.assert_array_equal(
        drawn["observed"].images[0].get_array(), panels(again)["observed"].images[0].get_array()
    )


def test_a_notebook_shows_it_without_pyplot(tiny_run: Path) -> None:
    png = virchow_st.plot_gene(tiny_run.parent / "T.vst", "GENE1")._repr_png_()
    assert png.startswith(b"\x89PNG")


def test_rates_of_a_picture(tmp_path: Path) -> None:
    panel = Panel(("E1", "E2"), ("A", "B"))
    rates = np.arange(2 * 20 * 24, dtype=np.float32).reshape(2, 20, 24)
    rates[:, :, 20:] = np.nan
    mask = np.ones((20, 24), bool)
    mask[:4] = False
    result = ImageRates(panel, rates, mask, np.full((40, 48, 3), 200, np.uint8))
    np.testing.assert_array_equal(np.isnan(result["B"]), ~mask | np.isnan(rates[1]))
    assert result["E1"][5, 6] == rates[0, 5, 6]
    assert repr(result) == "ImageRates(2 genes, 20×24 bins of 2 µm)"
    drawn = panels(virchow_st.plot_gene(result, "B"))
    assert list(drawn) == ["H&E", "predicted"]
    values = np.ma.masked_array(drawn["predicted"].images[0].get_array())
    assert values.shape == (5, 6)
    np.testing.assert_array_equal(values.mask, np.isnan(result["B"])[::4, ::4])
    # 16 µm: the last square hangs over the edge, and is not whole
    coarse = panels(virchow_st.plot_gene(result, "B", 16))["predicted"].images[0].get_array()
    assert np.ma.masked_array(coarse).shape == (3, 3)
    with pytest.raises(ConfigError, match="panel: has no gene 'C'"):
        _ = result["C"]


@pytest.mark.parametrize("scale_um", [2, 8])
def test_a_field_is_drawn_as_predicted(tmp_path: Path, scale_um: int) -> None:
    tiny = TinyField()
    tiny.tissue = tiny.covered.copy()
    tiny.tissue[:100] = False
    path = tiny.write(tmp_path / "a.zarr")
    drawn = panels(virchow_st.plot_gene(path, "GENE5", scale_um))
    assert list(drawn) == ["H&E", "predicted"]
    values = np.ma.masked_array(drawn["predicted"].images[0].get_array())
    field = virchow_st.open_field(path)
    expected = field.gene("GENE5", scale_um)
    side = scale_um // 2
    whole = tiny.tissue.reshape(264 // side, side, 520 // side, side).all(axis=(1, 3))
    np.testing.assert_array_equal(values.mask, ~whole)
    np.testing.assert_array_equal(values[whole], expected[whole])
    (picture,) = drawn["H&E"].images
    assert tuple(picture.get_extent()) == (0, 1040, 528, 0)
    assert picture.get_array().shape == (528, 1040, 3)
    again = panels(virchow_st.plot_gene(field, "GENE5", scale_um))
    np.testing.assert_array_equal(again["predicted"].images[0].get_array(), values)


def test_what_cannot_be_drawn(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="scale_um: expected one of"):
        virchow_st.plot_gene(tiny_run, "GENE1", 3)
    with pytest.raises(ConfigError, match=r"has no gene 'GENE77'; did you mean"):
        virchow_st.plot_gene(tiny_run.parent / "T.vst", "GENE77")
    with pytest.raises(ConfigError, match="expected a store, or a run"):
        virchow_st.plot_gene(tiny_run / "none", "GENE1")


def test_genes_by_symbol_or_id(tiny_run: Path) -> None:
    genes = virchow_st.open_store(tiny_run.parent / "T.vst").genes
    assert genes.indices("GENE3", "ENSG00001").tolist() == [3, 1]
    with pytest.raises(ConfigError, match="is given twice"):
        genes.indices("GENE3", "ENSG00003")
    twins = Panel(("E1", "E2", "E3"), ("A", "A", "E3"))
    assert twins.index("E2") == 1
    assert twins.index("E3") == 2
    with pytest.raises(ConfigError, match="symbol 'A' belongs to E1, E2; give one of these"):
        twins.index("A")
