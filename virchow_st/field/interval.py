"""How far the true rate may be from a field's: tables of ratios, by abundance and level.

Letters: G genes, S scales, C classes of bins (observed; filled), Q groups of genes of similar
abundance, L levels of a rate relative to the gene's mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import zarr

from virchow_st.field.ngff import PACKED
from virchow_st.types import Array, Float32Array, Float64Array, Int64Array

NAME = "interval"
SHARE = 0.9
"""Share of true rates that the interval is to contain."""
TABLES = "level", "low", "high", "sd"
_AT_ONCE = 1_000_000  # ratios


@dataclass(frozen=True, eq=False)
class RateErrors:
    """Distribution of the true rate over the estimated one.

    Attributes:
        scale_um: The S scales, µm.
        group: (G,) group of each gene.
        mean: (G,) float64 > 0, mean rate of each gene per 2 µm tissue bin.
        level: (S, C, Q, L) rate over the gene's mean, rising along L.
        low, high: (S, C, Q, L) true over estimated rate, 5th and 95th percentile.
        sd: (S, C, Q, L) standard deviation of the true rate over the estimated one.

    Raises:
        ValueError: Shapes that do not fit, or values that are not finite.
    """

    scale_um: tuple[int, ...]
    group: Int64Array
    mean: Float64Array
    level: Float64Array
    low: Float64Array
    high: Float64Array
    sd: Float64Array

    def __post_init__(self) -> None:
        shape = self.level.shape
        fits = (
            len(shape) == 4
            and shape[0] == len(self.scale_um)
            and shape[1] in (1, 2)
            and min(shape) > 0
            and all(getattr(self, name).shape == shape for name in TABLES)
            and self.group.shape == self.mean.shape
        )
        if not fits:
            raise ValueError(f"interval: expected tables of one shape; got others ({shape})")
        values = np.concatenate([getattr(self, name).ravel() for name in TABLES])
        if not (np.isfinite(values).all() and (values >= 0).all() and (self.mean > 0).all()):
            raise ValueError("interval: expected finite values of at least 0; got others")
        if len(self.group) and not 0 <= self.group.min() <= self.group.max() < shape[2]:
            raise ValueError(f"interval: expected groups 0 to {shape[2] - 1}; got others")

    @property
    def n_classes(self) -> int:
        """C: 1 where no bin was filled, else 2."""
        return self.level.shape[1]

    def of_genes(self, index: Int64Array) -> RateErrors:
        """The errors of some genes, in the order given."""
        return replace(self, group=self.group[index], mean=self.mean[index])

    def ratios(
        self, gene: int, rate: Float32Array, scale_um: int, is_filled: Array
    ) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Low, high and sd over the estimated rate, each of the shape of ``rate``.

        Between levels the ratios are interpolated in the logarithm of the rate.

        Args:
            gene: Index of the gene.
            rate: Estimated UMIs per bin of ``scale_um``; NaN stays.
            scale_um: One of `scale_um`.
            is_filled: Bool of the same shape, True where a bin or a part of it was filled.
        """
        s, q = self.scale_um.index(scale_um), self.group[gene]
        mean = self.mean[gene] * (scale_um / 2) ** 2
        at = np.log(np.maximum(rate / mean, 1e-12))
        found = []
        for name in ("low", "high", "sd"):
            values = np.empty(rate.shape, np.float32)
            for c in range(self.level.shape[1]):
                knots = np.log(self.level[s, c, q])
                of_class = np.interp(at, knots, getattr(self, name)[s, c, q])
                where = np.ones(rate.shape, bool) if c == 0 else is_filled
                np.copyto(values, of_class, where=where, casting="same_kind")
            values[np.isnan(rate)] = np.nan
            found.append(values)
        return found[0], found[1], found[2]

    def over_areas(
        self, what: str, rates: Float32Array, n_bins: Float64Array, is_filled: Array
    ) -> Float32Array:
        """A ratio to the estimated rates of areas of any size, such as cells.

        A table at a scale is that of squares of ``(scale / 2)²`` bins. Between two scales ratios
        are interpolated in the logarithm of the number of bins; beyond the first and last scale
        they are those of that scale.

        Args:
            what: ``"low"``, ``"high"`` or ``"sd"``.
            rates: (n, G) estimated UMIs of each area, for the G genes.
            n_bins: (n,) bins of 2 µm of each area.
            is_filled: (n,) bool, True where one of its bins was filled.

        Returns:
            (n, G) float32; NaN in areas without bins.

        Example:
            >>> levels = [[1.0, 2.0]]  # times the gene's mean
            >>> errors = RateErrors(
            ...     (2, 4), np.array([0]), np.array([0.5]), *np.array(
            ...         [[[levels]] * 2, [[[[0.4, 0.4]]], [[[0.8, 0.8]]]]] * 2
            ...     )
            ... )
            >>> umis, bins = np.ones((3, 1), np.float32), np.array([1.0, 2.0, 9.0])
            >>> errors.over_areas("low", umis, bins, np.zeros(3, bool)).ravel()
            array([0.4, 0.6, 0.8], dtype=float32)
        """
        knots = np.log2([(scale / 2) ** 2 for scale in self.scale_um])
        with np.errstate(divide="ignore"):
            at = np.interp(np.log2(n_bins), knots, np.arange(len(knots)))
        below = np.minimum(at.astype(np.int64), max(len(knots) - 2, 0))
        found = np.zeros(rates.shape, np.float32)
        filled = np.asarray(is_filled, bool) & (self.n_classes > 1)
        table = getattr(self, what)
        for q in np.unique(self.group):
            (genes,) = np.nonzero(self.group == q)
            for s, c in np.ndindex(len(knots), self.n_classes):
                weight = np.where(below == s, 1 - (at - s), np.where(below + 1 == s, at - below, 0))
                (areas,) = np.nonzero((weight > 0) & (filled == bool(c)) & (n_bins > 0))
                for few in np.array_split(areas, -(-len(areas) * len(genes) // _AT_ONCE) or 1):
                    mean = n_bins[few, None] * self.mean[genes]
                    level = np.log(np.maximum(rates[np.ix_(few, genes)] / mean, 1e-12))
                    ratio = np.interp(level, np.log(self.level[s, c, q]), table[s, c, q])
                    found[np.ix_(few, genes)] += (weight[few, None] * ratio).astype(np.float32)
        found[~(n_bins > 0)] = np.nan
        return found


def write_errors(table: zarr.Group, errors: RateErrors) -> None:
    """Write ``uns/interval`` of the table of loadings."""
    group = table["uns"].create_group(NAME)
    group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    arrays: dict[str, Array] = {
        "scale_um": np.array(errors.scale_um, np.int32),
        "group": errors.group.astype(np.int32),
        "mean": errors.mean,
        **{name: getattr(errors, name) for name in TABLES},
    }
    for name, values in arrays.items():
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=values.shape, compressors=PACKED,
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )  # fmt: skip
        array[...] = values


def read_errors(table: zarr.Group, n_genes: int) -> RateErrors | None:
    """Read what `write_errors` wrote; None where there is none.

    Raises:
        ValueError, KeyError: It is damaged.
    """
    uns = table.get("uns")
    if not isinstance(uns, zarr.Group) or NAME not in uns:
        return None
    values = {name: np.asarray(uns[f"{NAME}/{name}"][...]) for name in
              ("scale_um", "group", "mean", *TABLES)}  # fmt: skip
    found = RateErrors(
        tuple(values.pop("scale_um").tolist()), values.pop("group").astype(np.int64),
        **{name: array.astype(np.float64) for name, array in values.items()},
    )  # fmt: skip
    if len(found.group) != n_genes:
        raise ValueError(f"interval: expected {n_genes} genes; got {len(found.group)}")
    return found
