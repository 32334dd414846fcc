"""Sums over the bins of a patch whose exposures differ, in the columns of those without.

The expected UMIs of a bin are e·λ, with exposure e and rate λ. Scores compare λ with the counts per
exposure K/e, whose mean is λ and whose variance is λ/e, and weight every bin by e. A bin that
captures half as much then counts half, and stripes of the exposure, which a prediction of them
would reproduce in the counts, add to no score. With an exposure of 1 the sums are those of
`metrics.correlation.moments` and `metrics.deviance.poisson_sums`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.kernels.pooling import sum_pool
from virchow_st.metrics import correlation
from virchow_st.metrics import deviance as poisson_scores
from virchow_st.types import Array, BoolArray, Float64Array


@dataclass(frozen=True)
class Exposed:
    """Exposures of the bins of a patch at one scale.

    Attributes:
        exposure: (R, C) float64, mean exposure of the 2 µm bins of each scored bin; 1 outside
            tissue.

    Example:
        Two bins of rate 2, of which one captures half:

        >>> bins = Exposed.of(np.array([[1.0, 0.5]]), np.ones((1, 2), bool), factor=1)
        >>> rate, counts = np.array([[[2.0, 2.0]]]), np.array([[[3, 1]]])
        >>> bins.moments(rate, counts, np.ones((1, 2), bool)).tolist()
        [[1.5, 3.0, 4.0, 6.0, 11.0, 8.0]]
    """

    exposure: Float64Array

    @staticmethod
    def of(exposure: Array, tissue_mask: BoolArray, factor: int) -> Exposed:
        """Exposures of bins of ``factor`` × ``factor`` 2 µm bins, from those of 2 µm bins."""
        inside = np.where(tissue_mask, exposure, 1.0).astype(np.float64)
        return Exposed(sum_pool(inside[None], factor)[0] / factor**2 if factor > 1 else inside)

    def moments(self, rate: Array, counts: Array, mask: BoolArray) -> Float64Array:
        """(G, 6) Σe, Σeλ, ΣK, Σeλ², ΣK²/e and ΣλK over the masked bins.

        Args:
            rate: (G, R, C) λ, UMIs per bin at an exposure of 1.
            counts: (G, R, C) K.
            mask: (R, C) bool.
        """
        root = np.sqrt(self.exposure)
        out = correlation.moments(rate * root, counts / root, mask)
        out[:, correlation.N] = self.exposure[mask].sum()
        out[:, correlation.SX] = (rate[:, mask] * self.exposure[mask]).sum(1)
        out[:, correlation.SY] = counts[:, mask].sum(1, dtype=np.float64)
        return out

    def poisson_sums(self, rate: Array, counts: Array, mask: BoolArray) -> Float64Array:
        """(G, 4) number of bins with counts, Σeλ, ΣK ln λ and ΣK ln(K/e).

        The deviance of the expected UMIs e·λ, and that of a constant rate at the same exposures,
        follow from these sums, with Σe for the number of bins, as they do without exposure.
        """
        out = poisson_scores.poisson_sums(rate * self.exposure, counts, mask)
        of_exposure = counts[:, mask] @ np.log(self.exposure[mask])
        out[:, poisson_scores.K_LOG_RATE] -= of_exposure
        out[:, poisson_scores.K_LOG_K] -= of_exposure
        return out

    def noise(self, counts: Array, mask: BoolArray) -> Float64Array:
        """(G,) ΣK/e, an estimate of the Poisson noise in ΣK²/e."""
        return np.asarray(counts[:, mask] @ (1 / self.exposure[mask]))
