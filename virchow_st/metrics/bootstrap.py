"""95 % intervals and paired differences by drawing spatial blocks with replacement.

Neighbouring bins are alike, so single bins are no independent draws; blocks wider than the
structures in them nearly are. Efron, Ann. Stat. 7 (1979) 1; for dependent data Künsch, Ann. Stat.
17 (1989) 1217.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from virchow_st.metrics import correlation
from virchow_st.metrics import deviance as count_figures
from virchow_st.types import Float64Array

Score = Literal["pcc", "d2_poisson"]
_LEVEL = 95.0
_DRAWS_AT_ONCE = 50


@dataclass(frozen=True)
class BlockSums:
    """The sums of one scale from which `pcc` and `d2_poisson` follow, block by block.

    Those of several slides are joined by putting their blocks one after another.

    Attributes:
        moments: (n_blocks, G, 6) float64, see `metrics.correlation.moments`.
        poisson_sums: (n_blocks, G, 4) float64, see `metrics.counts.poisson_sums`.
        null_rate: (G,) float64, UMIs per scored bin: the training mean.
    """

    moments: Float64Array
    poisson_sums: Float64Array
    null_rate: Float64Array

    def __post_init__(self) -> None:
        n_blocks, n_genes = self.moments.shape[:2]
        expected = ((n_blocks, n_genes, 6), (n_blocks, n_genes, 4), (n_genes,))
        for name, shape in zip(("moments", "poisson_sums", "null_rate"), expected, strict=True):
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(f"{name}: expected shape {shape}; got {got}")


@dataclass(frozen=True)
class PairedDifference:
    """What predictor a has over predictor b on the same bins.

    Attributes:
        difference: score of a less score of b, over all blocks.
        low, high: its 95 % interval.
        p: two-sided bootstrap p: twice the share of draws on the other side of 0, at most 1.
    """

    difference: float
    low: float
    high: float
    p: float


def interval(
    sums: BlockSums, score: Score, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a score averaged over genes.

    Blocks without a scored bin are left out; as many of the others as there are, are drawn with
    replacement, and the score is computed from the sums drawn. A gene whose counts do not vary in
    a draw does not enter the mean of that draw.

    Args:
        sums: of one scale.
        score: which.
        draws: how many.
        seed: of the draws; the same seed draws the same blocks.

    Returns:
        The 2.5th and 97.5th percentile over the draws; NaN with fewer than two blocks to draw from.
    """
    values = _drawn(sums, score, draws, seed)
    return _percentiles(values)


def paired(
    a: BlockSums, b: BlockSums, score: Score, draws: int = 1000, seed: int = 0
) -> PairedDifference:
    """Whether predictor a is better than predictor b: both figures from the same drawn blocks.

    Args:
        a, b: sums of two predictors over the same bins and counts.
        score, draws, seed: as for `interval`.

    Raises:
        ValueError: the two were not scored on the same bins and counts.
    """
    columns = [correlation.N, correlation.SY, correlation.SYY]
    if a.moments.shape != b.moments.shape or not np.allclose(
        a.moments[..., columns], b.moments[..., columns], rtol=1e-9, atol=0
    ):
        raise ValueError(
            "a and b: expected the same blocks, bins and counts; got others; score both on the "
            "same patches with the same panel"
        )
    whole = _figure(a.moments.sum(0), a.poisson_sums.sum(0), a.null_rate, score) - _figure(
        b.moments.sum(0), b.poisson_sums.sum(0), b.null_rate, score
    )
    drawn = _drawn(a, score, draws, seed) - _drawn(b, score, draws, seed)
    drawn = drawn[~np.isnan(drawn)]
    low, high = _percentiles(drawn)
    p = float("nan")
    if drawn.size:
        other_side = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
        p = min(1.0, 2.0 * (1 + other_side) / (1 + drawn.size))
    return PairedDifference(float(whole), low, high, p)


def _drawn(sums: BlockSums, score: Score, draws: int, seed: int) -> Float64Array:
    """The score in every draw, (draws,); empty with fewer than two blocks to draw from."""
    filled = sums.moments[:, :1, correlation.N].sum(1) > 0
    n = int(np.count_nonzero(filled))
    if n < 2:
        return np.empty(0)
    moments, poisson_sums = sums.moments[filled], sums.poisson_sums[filled]
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    values = np.empty(draws)
    for start in range(0, draws, _DRAWS_AT_ONCE):
        part = times[start : start + _DRAWS_AT_ONCE].astype(np.float64)
        values[start : start + len(part)] = _figure(
            np.tensordot(part, moments, 1), np.tensordot(part, poisson_sums, 1),
            sums.null_rate, score,
        )  # fmt: skip
    return values


def _figure(
    moments: Float64Array, poisson_sums: Float64Array, null_rate: Float64Array, score: Score
) -> Float64Array:
    """The score averaged over scored genes, (...), from sums (..., G, 6) and (..., G, 4)."""
    if score == "pcc":
        values = correlation.pearson_from_moments(moments)
    elif score == "d2_poisson":
        n, total = moments[..., correlation.N], moments[..., correlation.SY]
        null = count_figures.constant_deviance(poisson_sums, total, n, null_rate)
        deviance = count_figures.poisson_deviance(poisson_sums, total)
        values = count_figures.deviance_explained(deviance, null)
    else:
        raise ValueError(f"score: expected pcc or d2_poisson; got {score!r}")
    scored = correlation.varies(moments) & ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(scored, values, 0.0).sum(-1) / scored.sum(-1)


def _percentiles(values: Float64Array) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if values.size == 0:
        return float("nan"), float("nan")
    tail = (100 - _LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
