"""Efficiencies of the rows and columns of a slide's bins, estimated from its total UMIs.

Rows and columns of a Visium HD array capture with slightly different efficiency, which shows as
stripes in the total UMIs per bin. A stripe runs through the whole slide, whereas tissue changes
from place to place. The slide is therefore cut into segments of a few bins along each row, whose
logarithmic abundance is the sum of a surface, which changes along every column of segments as a
random walk, and of the row's own term, which all segments of a row share. Both have a normal prior
whose variance is estimated from the counts; the rows' terms are then those of the highest
posterior probability, in which what cannot be told from tissue is shrunk towards 0.

Letters: N lines (rows or columns), S segments per line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.ndimage import gaussian_filter1d

from virchow_st.types import Array, BoolArray, Float64Array

SEGMENT_BINS = 32
"""Bins of a segment of a line. Shorter ones have too few UMIs, longer ones blur the tissue."""
_NEAR = 4  # segments apart up to which tissue may be alike beyond chance
_GROUP = 16  # lines whose errors may depend on each other
_LAGS = (4, 8, 16, 32)  # lines apart at which the surface's change is measured
_LEAST_UMIS = 15  # in a segment that the variances are estimated from
_LEAST_BINS = 64  # tissue bins of a line that has an efficiency of its own
_SLOW_LINES = 32.0  # changes slower than this are left to the surface
_N_SLOW = 3
_SIGNIFICANT = 4.0  # standard errors that the variance of stripes must be above 0
_LEAST_VARIANCE = 1e-5  # below 0.3 %, stripes are of no consequence
_N_ROUNDS = 3
_N_NEWTON = 3
_N_STEPS, _TOLERANCE = 60, 1e-5
_N_FREQUENCIES = 64


@dataclass(frozen=True)
class Stripes:
    """Efficiencies of the lines of one direction.

    Attributes:
        efficiency: (N,) float64 > 0; 1 for lines with hardly any tissue, and for all lines where
            there are no stripes.
        se: (N,) float64, standard error of the logarithm of each; 0 where it is set to 1.
        sd: Standard deviation of the logarithm of the efficiencies in the slide; 0 where the lines
            do not differ beyond chance.
    """

    efficiency: Float64Array
    se: Float64Array
    sd: float

    @property
    def mean_se(self) -> float:
        """Root mean square of the standard errors of the lines that have an efficiency."""
        errors = self.se[self.se > 0]
        return float(np.sqrt((errors**2).mean())) if errors.size else 0.0

    def rounded(self, decimals: int) -> Stripes:
        """The same, rounded, so that a text holds it exactly."""
        efficiency, se = (np.round(x, decimals) for x in (self.efficiency, self.se))
        return Stripes(efficiency, se, round(self.sd, decimals))


def estimate_stripes(umis: Array, tissue_mask: BoolArray) -> tuple[Stripes, Stripes]:
    """Estimate the efficiencies of rows and of columns, each given the other.

    Slow changes over many lines cannot be told from tissue and stay in the surface.

    Args:
        umis: (R, C) total UMIs per bin; those outside tissue are not used.
        tissue_mask: (R, C) bool, True = tissue.

    Returns:
        Those of the R rows and of the C columns, each with the mean 1 over their tissue bins.

    Raises:
        ValueError: Shapes that do not match.

    Example:
        Every other row captures half as much again:

        >>> rng = np.random.default_rng(0)
        >>> truth = np.where(np.arange(200) % 2, 1.2, 0.8)
        >>> umis = rng.poisson(9 * truth[:, None] * np.ones(300))
        >>> rows, cols = estimate_stripes(umis, np.ones((200, 300), bool))
        >>> rows.efficiency[:4].round(1), cols.sd, cols.efficiency[:4]
        (array([0.8, 1.2, 0.8, 1.2]), 0.0, array([1., 1., 1., 1.]))
    """
    if umis.shape != tissue_mask.shape or umis.ndim != 2:
        raise ValueError(
            f"umis, tissue_mask: expected one shape (R, C); got {umis.shape}, {tissue_mask.shape}"
        )
    umis = np.where(tissue_mask, umis, 0).astype(np.float32)
    rows, cols = _no_stripes(umis.shape[0]), _no_stripes(umis.shape[1])
    n_tissue = tissue_mask.sum(1), tissue_mask.sum(0)
    for _ in range(_N_ROUNDS):
        rows = _of_lines(umis, tissue_mask, cols.efficiency, n_tissue[0])
        cols = _of_lines(umis.T, tissue_mask.T, rows.efficiency, n_tissue[1])
        if not (rows.sd and cols.sd):
            break  # the one does not change the other
    return rows, cols


def _no_stripes(n: int) -> Stripes:
    return Stripes(np.ones(n), np.zeros(n), 0.0)


def _of_lines(
    umis: Array, tissue_mask: BoolArray, across: Float64Array, n_tissue: Array
) -> Stripes:
    """Efficiencies of the rows of maps (N, C), given those of the columns ``across`` (C,)."""
    counts_NS, exposure_NS = _segments(umis), _segments(tissue_mask * across.astype(np.float32))
    variance, error, change = _variances(counts_NS, exposure_NS)
    has_own = n_tissue >= _LEAST_BINS
    if variance < max(_SIGNIFICANT * error, _LEAST_VARIANCE) or not has_own.any():
        return _no_stripes(len(umis))
    log_efficiency, se = _posterior(counts_NS, exposure_NS, variance, change)
    for _ in range(_N_SLOW):  # again, as one Gaussian leaves a part of a slope at the ends
        log_efficiency -= _slow(log_efficiency, has_own)
    efficiency = np.where(has_own, np.exp(log_efficiency), 1.0)
    efficiency[has_own] /= n_tissue[has_own] @ efficiency[has_own] / n_tissue[has_own].sum()
    return Stripes(efficiency, np.where(has_own, se, 0.0), float(np.sqrt(variance)))


def _slow(x: Float64Array, counted: BoolArray) -> Float64Array:
    """Gaussian mean over the lines around each that are counted, (N,)."""
    weight, total = (
        gaussian_filter1d(np.where(counted, v, 0.0), _SLOW_LINES, mode="constant")
        for v in (np.ones(len(x)), x)
    )
    return np.asarray(total / np.maximum(weight, 1e-9))


def _segments(x: Array) -> Float64Array:
    """Sums (N, S) over segments of the rows of a map (N, C)."""
    starts = np.arange(0, x.shape[1], SEGMENT_BINS)
    return np.add.reduceat(x, starts, axis=1, dtype=np.float64)


def _variances(counts_NS: Float64Array, exposure_NS: Float64Array) -> tuple[float, float, float]:
    """Variance of the lines' terms, its standard error, and variance of a step of the surface.

    A line differs from the mean of the lines beside it by its own term in all segments alike, and
    by tissue in each in another way, and less so, as tissue is smooth. The variance of the terms is
    therefore in proportion to the mean product of these relative differences in two segments of a
    line that lie more than `_NEAR` apart.
    """
    rate, known = _rates(counts_NS, exposure_NS)
    before, here, after = rate[:-2], rate[1:-1], rate[2:]
    both = (known[:-2] & known[1:-1] & known[2:]).astype(np.float64)
    differences = both * 4 * (before - 2 * here + after) / (before + 2 * here + after)
    products = differences.sum(1) ** 2 - _near_products(differences)
    pairs = both.sum(1) ** 2 - _near_products(both)
    if not pairs.sum() > 0:
        return 0.0, np.inf, 1.0
    mean = products.sum() / pairs.sum()
    groups = np.arange(0, len(pairs), _GROUP)  # tissue is alike in neighbouring lines
    errors = np.add.reduceat(products - mean * pairs, groups)
    error = np.sqrt((errors**2).sum()) / pairs.sum()
    variance = float(mean) / 6
    change = max(
        _change(counts_NS, exposure_NS, max(variance, 0.0), lag)
        for lag in _LAGS
        if lag == _LAGS[0] or 2 * lag < len(rate)
    )
    return variance, float(error) / 6, max(change, 1e-6)


def _change(counts_NS: Float64Array, exposure_NS: Float64Array, variance: float, lag: int) -> float:
    """Variance of a step of a random walk that moves as far over ``lag`` lines as the surface.

    What neighbouring segments share beyond the lines' own terms counts in full, as if each had it
    by itself.
    """
    differences, known, noise = _relative_differences(counts_NS, exposure_NS, lag)
    own = max((differences**2 - noise).sum() / max(known.sum(), 1.0) - 2 * variance, 0.0)
    shared = 0.0
    for apart in range(1, min(_NEAR, differences.shape[1] - 1) + 1):
        of_pairs = (differences[:, apart:] * differences[:, :-apart]).sum()
        pairs = max((known[:, apart:] * known[:, :-apart]).sum(), 1.0)
        shared += 2 * (of_pairs / pairs - 2 * variance)
    return float(max(own, own + shared)) / lag


def _rates(counts_NS: Float64Array, exposure_NS: Float64Array) -> tuple[Float64Array, BoolArray]:
    """UMIs per exposure of every segment, and whether it has enough UMIs; 1 where it has not."""
    known = (counts_NS >= _LEAST_UMIS) & (exposure_NS > 0)
    return np.where(known, counts_NS / np.where(known, exposure_NS, 1.0), 1.0), known


def _relative_differences(
    counts_NS: Float64Array, exposure_NS: Float64Array, lag: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Relative difference of the segments of two lines, whether it is known, its Poisson variance.

    Arrays (N - lag, S); 0 where one of the two has too few UMIs.
    """
    rate, known = _rates(counts_NS, exposure_NS)
    a, b, both = rate[:-lag], rate[lag:], known[:-lag] & known[lag:]
    inverse = 1 / np.maximum(counts_NS, 1.0)
    noise = inverse[:-lag] + inverse[lag:]
    return (
        np.where(both, 2 * (b - a) / (a + b), 0.0),
        both.astype(np.float64),
        np.where(both, noise, 0.0),
    )


def _near_products(x_NS: Float64Array) -> Float64Array:
    """Sum of products of segments at most `_NEAR` apart, each with itself included, (N,)."""
    total = (x_NS**2).sum(1)
    for apart in range(1, _NEAR + 1):
        total += 2 * (x_NS[:, apart:] * x_NS[:, :-apart]).sum(1)
    return np.asarray(total)


def _posterior(
    counts_NS: Float64Array, exposure_NS: Float64Array, variance: float, change: float
) -> tuple[Float64Array, Float64Array]:
    """Terms of the lines of highest posterior probability, (N,), and their standard errors.

    The counts are Poisson with mean ``exposure · exp(surface + term)``. Newton steps solve for both
    at once; the surface is eliminated, since its precision matrix is tridiagonal in every column of
    segments, and what is left is solved by conjugate gradients.
    """
    there = exposure_NS > 0
    exposure = np.where(there, exposure_NS, 1.0)
    predictor = np.where(there, np.log(np.maximum(counts_NS, 0.5) / exposure), 0.0)
    weight = np.where(there, np.maximum(counts_NS, 1.0), 0.0)
    target, terms = predictor, np.zeros(len(counts_NS))
    for _ in range(_N_NEWTON):
        surface_of = _Surface(weight, change)
        right = (weight * (target - surface_of(weight * target))).sum(1)
        terms = _conjugate_gradients(weight, surface_of, variance, right, terms)
        surface = surface_of(weight * (target - terms[:, None]))
        predictor = np.clip(surface + terms[:, None], -12.0, 12.0)
        weight = np.where(there, exposure * np.exp(predictor), 0.0)
        target = np.where(there, predictor + (counts_NS - weight) / np.maximum(weight, 1e-9), 0.0)
    return terms, np.sqrt(_posterior_variance(weight, variance, change))


class _Surface:
    """Posterior mean of the surface, a random walk along every column of segments.

    Args:
        weight_NS: Precision of each segment's observation.
        change: Variance of a step of the random walk.
    """

    def __init__(self, weight_NS: Float64Array, change: float) -> None:
        N, S = weight_NS.shape
        step = 1 / change
        banded = np.full((2, N), -step)
        self._factors = []
        for s in range(S):
            banded[1] = weight_NS[:, s] + 2 * step + 1e-9
            banded[1, [0, -1]] -= step
            self._factors.append((cholesky_banded(banded), False))

    def __call__(self, weighted_NS: Float64Array) -> Float64Array:
        """Surface (N, S) from observations times their precision."""
        columns = [
            cho_solve_banded(factor, weighted_NS[:, s]) for s, factor in enumerate(self._factors)
        ]
        return np.stack(columns, axis=1)


def _conjugate_gradients(
    weight_NS: Float64Array,
    surface_of: _Surface,
    variance: float,
    right: Float64Array,
    start: Float64Array,
) -> Float64Array:
    """Solve for the lines' terms with the surface eliminated (Hestenes & Stiefel 1952)."""
    diagonal = weight_NS.sum(1) + 1 / variance

    def left(x: Float64Array) -> Float64Array:
        return np.asarray(diagonal * x - (weight_NS * surface_of(weight_NS * x[:, None])).sum(1))

    x, residual = start.copy(), right - left(start)
    direction = residual / diagonal
    size = residual @ direction
    enough = _TOLERANCE**2 * (right @ (right / diagonal))
    for _ in range(_N_STEPS):
        if size <= enough:
            break
        image = left(direction)
        step = size / (direction @ image)
        x += step * direction
        residual -= step * image
        scaled = residual / diagonal
        before, size = size, residual @ scaled
        direction = scaled + size / before * direction
    return x


def _posterior_variance(weight_NS: Float64Array, variance: float, change: float) -> Float64Array:
    """Posterior variance of each line's term, as if all lines were like it, (N,).

    With equal lines, their terms are independent in every frequency f along them: the precision of
    one is ``1/variance + Σ_s w_s·p / (w_s + p)``, where ``p = (2 − 2·cos 2πf) / change`` is that of
    the surface, and the posterior variance of a term is the mean of the inverse over frequencies.
    """
    frequency = (np.arange(_N_FREQUENCIES) + 0.5) / (2 * _N_FREQUENCIES)
    total = np.zeros(len(weight_NS))
    for p in (2 - 2 * np.cos(2 * np.pi * frequency)) / change:
        total += 1 / (1 / variance + (weight_NS * p / (weight_NS + p)).sum(1))
    return total / _N_FREQUENCIES
