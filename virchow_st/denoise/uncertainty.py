"""How far the true rates may be from the estimated ones.

1. **Bootstrap.** Counts are drawn from the estimated rates, and loadings and factors are fitted to
   them again by the same recipe (parametric bootstrap: Efron & Tibshirani 1993, An Introduction to
   the Bootstrap, ch. 6). The ratio of the rates drawn from to those fitted shows the error of noise
   and of smoothing. Its percentiles are taken over all bins, by scale, by group of genes of similar
   abundance and by level of the fitted rate. Bins that failed are imitated: the same pattern is
   laid over observed bins, whose counts the second fit does not see.
2. **What the bootstrap lacks.** The estimated rates are smoother than the true ones, and the
   bootstrap takes them for true. Counts that were held out say how large the errors of the factors
   are (`virchow_st.denoise.bootstrap.shared_error`); the distance of the percentiles from the
   median is multiplied by the root of the squared error over the bootstrap's, mean over four
   scales. On a slide of few patches this ratio is itself uncertain, and intervals that took it for
   exact would hold the truth too rarely; its standard error is added to it.
3. **Genes by themselves.** A gene may vary in a way that the factors do not hold. The held-out
   counts of single genes in squares of 32 µm vary around their rates by more than Poisson noise;
   the relative variance that the bootstrap does not explain is added.

Letters: n observed bins, G genes, K factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix

from virchow_st.denoise.bootstrap import draw_counts, shared_error
from virchow_st.denoise.estimate import Estimate
from virchow_st.denoise.fit import Rates, Recipe, fit_rates
from virchow_st.denoise.prior import Prior
from virchow_st.denoise.slide import SlideCounts
from virchow_st.field.interval import SHARE, RateErrors
from virchow_st.metrics.discovery import N_GROUPS
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.training.rows import SparseRows
from virchow_st.types import BIN_UM, SCALES_UM, BoolArray, Float32Array, Float64Array, Int64Array

N_LEVELS = 12
_GENES_PER_GROUP = 40
_MOST_BINS = 20_000  # 2 µm bins of a class, and 2,000 of a coarser scale, that percentiles rest on
_MOST_COARSE = 2_000
_DRAWS = 8  # of held-out counts, over which the error of the bootstrap is averaged
_SQUARE_BINS = 16
_GENES_AT_ONCE = 128  # whose counts are compared with their rates, to save memory
_Z = 1.6449  # 95th percentile of the normal distribution
_SHIFTS = (0, 5, 11, 23, 47, 95)  # bins by which the pattern of failed bins is moved


@dataclass(frozen=True)
class Widening:
    """What held-out counts add to the bootstrap.

    Attributes:
        factor: By which distances from the median are multiplied, at least 1.
        own: Relative standard deviation of single genes besides: of those that the factors hold,
            and of those with maps of their own.
    """

    factor: float
    own: tuple[float, float]


def rate_errors(
    slide: SlideCounts,
    found: Estimate,
    prior: Prior | None,
    seed: int,
    progress: Progress = SILENT,
) -> tuple[RateErrors, Widening]:
    """Measure the errors of a slide's estimated rates.

    Two more fits are made, each as long as the last one of `estimate`.

    Args:
        slide: The counts that were estimated from.
        found: The estimate.
        prior: As given to `estimate`.
        seed: Seed of the counts that are drawn.
        progress: Receives notes.
    """
    progress.note("fitting twice more to drawn counts, for the intervals")
    rng = np.random.default_rng([seed, 3])
    widening = _widening(slide, found, prior, rng)
    hidden = _hidden(slide, rng)
    drawn = draw_counts(found.rates.factors, found.rates.loadings, slide.rows.exposure, rng)
    again = _refitted(slide, drawn, hidden, found.recipe, prior)
    return _tables(slide, found, again, hidden, widening, rng), widening


def _widening(
    slide: SlideCounts, found: Estimate, prior: Prior | None, rng: np.random.Generator
) -> Widening:
    """Compare the held-out errors of the trial with those of a bootstrap of the trial."""
    trial, recipe = found.trial, found.recipe
    a = trial.rates

    def drawn(part: SparseRows) -> SparseRows:
        return draw_counts(a.factors, a.loadings, part.exposure, rng)

    seen = replace(slide, unseen=slide.unseen[:0])
    b = fit_rates(seen.with_rows(drawn(trial.fitted)), recipe, prior)
    held_out = [drawn(trial.held_out) for _ in range(_DRAWS)]
    error = shared_error(trial.held_out, a.factors, a.loadings, slide)
    of_bootstrap = np.mean(
        [shared_error(y, b.factors, b.loadings, slide) for y in held_out], axis=0
    )
    squared, squared_error = times_larger(error, of_bootstrap)
    has_own = np.zeros(len(slide.panel), bool)
    has_own[[ratio.gene for ratio in recipe.own]] = True
    own = []
    for chosen in (~has_own, has_own):
        real, boot = (
            _own_variance(slide, y, x, chosen) for y, x in ((trial.held_out, a), (held_out[0], b))
        )
        own.append(math.sqrt(max(real - max(squared, 1.0) * max(boot, 0.0), 0.0)))
    return Widening(math.sqrt(max(squared + squared_error, 1.0)), (own[0], own[1]))


def times_larger(error: Float64Array, of_bootstrap: Float64Array) -> tuple[float, float]:
    """Ratio of squared errors, (S, 4) of squares and scales, and its standard error.

    The ratio is that of the sums over squares, mean over the scales where the bootstrap's is above
    0. At every scale it is an estimate of the same number, and that of single bins rests on few
    UMIs. The standard error is the jackknife's over squares (Efron & Tibshirani 1993, ch. 11); of
    one square it is 0, since nothing is known of it.
    """

    def ratio(kept: BoolArray) -> float:
        above, below = error[kept].sum(0), of_bootstrap[kept].sum(0)
        there = below > 0
        return float((above[there] / below[there]).mean()) if there.any() else 1.0

    n = len(error)
    if n == 1:
        return ratio(np.ones(1, bool)), 0.0
    left_out = np.array([ratio(np.arange(n) != i) for i in range(n)])
    return ratio(np.ones(n, bool)), math.sqrt((n - 1) * float(left_out.var()))


def _own_variance(
    slide: SlideCounts, held_out: SparseRows, rates: Rates, chosen: BoolArray
) -> float:
    """Relative variance of some genes' held-out counts around their rates, beside Poisson noise.

    ``Σ ((y − μ)² − y) / Σ μ²`` over genes and squares; 0 where there are no such genes.
    """
    if not chosen.any():
        return 0.0
    row, col = np.divmod(slide.place, slide.tissue.shape[1])
    n_cols = -(-slide.tissue.shape[1] // _SQUARE_BINS)
    _, square = np.unique(row // _SQUARE_BINS * n_cols + col // _SQUARE_BINS, return_inverse=True)
    shape = int(square.max()) + 1, len(square)
    into = csr_matrix((np.ones(len(square)), (square, np.arange(len(square)))), shape)
    y = into @ csr_matrix(
        (held_out.count.astype(np.float64), held_out.gene, held_out.indptr),
        (len(square), held_out.n_genes),
    )
    y, w = y.tocsc()[:, chosen], rates.loadings[chosen]
    h = into @ (rates.factors * held_out.exposure[:, None])
    squares = float(np.einsum("gk,kl,gl->", w, h.T @ h, w))
    excess = squares
    for first in range(0, len(w), _GENES_AT_ONCE):
        part = y[:, first : first + _GENES_AT_ONCE].tocoo()
        mu = np.einsum("ik,ik->i", h[part.row], w[first + part.col])
        excess += float((part.data**2 - 2 * part.data * mu - part.data).sum())
    return excess / squares if squares else 0.0


def _hidden(slide: SlideCounts, rng: np.random.Generator) -> BoolArray:
    """(n,) observed bins that imitate those that failed: the same pattern, moved."""
    failed, seen = np.zeros_like(slide.tissue), np.zeros_like(slide.tissue)
    failed.ravel()[slide.unseen] = True
    seen.ravel()[slide.place] = True
    best, most = np.zeros_like(failed), 0
    for down in _SHIFTS:
        for right in _SHIFTS:
            moved = np.roll(failed, (down, right), (0, 1)) & seen
            if (size := int(moved.sum())) > most:
                best, most = moved, size
    return best.ravel()[slide.place]


def _refitted(
    slide: SlideCounts, drawn: SparseRows, hidden: BoolArray, recipe: Recipe, prior: Prior | None
) -> Rates:
    """Rates of all observed bins, of which the hidden ones were not seen."""
    kept, left = np.flatnonzero(~hidden), np.flatnonzero(hidden)
    part = replace(slide, rows=drawn.taken(kept), place=slide.place[kept], unseen=slide.place[left])
    if prior is not None:
        prior = prior.hiding(kept, left)
    found = fit_rates(part, recipe, prior)
    factors = np.empty((len(hidden), found.factors.shape[1]), np.float32)
    factors[kept], factors[left] = found.factors, found.filled
    return Rates(found.loadings, factors, found.filled[:0])


def _tables(
    slide: SlideCounts,
    found: Estimate,
    again: Rates,
    hidden: BoolArray,
    widening: Widening,
    rng: np.random.Generator,
) -> RateErrors:
    rates = found.rates
    mean = rates.loadings @ rates.factors.mean(0, dtype=np.float64)
    group, members = _groups(mean, [ratio.gene for ratio in found.recipe.own])
    n_classes = 1 + bool(hidden.any())
    tables = np.empty((4, len(SCALES_UM), n_classes, len(members), N_LEVELS))
    for s, scale_um in enumerate(SCALES_UM):
        bins = _bins_at(slide, hidden, scale_um // BIN_UM)
        if not len(bins.parts):  # no bin of this scale lies in tissue as a whole
            tables[:, s] = tables[:, s - 1]
            continue
        for c in range(n_classes):
            chosen = bins.of_class(c, rng)
            true = _summed(rates.factors, chosen)
            fitted = _summed(again.factors, chosen)
            for q, genes in enumerate(members):
                own = widening.own[int(q == len(members) - 1 and bool(found.recipe.own))]
                t = (true @ rates.loadings[genes].T).ravel()
                e = (fitted @ again.loadings[genes].T).ravel()
                level = e / np.tile(mean[genes] * (scale_um / BIN_UM) ** 2, len(true))
                tables[:, s, c, q] = _ratios(t / e, level, widening.factor, own)
    return RateErrors(SCALES_UM, group, mean, *tables)


def _groups(mean: Float64Array, own: list[int]) -> tuple[Int64Array, list[Int64Array]]:
    """Group of each gene, and up to 40 genes of each; those with own maps are the last group."""
    order = np.argsort(mean, kind="stable")
    order = order[~np.isin(order, own)]
    parts = [part for part in np.array_split(order, N_GROUPS) if len(part)]
    if own:
        parts.append(np.array(own, np.int64))
    group = np.empty(len(mean), np.int64)
    for q, part in enumerate(parts):
        group[part] = q
    return group, [
        part[np.linspace(0, len(part) - 1, min(len(part), _GENES_PER_GROUP)).astype(np.int64)]
        for part in parts
    ]


@dataclass(frozen=True, eq=False)
class _Bins:
    """Bins of a scale that are observed as a whole, each as indices of its 2 µm bins."""

    parts: Int64Array
    is_hidden: BoolArray

    def of_class(self, c: int, rng: np.random.Generator) -> Int64Array:
        chosen = np.flatnonzero(self.is_hidden == bool(c))
        if not len(chosen):
            chosen = np.arange(len(self.parts))
        most = _MOST_BINS if self.parts.shape[1] == 1 else _MOST_COARSE
        if len(chosen) > most:
            chosen = np.sort(rng.choice(chosen, most, replace=False))
        return self.parts[chosen]


def _bins_at(slide: SlideCounts, hidden: BoolArray, factor: int) -> _Bins:
    number = np.full(slide.tissue.shape, -1, np.int64)
    number.ravel()[slide.place] = np.arange(len(slide.place))
    n_rows, n_cols = slide.tissue.shape
    rows, cols = n_rows // factor, n_cols // factor
    parts = number.reshape(rows, factor, cols, factor).transpose(0, 2, 1, 3).reshape(-1, factor**2)
    whole = parts[(parts >= 0).all(axis=1)]
    return _Bins(whole, np.asarray(hidden[whole].any(axis=1)))


def _summed(factors: Float32Array, parts: Int64Array) -> Float64Array:
    found = np.zeros((len(parts), factors.shape[1]))
    for part in parts.T:
        found += factors[part]
    return found


def _ratios(
    ratio: Float64Array, level: Float64Array, factor: float, own: float
) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array]:
    """Levels, low and high ratio and sd, (L,) each, in parts of equally many values."""
    order = np.argsort(level, kind="stable")
    found = np.empty((4, N_LEVELS))
    tail = (1 - SHARE) / 2
    for i, part in enumerate(_split(order)):
        log = np.log(ratio[part])
        low, middle, high = np.quantile(log, [tail, 0.5, 1 - tail])
        below, above = (
            math.hypot(factor * distance, _Z * own) for distance in (middle - low, high - middle)
        )
        sd = math.hypot(factor * float(ratio[part].std()), own)
        found[:, i] = (
            np.median(level[part]), math.exp(middle - below), math.exp(middle + above), sd,
        )  # fmt: skip
    found[0] = np.maximum.accumulate(np.maximum(found[0], 1e-12))
    return found[0], found[1], found[2], found[3]


def _split(order: Int64Array) -> Iterator[Int64Array]:
    """Parts of equally many values, none of them empty."""
    for part in np.array_split(order, N_LEVELS):
        yield part if len(part) else order
