"""Windowed SSIM of predicted and observed maps, summed patch by patch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from virchow_st.types import Float64Array


@dataclass
class SsimMean:
    """Mean SSIM per gene over all windows of all patches. The kernel says how maps are scaled.

    Attributes:
        sums: (G,) float64, SSIM summed over windows.
        n_windows: windows so far, the same for every gene.
    """

    n_genes: int
    sums: Float64Array = field(init=False)
    n_windows: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.sums = np.zeros(self.n_genes)

    def add(self, sums: Float64Array, n_windows: int) -> None:
        """Add a patch: a row of what `kernels.ssim.masked_ssims` gives, and its windows."""
        self.sums += sums
        self.n_windows += n_windows

    def compute(self) -> Float64Array:
        """(G,) float64 in [−1, 1]; NaN where no window lay wholly in tissue."""
        if self.n_windows == 0:
            return np.full(self.n_genes, np.nan)
        return self.sums / self.n_windows
