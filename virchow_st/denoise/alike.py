"""Factors smoothed among the bins that are alike.

A Gaussian that is narrow enough for the border of a gland averages too few UMIs within it. Here a
wider Gaussian takes, around each bin, those bins whose factors by the narrow one are like its own
(`virchow_st.kernels.alike`). Factors are compared by their square roots, whose noise does not
depend on the rate: the Gaussian of s bins averages 4π s² bins, so that the squared distance of two
bins of equal rates is K / (8π s²) in expectation. The tolerance is the multiple of it at which a
bin has no weight; it is chosen by held-out counts.

Letters: n tissue bins, K factors.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from virchow_st.denoise.ems import STEPS_PER_WIDTH, Guide, expect, set_rates, share_of
from virchow_st.denoise.smooth import Smoother, gaussian
from virchow_st.kernels.alike import alike_means
from virchow_st.runtime.devices import core_count
from virchow_st.training.rows import SparseRows
from virchow_st.types import BIN_UM, Float32Array, Float64Array

TOLERANCES = (4.0, 2.5, 6.0)
"""Tolerances to choose from, the usual one first."""
MOST_UM = 11.3
"""Largest standard deviation of the wider Gaussian, µm."""
_WIDER = 2.0
_REACH = 2.5  # standard deviations
_CHUNK = 1 << 14  # bins that a thread computes at once


def can_widen(width_um: float) -> bool:
    """Whether there is a wider Gaussian than this one."""
    return width_um < MOST_UM


def fit_alike(
    counts: SparseRows,
    factors: Float32Array,
    loadings: Float64Array,
    smoother: Smoother,
    width_um: float,
    tolerance: float,
    guide: Guide | None = None,
) -> Float32Array:
    """Go on with EM from the factors of a Gaussian, smoothing among the bins that they make alike.

    Args:
        counts: Counts of the n tissue bins.
        factors: (n, K) of the Gaussian of ``width_um``; they are not changed.
        loadings: (G, K) > 0, each column sums to 1.
        smoother: Of the n bins.
        width_um: Standard deviation, µm, below `MOST_UM`.
        tolerance: See above, > 0.
        guide: Map of each factor whose structure it has within the Gaussian; None for none.

    Returns:
        (n, K) float32 > 0. The UMIs of a factor over the slide stay what they are.
    """
    n, K = factors.shape
    share = share_of(counts, smoother)
    noise = K / (8 * math.pi * (width_um / BIN_UM) ** 2 * float(share))
    span = tolerance * noise
    kernel = gaussian(min(_WIDER * width_um, MOST_UM) / BIN_UM, _REACH)
    feature, exposure = np.sqrt(factors), smoother.exposure[:, None]
    guides = None
    if guide is not None:
        guides = np.empty_like(factors)
        for k in range(K):
            guides[:, k] = guide(k)
    base = exposure if guides is None else exposure * guides
    found, smoothed = factors.copy(), np.empty_like(factors)
    place, number = smoother.place, smoother.numbers()
    with ThreadPoolExecutor(core_count()) as pool:
        for _ in range(STEPS_PER_WIDTH):
            expect(counts, found, loadings, pool)
            umis = found.sum(axis=0, dtype=np.float64)

            def smooth(
                first: int, umis_nK: Float32Array = found, out: Float32Array = smoothed
            ) -> None:
                last = min(first + _CHUNK, n)
                alike_means(umis_nK, base, feature, number, place, kernel, span, first, last, out)

            list(pool.map(smooth, range(0, n, _CHUNK)))
            if guides is not None:
                smoothed *= guides
            smoothed *= (umis / np.maximum(smoother.exposure @ smoothed, 1e-30)).astype(np.float32)
            set_rates(smoothed, share)
            found, smoothed = smoothed, found
    return found
