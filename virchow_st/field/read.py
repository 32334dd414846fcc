"""Opens a rate field: lazy products of factors and loadings, by gene, window and label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.field.layers import Layers, open_layers
from virchow_st.field.loadings import Loadings
from virchow_st.field.pieces import cuts, pieces
from virchow_st.store.genes import find_named, named_places
from virchow_st.types import (
    BIN_UM,
    CELL_BINS,
    Array,
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    UInt8Array,
)

_CELL_UM = BIN_UM * CELL_BINS


class Field:
    """A rate field on disk: expected UMIs of every gene in every 2 µm bin of a slide.

    ``λ_g(x) = Σ_k W[g, k] · h_k(x)``. Nothing but the loadings is held in memory; each call reads
    the factors of the area that it is asked for, piece by piece, and multiplies. Rows run down and
    columns to the right, from the field's top left corner.

    Attributes:
        path: of the Zarr folder.
        shape: (R, C), rows and columns of 2 µm bins.
        bin_um: side of a bin, 2 µm.
        corner_um: ``(x, y)`` of the field's top left corner, in the coordinate system ``global``.
        provenance: what the field was made from, as the writer recorded it.
        layers: the arrays on disk, for the package's own use.
    """

    bin_um = BIN_UM

    def __init__(self, path: Path, layers: Layers) -> None:
        self.path = path
        self.shape = layers.shape
        self.corner_um = layers.corner_um
        self.provenance: dict[str, Any] = layers.provenance
        self.layers = layers

    # --- what it holds ------------------------------------------------------------------------

    @property
    def genes(self) -> tuple[str, ...]:
        """Ids of the G genes."""
        return self._loadings.genes.ids

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols of the G genes."""
        return self._loadings.genes.symbols

    @property
    def labels(self) -> list[str]:
        """What each gene is called: its symbol, with the id where two genes share a symbol."""
        return self._loadings.labels

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the K factors: number and leading genes, or the gene where `is_direct`."""
        return self.layers.channels

    @property
    def leading_genes(self) -> list[list[str]]:
        """Labels of up to ten genes that distinguish each factor, see docs/field-format.md."""
        return self._loadings.leading

    @property
    def loadings(self) -> Float32Array:
        """(G, K) float32 loadings W; the identity where `is_direct`."""
        values = self._loadings.values
        return np.eye(len(self.genes), dtype=np.float32) if values is None else values

    @property
    def is_direct(self) -> bool:
        """Whether the maps are the genes' rates themselves, K = G."""
        return self._loadings.is_direct

    @cached_property
    def tissue_mask(self) -> BoolArray:
        """(R, C) bool, True = tissue."""
        mask = self.layers.read_labels(self.layers.tissue)
        factor = self.shape[0] // mask.shape[0]
        return mask.repeat(factor, axis=0).repeat(factor, axis=1)

    @cached_property
    def covered(self) -> BoolArray:
        """(R, C) bool, True where the field has values."""
        return self.layers.read_labels(self.layers.covered)

    @cached_property
    def failed(self) -> BoolArray:
        """(R, C) bool, True in tissue bins without counts, whose rates were filled in."""
        if self.layers.failed is None:
            return np.zeros(self.shape, bool)
        return self.layers.read_labels(self.layers.failed)

    def __repr__(self) -> str:
        rows, cols = self.shape
        by = "" if self.is_direct else f" by {len(self.factor_names)} factors"
        return f"Field({len(self.genes):,} genes{by}, {rows}×{cols} bins of {BIN_UM} µm)"

    # --- rates --------------------------------------------------------------------------------

    def gene(self, name: str, scale_um: int = BIN_UM) -> Float32Array:
        """The rates of one gene over the whole field.

        Args:
            name: symbol or id.
            scale_um: side of the bins returned: 2, 4, 8 or 16 µm.

        Returns:
            (rows, columns) float32, expected UMIs per bin of ``scale_um``; NaN where the field has
            no values.

        Raises:
            ConfigError: no such gene, or no such scale.
            FieldError: the field is damaged.

        Example:
            >>> open_field("slide.zarr").gene("PIGR", scale_um=8).shape  # doctest: +SKIP
            (837, 837)
        """
        rows, cols = self.layers.size(scale_um)
        return self.window(0, 0, rows, cols, [name], scale_um)[0]

    def interval(self, name: str, scale_um: int = BIN_UM) -> tuple[Float32Array, Float32Array]:
        """Bounds between which the true rate of a gene lies in 90 % of the bins.

        Of a field of `vst denoise`; docs/denoise.md says how they are found. The share is over
        bins and genes of similar abundance, not of every gene by itself.

        Args:
            name: symbol or id.
            scale_um: side of the bins returned: 2, 4, 8 or 16 µm.

        Returns:
            Lower and upper bound, (rows, columns) float32, UMIs per bin; NaN where the field has no
            values.

        Raises:
            ConfigError: no such gene or scale, or a field whose errors were not measured.
            FieldError: the field is damaged.

        Example:
            >>> low, high = field.interval("PIGR", scale_um=8)  # doctest: +SKIP
        """
        rate, low, high, _ = self._errors_of(name, scale_um)
        return rate * low, rate * high

    def spread(self, name: str, scale_um: int = BIN_UM) -> Float32Array:
        """Standard deviation of the true rate of a gene around the field's; see `interval`."""
        rate, _, _, sd = self._errors_of(name, scale_um)
        return rate * sd

    def sources(self, scale_um: int = _CELL_UM) -> Float32Array:
        """What the rate of each bin rests on: its own counts, its neighbours', the image.

        Of a field of `vst denoise`; `virchow_st.denoise.sources` defines the shares.

        Args:
            scale_um: side of the bins returned: 2 or 8 µm.

        Returns:
            (3, rows, columns) float32, shares of the own counts, of the neighbours' and of the
            image, whose sum is 1; NaN outside tissue and where the field has no values.

        Raises:
            ConfigError: another scale, or a field of which this is not known.
            FieldError: the field is damaged.

        Example:
            >>> own, neighbours, image = field.sources(scale_um=8)  # doctest: +SKIP
        """
        sources = self.layers.sources
        if not sources:
            raise ConfigError(
                f"{self.path}: expected a field with shares of counts and image; found none; "
                "`vst denoise` of this version writes them"
            )
        if scale_um not in sources:
            raise ConfigError(f"scale_um: expected one of {tuple(sources)}; got {scale_um}")
        return self.layers.read_sources(scale_um)

    def _errors_of(
        self, name: str, scale_um: int
    ) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array]:
        errors = self.layers.errors
        if errors is None:
            raise ConfigError(
                f"{self.path}: expected a field with errors of its rates; found none; "
                "`vst denoise` writes them"
            )
        rate = self.gene(name, scale_um)
        factor = scale_um // BIN_UM
        filled = self.failed
        if factor > 1:
            rows, cols = rate.shape
            parts = filled.reshape(rows, factor, cols, factor)
            filled = np.asarray(parts.any(axis=(1, 3)))
        (place,) = self.index([name])
        return rate, *errors.ratios(int(place), rate, scale_um, filled)

    def window(
        self,
        row: int,
        col: int,
        height: int,
        width: int,
        genes: Sequence[str] | None = None,
        scale_um: int = BIN_UM,
    ) -> Float32Array:
        """The rates of some genes in a rectangle.

        Args:
            row, col: first bin, counted in bins of ``scale_um``; the window may reach beyond the
                field.
            height, width: in bins of ``scale_um``.
            genes: n symbols or ids; every gene if None, which takes 4 bytes per gene and bin.
            scale_um: side of the bins: 2, 4, 8 or 16 µm.

        Returns:
            (n, height, width) float32, expected UMIs per bin; NaN where the field has no values
            and beyond it.

        Raises:
            ConfigError: no such gene, or no such scale.
            FieldError: the field is damaged.

        Example:
            >>> field.window(0, 64, 32, 32, ["PIGR", "EPCAM"]).shape  # doctest: +SKIP
            (2, 32, 32)
        """
        index = self.index(genes)
        factors, weights = self._loadings.of(index)
        found = np.full((len(index), height, width), np.nan, np.float32)
        for at_row, at_col, maps in pieces(
            self.layers, factors, (row, col, height, width), scale_um
        ):
            _, h, w = maps.shape
            product = maps if weights is None else _product(weights, maps)
            found[:, at_row - row : at_row - row + h, at_col - col : at_col - col + w] = product
        return found

    def factors(
        self,
        row: int = 0,
        col: int = 0,
        height: int | None = None,
        width: int | None = None,
        scale_um: int = BIN_UM,
    ) -> Float32Array:
        """The factor maps in a rectangle; by default over the whole field.

        Args:
            row, col, height, width, scale_um: as for `window`.

        Returns:
            (K, height, width) float32, in UMIs per bin of ``scale_um``; NaN where the field has no
            values and beyond it.
        """
        rows, cols = self.layers.size(scale_um)
        height = rows - row if height is None else height
        width = cols - col if width is None else width
        every = np.arange(len(self.factor_names))
        found = np.full((len(every), height, width), np.nan, np.float32)
        area = row, col, height, width
        for at_row, at_col, maps in pieces(self.layers, every, area, scale_um):
            _, h, w = maps.shape
            found[:, at_row - row : at_row - row + h, at_col - col : at_col - col + w] = maps
        return found

    def sum_over(self, labels: Any, genes: Sequence[str] | None = None) -> Float32Array:
        """Sums of the rates over labelled areas, such as cells or regions.

        The factors are summed and then multiplied with the loadings, so that no map of a gene is
        ever made.

        Args:
            labels: (R, C) integers on the 2 µm bins, or (R / 4, C / 4) on those of 8 µm; an array
                in memory or one that is read by slices, as of Zarr or HDF5. 0 is no label.
            genes: n symbols or ids; every gene if None.

        Returns:
            (largest label, n) float32, expected UMIs; row ``i`` is of label ``i + 1``. Bins without
            values count as 0.

        Raises:
            ConfigError: no such gene, or labels of another shape.
            FieldError: the field is damaged.

        Example:
            >>> field.sum_over(cells, ["PIGR", "EPCAM"]).shape  # doctest: +SKIP
            (48120, 2)
        """
        factors, weights = self._loadings.of(self.index(genes))
        sums = self._label_sums(labels, factors)
        return (sums if weights is None else sums @ weights.T).astype(np.float32)

    def factor_sums(self, labels: Any) -> Float64Array:
        """Sums of the factors over labelled areas, (largest label, K); see `sum_over`."""
        return self._label_sums(labels, np.arange(len(self.factor_names)))

    def picture(self, longest_px: int = 2000) -> tuple[UInt8Array, float] | None:
        """The H&E picture with no side above ``longest_px``, or the smallest that there is.

        Returns:
            (H, W, 3) uint8 RGB from the field's corner on, and its µm per pixel; None if the field
            has no picture.
        """
        return self.layers.read_picture(longest_px)

    def index(self, genes: Sequence[str] | None = None) -> Int64Array:
        """Indices of genes by symbol or id, (n,); all of them if None.

        Raises:
            ConfigError: a gene is not there, ambiguous, or named twice.
        """
        if genes is None:
            return np.arange(len(self.genes))
        if isinstance(genes, str):
            raise ConfigError(f"genes: expected a list of names; got {genes!a}; write [{genes!a}]")
        return find_named(genes, self._places, self.genes, str(self.path))

    # --- reading ------------------------------------------------------------------------------

    @property
    def _loadings(self) -> Loadings:
        return self.layers.loadings

    @cached_property
    def _places(self) -> Mapping[str, list[int]]:
        return named_places(self.genes, self.symbols)

    def _label_sums(self, labels: Any, factors: Int64Array) -> Float64Array:
        sizes = {self.layers.size(um): um for um in (BIN_UM, _CELL_UM)}
        shape = tuple(labels.shape)
        if shape not in sizes or np.dtype(labels.dtype).kind not in "iu":
            expected = " or ".join(f"{rows}×{cols} ({um} µm)" for (rows, cols), um in sizes.items())
            raise ConfigError(
                f"labels: expected integers on {expected} bins; got {labels.dtype} {shape}"
            )
        rows, cols = shape
        bands = list(cuts(0, rows, self.layers.maps[BIN_UM].chunks[1]))
        low, high = 0, 0
        for start, stop in bands:
            band = np.asarray(labels[start:stop])
            low, high = min(low, int(band.min())), max(high, int(band.max()))
        if low < 0:
            raise ConfigError(f"labels: expected 0 or more; got {low}")
        if high > rows * cols:
            raise ConfigError(
                f"labels: expected numbers from 1 on, at most as many as bins; got {high} for "
                f"{rows * cols} bins; number them anew"
            )
        sums: Float64Array = np.zeros((high, len(factors)))
        for start, stop in bands:
            band = np.asarray(labels[start:stop])
            if not band.any():
                continue
            window = start, 0, stop - start, cols
            for row, col, maps in pieces(self.layers, factors, window, sizes[rows, cols]):
                _, h, w = maps.shape
                _add_up(sums, band[row - start : row - start + h, col : col + w], maps)
        return sums


def open_field(path: Path | str) -> Field:
    """Open a rate field, as ``vst predict`` writes it.

    Args:
        path: of the Zarr folder.

    Raises:
        FieldError: there is none, it is no field or one of another version, or it is damaged.

    Example:
        >>> field = open_field("slide.zarr")  # doctest: +SKIP
        >>> field  # doctest: +SKIP
        Field(18,085 genes by 32 factors, 3352×3352 bins of 2 µm)
    """
    path = Path(path)
    return Field(path, open_layers(path))


def _product(weights: Float32Array, maps: Float32Array) -> Float32Array:
    """(n, k) loadings times (k, h, w) maps; NaN where the maps are, also for loadings of 0."""
    product: Float32Array = np.tensordot(weights, maps, 1)
    np.copyto(product, np.nan, where=np.isnan(maps[0]))  # BLAS may take 0 · NaN for 0
    return product


def _add_up(sums: Float64Array, labels: Array, maps: Float32Array) -> None:
    """Add a piece's maps (k, h, w) to the sums (n, k) of its labels (h, w)."""
    inside = labels > 0
    present, places = np.unique(labels[inside], return_inverse=True)
    for k, values in enumerate(maps):
        of_label = np.bincount(places, np.nan_to_num(values[inside]), len(present))
        sums[present - 1, k] += of_label
