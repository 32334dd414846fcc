"""Factors of every 2 µm bin, by EM with smoothing between the steps (EMS).

The count of gene g in bin i is modelled as Poisson with mean ``e_i · Σ_k h_ik · W_gk``. A step of
EM divides the counts of each bin among the factors in proportion to their share of its rate, and
takes what a factor gets as its new rate. At 2 µm a bin has few UMIs, so that EM alone fits their
noise; in EMS (Silverman, Jones, Wilson & Nychka, J. R. Stat. Soc. B 52, 1990, 271) a Gaussian
smooths each factor's UMIs after every step. Its width falls from 16 µm to a final width, so that
neighbours decide which programmes a bin has before its own few counts do.

Letters: n tissue bins, G genes, K factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from virchow_st.denoise.smooth import Smoother
from virchow_st.kernels.factorise import expected_umis
from virchow_st.runtime.devices import core_count
from virchow_st.training.rows import SparseRows
from virchow_st.types import Float32Array, Float64Array

WIDTHS_UM = (16.0, 11.3, 8.0, 5.7, 4.8, 4.0, 3.4, 2.8, 2.4, 2.0, 1.4)
"""Standard deviations of the Gaussian, µm, one after another; the last used is chosen by counts."""
STEPS_PER_WIDTH = 3
"""Steps of EM at each width."""
Guide = Callable[[int], Float32Array]
"""From the index of a factor to its map (n,) > 0."""
_FLOOR = np.float32(1e-10)  # a factor of 0 would stay 0
_CHUNK = 1 << 16  # bins whose factors a thread computes at once


def fit_factors(
    counts: SparseRows,
    loadings: Float64Array,
    smoother: Smoother,
    widths_um: Sequence[float],
    on_width: Callable[[float, Float32Array], None] | None = None,
    n_steps: int = STEPS_PER_WIDTH,
    guide: Guide | None = None,
) -> Float32Array:
    """Fit the factors of every tissue bin with the loadings fixed.

    The result does not depend on the number of threads. Beside the counts, the factors are the
    only large array, 4·n·K bytes: 1.4 GB for 11 million bins and 32 factors.

    Args:
        counts: Counts of the n tissue bins; their exposure is that of the smoother, times the
            share of the UMIs that these counts are.
        loadings: (G, K) > 0, each column sums to 1.
        smoother: Of the same n bins.
        widths_um: Standard deviation of the Gaussian at each stage, µm, falling.
        on_width: Called after each stage with its width and the factors so far.
        n_steps: Steps of EM at each width.
        guide: Map of each factor whose structure it has within the Gaussian, see
            `virchow_st.denoise.prior`; None for none.

    Returns:
        (n, K) float32 > 0, UMIs per 2 µm bin of exposure 1. The sum of exposure times factors
        over all bins and factors is the number of UMIs.
    """
    K = loadings.shape[1]
    with ThreadPoolExecutor(core_count()) as pool:
        start = smoother.smoothed(counts.totals.astype(np.float32), widths_um[0])
        factors = np.repeat(start[:, None] / np.float32(K), K, axis=1)
        set_rates(factors, share_of(counts, smoother))
        for width_um in widths_um:
            fit_more(counts, factors, loadings, smoother, width_um, pool, n_steps, guide)
            if on_width is not None:
                on_width(width_um, factors)
    return factors


def fit_more(
    counts: SparseRows,
    factors: Float32Array,
    loadings: Float64Array,
    smoother: Smoother,
    width_um: float,
    pool: ThreadPoolExecutor,
    n_steps: int = STEPS_PER_WIDTH,
    guide: Guide | None = None,
) -> None:
    """Go on from factors (n, K) with steps of EM at one width, in place; see `fit_factors`."""
    share = share_of(counts, smoother)

    def smooth(k: int) -> None:
        of_factor = None if guide is None else guide(k)
        factors[:, k] = smoother.smoothed(factors[:, k], width_um, of_factor)

    for _ in range(n_steps):
        expect(counts, factors, loadings, pool)
        list(pool.map(smooth, range(factors.shape[1])))
        set_rates(factors, share)


def share_of(counts: SparseRows, smoother: Smoother) -> np.float32:
    """Share of the UMIs that the counts are."""
    return np.float32(counts.exposure.sum() / smoother.exposure.sum(dtype=np.float64))


def expect(
    counts: SparseRows, factors: Float32Array, loadings: Float64Array, pool: ThreadPoolExecutor
) -> None:
    """Replace the factors by their expected UMIs, in place: a bin reads its own factors only."""
    log_sums = np.empty(len(counts))

    def compute(first: int) -> None:
        last = min(first + _CHUNK, len(counts))
        expected_umis(
            counts.indptr, counts.gene, counts.count, factors, loadings, first, last, factors,
            log_sums,
        )  # fmt: skip

    list(pool.map(compute, range(0, len(counts), _CHUNK)))


def set_rates(rates: Float32Array, share: np.float32) -> None:
    """From rates of a share of the UMIs to those of all, in place, not below the floor."""
    rates /= share
    np.maximum(rates, _FLOOR, out=rates)


def log_likelihood(counts: SparseRows, factors: Float32Array, loadings: Float64Array) -> float:
    """Poisson log-likelihood of counts at the rates of a field, without Σ ln x!.

    Args:
        counts: Counts of n bins, such as those held out; their exposure multiplies the rates.
        factors: (n, K) > 0.
        loadings: (G, K) > 0.

    Example:
        >>> counts = SparseRows.from_dense(np.array([[2, 0]]), exposure=np.array([0.5]))
        >>> factors, loadings = np.full((1, 1), 3.0, np.float32), np.array([[0.4], [0.6]])
        >>> rate = 0.5 * 3.0 * np.array([0.4, 0.6])
        >>> found = log_likelihood(counts, factors, loadings)
        >>> bool(np.isclose(found, 2 * np.log(rate[0]) - rate.sum()))
        True
    """
    total = float((counts.exposure @ factors) @ loadings.sum(0))

    def log_sum(first: int) -> float:
        last = min(first + _CHUNK, len(counts))
        own = factors[first:last]
        log_sums = np.empty(len(own))
        expected_umis(
            counts.indptr[first : last + 1], counts.gene, counts.count, own, loadings, 0, len(own),
            np.empty_like(own), log_sums,
        )  # fmt: skip
        return float(log_sums.sum())

    with ThreadPoolExecutor(core_count()) as pool:
        log_sums = sum(pool.map(log_sum, range(0, len(counts), _CHUNK)))
    return log_sums + float(counts.totals @ np.log(counts.exposure)) - total
