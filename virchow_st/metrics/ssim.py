"""Mean windowed SSIM of predicted and observed maps, accumulated patch by patch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from virchow_st.types import Float64Array


@dataclass
class SsimMean:
    """Mean SSIM per gene over all windows of all patches.

    `kernels.ssim` defines SSIM and how maps are scaled before it is computed.

    Attributes:
        n_genes: Number of genes G.
        sums: (G,) float64, SSIM summed over windows.
        n_windows: Number of windows so far, the same for every gene.

    Example:
        >>> mean = SsimMean(n_genes=2)
        >>> mean.add(np.array([4.0, 1.0]), n_windows=4)
        >>> mean.compute()
        array([1.  , 0.25])
    """

    n_genes: int
    sums: Float64Array = field(init=False)
    n_windows: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.sums = np.zeros(self.n_genes)

    def add(self, sums: Float64Array, n_windows: int) -> None:
        """Add one patch: (G,) sums from `kernels.ssim.masked_ssims`, and its number of windows."""
        self.sums += sums
        self.n_windows += n_windows

    def compute(self) -> Float64Array:
        """Mean SSIM, (G,) float64 in [−1, 1]; NaN if no window lies entirely in tissue."""
        if self.n_windows == 0:
            return np.full(self.n_genes, np.nan)
        return self.sums / self.n_windows
