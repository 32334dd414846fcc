"""Calibration curves: observed mean counts of the bins with about the same predicted rate.

Bins of all genes are sorted into half octaves of their predicted rate. Sums of bins, of predicted
and of observed UMIs are kept for each spatial block, so that intervals can be drawn from blocks as
for every other score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.output.figures.rasters import sum_bins
from virchow_st.run.maps import SlideResult
from virchow_st.types import BIN_UM, Array, Float32Array, Float64Array, Int64Array

LEAST = 50
"""Fewest bins, and fewest expected UMIs, in a point of the curve.

Poisson noise of its mean is then at most 14 %.
"""
_FIRST_OCTAVE, _LAST_OCTAVE = -24, 16  # rates of 6·10⁻⁸ to 65,536 UMIs
_CLASSES = 2 * (_LAST_OCTAVE - _FIRST_OCTAVE) + 1  # 0: no positive rate
_ROOT = np.float32(0.5**0.5)
_DRAWS = 1000


class Cells:
    """The scored bins of a slide at one scale, and the spatial block of each.

    Attributes:
        factor: side in 2 µm bins.
        scored: (R, C) bool at the scale, True for bins in a patch whose 2 µm bins are all tissue.
        first_class: (n,) int64 for the scored bins, `_CLASSES` × their block.
    """

    def __init__(self, slide: SlideResult, scale_um: int) -> None:
        self.factor = scale_um // BIN_UM
        block = _blocks(slide, self.factor)
        self.scored = (_summed(slide.scored_mask, self.factor) == self.factor**2) & (block >= 0)
        self.first_class = block[self.scored] * _CLASSES

    def values(self, values: Array) -> Array:
        """Sums of a map (R, C) of 2 µm bins over the scored bins of the scale, (n,)."""
        return _summed(values, self.factor)[self.scored]


def _summed(values: Array, factor: int) -> Array:
    return values if factor == 1 else sum_bins(values, factor)


class Reliability:
    """Sums by class of predicted rate and spatial block at one scale; genes are added one by one.

    Attributes:
        scale_um: side of the bins.
        sums: (3, n_blocks, classes) float64: bins, Σ predicted and Σ observed UMIs.
    """

    def __init__(self, scale_um: int, n_blocks: int) -> None:
        self.scale_um = scale_um
        self.sums = np.zeros((3, n_blocks, _CLASSES))

    def add(self, cells: Cells, rate: Float32Array, counts: Array) -> None:
        """Add one gene on one slide; (R, C) rates and counts per 2 µm bin."""
        lam, k = cells.values(rate), cells.values(counts)
        n_blocks = self.sums.shape[1]
        place = cells.first_class + _classes(lam)
        for sums, weights in zip(self.sums, (None, lam, k), strict=True):
            found = np.bincount(place, weights, n_blocks * _CLASSES)
            sums += found.reshape(n_blocks, _CLASSES)

    def curve(self) -> Curve:
        """The points of the curve, in the order of their rates."""
        n, expected = self.sums[:2, :, 1:].sum(axis=1)
        groups = _group(n, expected)
        grouped = np.stack(
            [self.sums[:, :, 1 + a : 1 + b].sum(axis=2) for a, b in groups], axis=-1
        ) if groups else np.zeros((3, self.sums.shape[1], 0))  # fmt: skip
        n, predicted, observed = grouped.sum(axis=1)
        low, high = _interval(grouped[0], grouped[2])
        total, none = self.sums.sum(axis=(1, 2)), self.sums[:, :, 0].sum(axis=1)
        return Curve(
            scale_um=self.scale_um,
            n=n.astype(np.int64),
            predicted=predicted / n,
            observed=observed / n,
            low=low,
            high=high,
            n_bins=int(total[0]),
            n_not_positive=int(none[0]),
            observed_not_positive=float(none[2]),
            ratio=float(total[1] / total[2]) if total[2] > 0 else float("nan"),
        )


@dataclass(frozen=True)
class Curve:
    """Mean predicted and observed UMIs per bin, by predicted rate; arrays are (n_points,).

    Attributes:
        scale_um: side of the bins.
        n: pairs of a gene and a bin in each point.
        predicted, observed: means over them.
        low, high: 95 % interval of ``observed`` over spatial blocks; NaN with a single block.
        n_bins: number of all pairs.
        n_not_positive, observed_not_positive: number of pairs without a predicted rate above 0,
            which no point includes, and their observed UMIs.
        ratio: Σ predicted / Σ observed.
    """

    scale_um: int
    n: Int64Array
    predicted: Float64Array
    observed: Float64Array
    low: Float64Array
    high: Float64Array
    n_bins: int
    n_not_positive: int
    observed_not_positive: float
    ratio: float

    @property
    def share_not_positive(self) -> float:
        """Share of pairs without a rate above 0; 0 where there is no pair."""
        return self.n_not_positive / max(self.n_bins, 1)

    def numbers(self) -> dict[str, object]:
        """The curve as values for JSON."""
        return {
            "n_bins": self.n_bins,
            "n_not_positive": self.n_not_positive,
            "share_not_positive": self.share_not_positive,
            "observed_not_positive": self.observed_not_positive,
            "ratio": self.ratio,
            "points": [
                {"n": int(n), "predicted": p, "observed": o, "ci95": [a, b]}
                for n, p, o, a, b in zip(
                    self.n, self.predicted, self.observed, self.low, self.high, strict=True
                )
            ],
        }


def _classes(rate: Array) -> Array:
    """Half octave of each rate, from 1; 0 for rates that are not above 0."""
    mantissa, exponent = np.frexp(rate.astype(np.float32))  # mantissa · 2^exponent, ½ ≤ mantissa
    half = 2 * (exponent - 1 - _FIRST_OCTAVE) + (mantissa >= _ROOT)
    return np.where(rate > 0, np.clip(half, 0, _CLASSES - 2) + 1, 0)


def _blocks(slide: SlideResult, factor: int) -> Int64Array:
    """Spatial block of every square of ``factor`` bins, −1 outside patches."""
    rows, cols = (-(-n // factor) for n in slide.scored_mask.shape)
    block = np.full((rows, cols), -1, np.int64)
    for place, number in zip(slide.patches, slide.blocks.tolist(), strict=True):
        row, col = place.row // factor, place.col // factor
        block[row : row + place.rows // factor, col : col + place.cols // factor] = number
    return block


def _group(n: Float64Array, expected: Float64Array) -> list[tuple[int, int]]:
    """Runs of classes (first, end) that hold at least `LEAST` bins and expected UMIs each.

    The runs depend on the prediction only. A remainder at the upper end joins the last run.
    """
    groups: list[tuple[int, int]] = []
    first, bins, umis = 0, 0.0, 0.0
    for i in range(len(n)):
        if bins == 0:
            first = i
        bins, umis = bins + float(n[i]), umis + float(expected[i])
        if min(bins, umis) >= LEAST:
            groups.append((first, i + 1))
            bins, umis = 0.0, 0.0
    if bins > 0:
        if groups:
            first = groups.pop()[0]
        groups.append((first, len(n)))
    return groups


def _interval(n: Float64Array, observed: Float64Array) -> tuple[Float64Array, Float64Array]:
    """95 % interval of Σ observed / Σ n over blocks drawn with replacement; (n_blocks, points).

    NaN for points whose bins all lie in one block.
    """
    filled = n.sum(axis=1) > 0
    n, observed = n[filled], observed[filled]
    several = (n > 0).sum(axis=0) > 1
    low, high = np.full((2, n.shape[1]), np.nan)
    if several.any():
        shares = np.full(len(n), 1 / len(n))
        times = np.random.default_rng(0).multinomial(len(n), shares, _DRAWS).astype(np.float64)
        drawn = times @ n[:, several]
        with np.errstate(invalid="ignore"):  # 0 / 0 where a draw has none of a point's bins
            means = (times @ observed[:, several]) / drawn
        low[several], high[several] = np.nanpercentile(means, [2.5, 97.5], axis=0)
    return low, high
