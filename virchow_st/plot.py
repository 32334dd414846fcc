"""Maps of one slide for a notebook, beside its H&E: a gene, or what denoised rates rest on.

`vst figures` draws figures for publication; this is for interactive use.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from virchow_st.errors import ConfigError
from virchow_st.field.read import Field, open_field
from virchow_st.field.write import SOURCE_NAMES
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.output.export.sources import Source, StoreSource, open_source
from virchow_st.output.figures.style import DPI, UNSCORED, WIDTH_IN, rate_colours, scale_bar, styled
from virchow_st.predict.array import ImageRates
from virchow_st.store.reader import Store
from virchow_st.types import BIN_UM, SCALES_UM, BoolArray, Float32Array, UInt8Array

if TYPE_CHECKING:
    from virchow_st.predict.load import Run

_TITLES = {"rates": "predicted", "counts": "observed"}
_HEAD_IN, _FOOT_IN, _GAP_IN, _BAR_IN = 0.42, 0.06, 0.08, 0.75
_SHOWN_DPI = 144
_STORED_UM = 1.0  # µm per pixel of the images of stores
_LONGEST_PX = 1600  # of the H&E; a panel shows fewer


class GeneFigure(Figure):
    """A figure that notebooks show without pyplot; ``savefig`` writes it."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=_SHOWN_DPI)
        return png.getvalue()


def plot_gene(
    source: Run | Store | ImageRates | Field | Path | str,
    gene: str,
    scale_um: int = 8,
    *,
    slide: str = "",
) -> Figure:
    """Draw one gene beside the H&E, in UMIs per bin of ``scale_um``, on one colour scale.

    Args:
        source: an evaluated run (its test slide: predicted and observed), a store (observed), a
            `Field` (predicted), the path of any of them, or the `ImageRates` of an image
            (predicted). Of a field, the whole slide is drawn and one gene at 2 µm held in memory.
        gene: symbol or id.
        scale_um: size of the bins shown: 2, 4, 8 or 16 µm.
        slide: which of a run's test slides, if it has several.

    Returns:
        A matplotlib figure. Bins that are not wholly tissue, or not predicted, are grey. If both
        maps are shown, the prediction's title gives Pearson's r over the bins shown.

    Raises:
        ConfigError, StoreError, FieldError: see `virchow_st.output.export.sources.open_source` and
            `virchow_st.open_field`; or the scale is not one of 2, 4, 8 and 16 µm.
    """
    if scale_um not in SCALES_UM:
        raise ConfigError(f"scale_um: expected one of {SCALES_UM}; got {scale_um}")
    if isinstance(source, ImageRates):
        rate = source.rates[source.panel.index(gene)]
        there = source.tissue_mask & ~np.isnan(rate)
        return _draw_maps(gene, "", source.image, {"rates": rate}, there, scale_um)
    if isinstance(source, Store):
        return _draw_source(StoreSource(source, gene), gene, scale_um)
    if isinstance(source, Field):
        return _draw_field(source, gene, scale_um)
    path = Path(source) if isinstance(source, str | Path) else source.path
    if (path / "zarr.json").is_file():
        return _draw_field(open_field(path), gene, scale_um)
    with open_source(path, gene, slide) as opened:
        return _draw_source(opened, gene, scale_um)


def _draw_field(field: Field, gene: str, scale_um: int) -> Figure:
    """Read at the scale itself, which of 8 and 16 µm is a sixteenth of a whole slide's bins."""
    image, um_per_px = _picture(field)
    whole = pool_mask(field.tissue_mask & field.covered, scale_um // BIN_UM)
    rates = np.ma.MaskedArray(field.gene(gene, scale_um), ~whole)
    return _draw_gene(gene, "", image, {"rates": rates}, field.shape, scale_um, um_per_px)


def plot_sources(field: Field | Path | str, scale_um: int = 8) -> Figure:
    """Draw what the rates of a denoised field rest on: own counts, neighbours' counts, the image.

    Args:
        field: as `vst denoise` writes it, or its path.
        scale_um: size of the bins shown: 2 or 8 µm.

    Returns:
        A matplotlib figure: the H&E, and the three shares of `Field.sources` on one colour scale,
        each with its mean over the tissue. Bins without a rate are grey.

    Raises:
        ConfigError, FieldError: see `Field.sources` and `virchow_st.open_field`.
    """
    opened = field if isinstance(field, Field) else open_field(field)
    shares = np.ma.masked_invalid(opened.sources(scale_um))
    shown = {
        f"{name}: {part.mean():.0%}": part for name, part in zip(SOURCE_NAMES, shares, strict=True)
    }
    image, um_per_px = _picture(opened)
    title = f"What rates of {scale_um} µm bins rest on"
    label = "share", (0.0, 1.0), "normal"
    return _draw(title, "", image, shown, opened.shape, scale_um, um_per_px, *label)


def _picture(field: Field) -> tuple[UInt8Array, float]:
    found = field.picture(_LONGEST_PX)
    return found or (np.full((1, 1, 3), 255, np.uint8), float(BIN_UM))


def _draw_source(source: Source, gene: str, scale_um: int) -> Figure:
    rows, cols = (slice(0, n) for n in source.tissue_mask.shape)
    maps = {kind: source.read(kind, rows, cols)[0] for kind in source.kinds}
    patient = f"patient {source.manifest['patient']}"
    image = source.read_image(rows)
    return _draw_maps(gene, patient, image, maps, source.tissue_mask, scale_um)


def _draw_maps(
    gene: str,
    subject: str,
    image: UInt8Array,
    maps: dict[str, Float32Array],
    mask: BoolArray,
    scale_um: int,
) -> Figure:
    """H&E (2R, 2C, 3) and maps (R, C) of 2 µm bins."""
    factor = scale_um // BIN_UM
    shown = {kind: _pooled(values, mask, factor) for kind, values in maps.items()}
    shape = mask.shape[0], mask.shape[1]
    return _draw_gene(gene, subject, image, shown, shape, scale_um, _STORED_UM)


def _draw_gene(
    gene: str,
    subject: str,
    image: UInt8Array,
    shown: dict[str, np.ma.MaskedArray[Any, Any]],
    shape: tuple[int, int],
    scale_um: int,
    um_per_px: float,
) -> Figure:
    titled = {_title(kind, shown): values for kind, values in shown.items()}
    bar = f"UMIs per {scale_um} µm bin", (0.0, _limit(shown)), "italic"
    return _draw(gene, subject, image, titled, shape, scale_um, um_per_px, *bar)


@styled
def _draw(
    title: str,
    subject: str,
    image: UInt8Array,
    shown: dict[str, np.ma.MaskedArray[Any, Any]],
    shape: tuple[int, int],
    scale_um: int,
    um_per_px: float,
    label: str,
    limits: tuple[float, float],
    title_style: str,
) -> Figure:
    """H&E (H, W, 3) and maps of bins of ``scale_um`` over (R, C) bins of 2 µm, side by side.

    Args:
        title, title_style: of the figure, and the style of its font.
        subject: written behind the title.
        shown: title of each map → its values.
        label, limits: of the colour scale.
    """
    height_um, width_um = (BIN_UM * n for n in shape)
    n_panels = 1 + len(shown)
    panel_in = (WIDTH_IN - _BAR_IN - _GAP_IN * (n_panels - 1)) / n_panels
    panel_in = min(panel_in, 3.4 * width_um / height_um)
    height_in = panel_in * height_um / width_um
    width_in = n_panels * panel_in + (n_panels - 1) * _GAP_IN + _BAR_IN
    size = width_in, height_in + _HEAD_IN + _FOOT_IN
    figure = GeneFigure(figsize=size, dpi=DPI)
    FigureCanvasAgg(figure)

    def place(left: float, width: float) -> Any:
        bottom, top = _FOOT_IN / size[1], height_in / size[1]
        return figure.add_axes((left / size[0], bottom, width / size[0], top))

    axes = [place(i * (panel_in + _GAP_IN), panel_in) for i in range(n_panels)]
    extent = (0.0, float(width_um), float(height_um), 0.0)
    step = max(1, -(-max(image.shape[:2]) // _LONGEST_PX))
    far_y, far_x = (um_per_px * n for n in image.shape[:2])
    axes[0].imshow(image[::step, ::step], extent=(0, far_x, far_y, 0))
    axes[0].set_title("H&E", loc="left")
    scale_bar(axes[0], extent)
    for panel, (name, values) in zip(axes[1:], shown.items(), strict=True):
        far = scale_um * values.shape[1], scale_um * values.shape[0]
        drawn = panel.imshow(
            values, extent=(0, far[0], far[1], 0), cmap=rate_colours(),
            vmin=limits[0], vmax=limits[1],
            interpolation="antialiased", interpolation_stage="data",
        )  # fmt: skip
        panel.set_title(name, loc="left")
        panel.set_facecolor(UNSCORED)
    for panel in axes:
        panel.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    beyond = any(values.count() and values.max() > limits[1] for values in shown.values())
    bar = figure.colorbar(
        drawn, cax=place(width_in - _BAR_IN + _GAP_IN, 0.1),
        extend="max" if beyond else "neither", extendfrac=0.02,
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.set_label(label)
    top = 1 - 0.05 / size[1]
    head = figure.text(0, top, title, va="top", fontsize=10, fontstyle=title_style)
    figure.draw_without_rendering()
    right = head.get_window_extent().x1 / figure.bbox.width
    figure.text(right + 0.08 / size[0], top, subject, va="top", fontsize=8)
    return figure


def _pooled(values: Float32Array, mask: BoolArray, factor: int) -> np.ma.MaskedArray[Any, Any]:
    """Sums over squares of ``factor`` bins; a sum is masked unless every bin is in ``mask``."""
    short = [(0, -n % factor) for n in mask.shape]
    whole = pool_mask(np.pad(mask, short), factor)
    sums = sum_pool(np.pad(np.where(mask, values, 0), short)[None], factor)[0]
    return np.ma.MaskedArray(sums, ~whole)


def _limit(shown: dict[str, np.ma.MaskedArray[Any, Any]]) -> float:
    """Upper end of the colour scale: the largest 99.5th percentile, robust against single bins."""
    tops = [float(np.percentile(v.compressed(), 99.5)) for v in shown.values() if v.count()]
    return max(tops, default=0.0) or 1.0


def _title(kind: str, shown: dict[str, np.ma.MaskedArray[Any, Any]]) -> str:
    if kind != "rates" or "counts" not in shown:
        return _TITLES[kind]
    x, y = (shown[k].compressed() for k in ("rates", "counts"))
    if len(x) < 2 or not (x.std() and y.std()):
        return _TITLES[kind]
    return f"{_TITLES[kind]}, PCC {np.corrcoef(x, y)[0, 1]:.2f}"
