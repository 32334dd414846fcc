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
from dataclasses import dataclass

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
CHUNK = 1 << 14
"""Bins that a thread computes at once."""
_WIDER = 2.0
_REACH = 2.5  # standard deviations


def can_widen(width_um: float) -> bool:
    """Whether there is a wider Gaussian than this one."""
    return width_um < MOST_UM


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What the weights among bins that are alike are computed from.

    Attributes:
        feature: (n, K) float32, square roots of the factors by the narrow Gaussian.
        base: Exposure, (n, 1), or exposure times guide, (n, K); float32.
        guides: (n, K) float32, the guide of each factor; None without one.
        kernel: Weights of the wider Gaussian along a row or column of bins.
        span: Squared distance of features at which a bin has no weight.
    """

    feature: Float32Array
    base: Float32Array
    guides: Float32Array | None
    kernel: Float32Array
    span: float

    @classmethod
    def of(
        cls,
        counts: SparseRows,
        factors: Float32Array,
        smoother: Smoother,
        width_um: float,
        tolerance: float,
        guide: Guide | None,
    ) -> Surroundings:
        """Those of the factors (n, K) of the narrow Gaussian; see `fit_alike`."""
        K = factors.shape[1]
        share = float(share_of(counts, smoother))
        noise = K / (8 * math.pi * (width_um / BIN_UM) ** 2 * share)
        kernel = gaussian(min(_WIDER * width_um, MOST_UM) / BIN_UM, _REACH)
        guides = None
        if guide is not None:
            guides = np.empty_like(factors)
            for k in range(K):
                guides[:, k] = guide(k)
        base = smoother.exposure[:, None]
        base = base if guides is None else base * guides
        return cls(np.sqrt(factors), base, guides, kernel, tolerance * noise)


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
    near = Surroundings.of(counts, factors, smoother, width_um, tolerance, guide)
    n = len(factors)
    share, number = share_of(counts, smoother), smoother.numbers()
    found, smoothed = factors.copy(), np.empty_like(factors)
    with ThreadPoolExecutor(core_count()) as pool:
        for _ in range(STEPS_PER_WIDTH):
            expect(counts, found, loadings, pool)
            umis = found.sum(axis=0, dtype=np.float64)

            def smooth(
                first: int, umis_nK: Float32Array = found, out: Float32Array = smoothed
            ) -> None:
                given = near.base, near.feature, number, smoother.place, near.kernel, near.span
                alike_means(umis_nK, *given, first, min(first + CHUNK, n), out)

            list(pool.map(smooth, range(0, n, CHUNK)))
            if near.guides is not None:
                smoothed *= near.guides
            smoothed *= (umis / np.maximum(smoother.exposure @ smoothed, 1e-30)).astype(np.float32)
            set_rates(smoothed, share)
            found, smoothed = smoothed, found
    return found
