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
_TABLES = "level", "low", "high", "sd"


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
            and all(getattr(self, name).shape == shape for name in _TABLES)
            and self.group.shape == self.mean.shape
        )
        if not fits:
            raise ValueError(f"interval: expected tables of one shape; got others ({shape})")
        values = np.concatenate([getattr(self, name).ravel() for name in _TABLES])
        if not (np.isfinite(values).all() and (values >= 0).all() and (self.mean > 0).all()):
            raise ValueError("interval: expected finite values of at least 0; got others")
        if len(self.group) and not 0 <= self.group.min() <= self.group.max() < shape[2]:
            raise ValueError(f"interval: expected groups 0 to {shape[2] - 1}; got others")

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


def write_errors(table: zarr.Group, errors: RateErrors) -> None:
    """Write ``uns/interval`` of the table of loadings."""
    group = table["uns"].create_group(NAME)
    group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    arrays: dict[str, Array] = {
        "scale_um": np.array(errors.scale_um, np.int32),
        "group": errors.group.astype(np.int32),
        "mean": errors.mean,
        **{name: getattr(errors, name) for name in _TABLES},
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
              ("scale_um", "group", "mean", *_TABLES)}  # fmt: skip
    found = RateErrors(
        tuple(values.pop("scale_um").tolist()), values.pop("group").astype(np.int64),
        **{name: array.astype(np.float64) for name, array in values.items()},
    )  # fmt: skip
    if len(found.group) != n_genes:
        raise ValueError(f"interval: expected {n_genes} genes; got {len(found.group)}")
    return found
