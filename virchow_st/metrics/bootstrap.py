"""95 % confidence intervals and paired differences from a spatial block bootstrap.

Neighbouring bins are correlated, so single bins are not independent samples; spatial blocks wider
than the tissue structures are nearly independent and are drawn with replacement. Efron, Ann. Stat.
7 (1979) 1; for dependent data Künsch, Ann. Stat. 17 (1989) 1217.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from virchow_st.metrics import correlation
from virchow_st.metrics import deviance as poisson_scores
from virchow_st.metrics.partial import N_CONTROLS, N_SQUARES, partial_correlation
from virchow_st.types import Float64Array

Score = Literal["pcc", "d2_poisson", "pcc_partial"]
_LEVEL = 95.0
_DRAWS_AT_ONCE = 50


@dataclass(frozen=True)
class BlockSums:
    """Sums per spatial block at one scale, from which ``pcc`` and ``d2_poisson`` are computed.

    The sums of several slides are combined by concatenating their blocks.

    Attributes:
        moments: (n_blocks, G, 6) float64, see `metrics.correlation.moments`.
        poisson_sums: (n_blocks, G, 4) float64, see `metrics.deviance.poisson_sums`.
        null_rate: (G,) float64, training mean in UMIs per scored bin.
        products, squares: (n_blocks, G, 12) and (n_blocks, 27) float64, see `metrics.partial`; None
            where they were not computed, so that there is no ``pcc_partial``.

    Raises:
        ValueError: Shapes that do not match.

    Example:
        Two blocks of four bins each, one gene:

        >>> import numpy as np
        >>> from virchow_st.metrics import correlation, deviance
        >>> rate = np.array([[[[0.5, 0.5, 1.5, 1.5]]], [[[0.5, 1.5, 2.5, 3.5]]]])
        >>> counts = np.array([[[[0, 1, 1, 2]]], [[[1, 1, 3, 3]]]])
        >>> mask = np.ones((1, 4), bool)
        >>> sums = BlockSums(
        ...     np.stack([correlation.moments(x, k, mask) for x, k in zip(rate, counts)]),
        ...     np.stack([deviance.poisson_sums(x, k, mask) for x, k in zip(rate, counts)]),
        ...     null_rate=np.array([1.5]),
        ... )
        >>> low, high = interval(sums, "pcc", draws=200)
        >>> round(low, 2), round(high, 2)
        (0.71, 0.89)
    """

    moments: Float64Array
    poisson_sums: Float64Array
    null_rate: Float64Array
    products: Float64Array | None = None
    squares: Float64Array | None = None

    def __post_init__(self) -> None:
        n_blocks, n_genes = self.moments.shape[:2]
        expected = {
            "moments": (n_blocks, n_genes, 6),
            "poisson_sums": (n_blocks, n_genes, 4),
            "null_rate": (n_genes,),
        }
        if self.products is not None or self.squares is not None:
            expected |= {
                "products": (n_blocks, n_genes, 2 * N_CONTROLS),
                "squares": (n_blocks, N_SQUARES),
            }
        for name, shape in expected.items():
            got = getattr(getattr(self, name), "shape", None)
            if got != shape:
                raise ValueError(f"{name}: expected shape {shape}; got {got}")


@dataclass(frozen=True)
class PairedDifference:
    """Difference in score between predictors a and b on the same bins.

    Attributes:
        difference: Score of a minus score of b, over all blocks.
        low, high: 95 % interval of the difference.
        p: Two-sided bootstrap p-value: twice the share of draws on the other side of 0, at most 1.
    """

    difference: float
    low: float
    high: float
    p: float


def interval(
    sums: BlockSums, score: Score, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of a score averaged over genes.

    Of the n blocks that contain a scored bin, n are drawn with replacement, and the score is
    computed from the sum over the drawn blocks. A gene whose counts do not vary within a draw is
    left out of the mean of that draw.

    Args:
        sums: Sums per block at one scale.
        score: ``pcc``, ``d2_poisson``, or ``pcc_partial`` of sums with controls.
        draws: Number of bootstrap draws.
        seed: Seed of the random numbers; the same seed draws the same blocks.

    Returns:
        The 2.5th and 97.5th percentiles over the draws; NaN if fewer than two blocks contain a
        scored bin.
    """
    values = _drawn(sums, score, draws, seed)
    return _percentiles(values)


def paired(
    a: BlockSums, b: BlockSums, score: Score, draws: int = 1000, seed: int = 0
) -> PairedDifference:
    """Test whether predictor a scores better than predictor b, with the same blocks drawn for both.

    Args:
        a, b: Sums of two predictors over the same bins and counts.
        score, draws, seed: As for `interval`.

    Raises:
        ValueError: The two were not scored on the same blocks, bins and counts.

    Example:
        >>> import dataclasses
        >>> import numpy as np
        >>> moments = np.array([[[4.0, 4, 4, 6, 6, r]] for r in (5.0, 4.8, 5.2)])
        >>> a = BlockSums(moments, np.zeros((3, 1, 4)), np.array([1.0]))
        >>> worse = moments.copy()
        >>> worse[..., correlation.SXY] -= 0.5
        >>> b = dataclasses.replace(a, moments=worse)
        >>> result = paired(a, b, "pcc", draws=100)
        >>> round(result.difference, 3), round(result.low, 3), round(result.high, 3)
        (0.25, 0.25, 0.25)
    """
    columns = [correlation.N, correlation.SY, correlation.SYY]
    if a.moments.shape != b.moments.shape or not np.allclose(
        a.moments[..., columns], b.moments[..., columns], rtol=1e-9, atol=0
    ):
        raise ValueError(
            "a and b: expected the same blocks, bins and counts; got others; score both on the "
            "same patches with the same panel"
        )
    whole = _mean_score(_Sums.of(a), score) - _mean_score(_Sums.of(b), score)
    drawn = _drawn(a, score, draws, seed) - _drawn(b, score, draws, seed)
    drawn = drawn[~np.isnan(drawn)]
    low, high = _percentiles(drawn)
    p = float("nan")
    if drawn.size:
        other_side = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
        p = min(1.0, 2.0 * (1 + other_side) / (1 + drawn.size))
    return PairedDifference(float(whole), low, high, p)


def _drawn(sums: BlockSums, score: Score, draws: int, seed: int) -> Float64Array:
    """Score in every draw, (draws,); empty if fewer than two blocks contain a scored bin."""
    filled = sums.moments[:, :1, correlation.N].sum(1) > 0
    n = int(np.count_nonzero(filled))
    if n < 2:
        return np.empty(0)
    of_filled = BlockSums(
        sums.moments[filled],
        sums.poisson_sums[filled],
        sums.null_rate,
        None if sums.products is None else sums.products[filled],
        None if sums.squares is None else sums.squares[filled],
    )
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    values = np.empty(draws)
    for start in range(0, draws, _DRAWS_AT_ONCE):
        part = times[start : start + _DRAWS_AT_ONCE].astype(np.float64)
        values[start : start + len(part)] = _mean_score(_Sums.of(of_filled, part), score)
    return values


@dataclass(frozen=True)
class _Sums:
    """Sums over blocks (...,), of all or of several draws."""

    moments: Float64Array  # (..., G, 6)
    poisson_sums: Float64Array  # (..., G, 4)
    null_rate: Float64Array  # (G,)
    products: Float64Array | None  # (..., G, 12)
    squares: Float64Array | None  # (..., 27)

    @classmethod
    def of(cls, sums: BlockSums, times: Float64Array | None = None) -> _Sums:
        """Sums over blocks, each once, or as often as ``times`` (draws, blocks) says."""

        def total(of_blocks: Float64Array) -> Float64Array:
            return of_blocks.sum(0) if times is None else np.tensordot(times, of_blocks, 1)

        products, squares = sums.products, sums.squares
        return cls(
            total(sums.moments),
            total(sums.poisson_sums),
            sums.null_rate,
            None if products is None else total(products),
            None if squares is None else total(squares),
        )


def _mean_score(sums: _Sums, score: Score) -> Float64Array:
    """Mean of the score over scored genes, (...)."""
    moments, poisson_sums = sums.moments, sums.poisson_sums
    if score == "pcc":
        values = correlation.pearson_from_moments(moments)
    elif score == "pcc_partial":
        if sums.products is None or sums.squares is None:
            raise ValueError("pcc_partial: expected sums of products with controls; got none")
        values, _ = partial_correlation(moments, sums.products, sums.squares)
    elif score == "d2_poisson":
        n, total = moments[..., correlation.N], moments[..., correlation.SY]
        null = poisson_scores.constant_deviance(poisson_sums, total, n, sums.null_rate)
        deviance = poisson_scores.poisson_deviance(poisson_sums, total)
        values = poisson_scores.deviance_explained(deviance, null)
    else:
        raise ValueError(f"score: expected pcc, pcc_partial or d2_poisson; got {score!r}")
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
