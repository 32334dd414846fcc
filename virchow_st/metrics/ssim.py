"""Windowed SSIM of predicted and observed maps, patch by patch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from virchow_st.kernels.ssim import masked_ssim_stack
from virchow_st.types import Array, BoolArray, Float64Array


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

    def update(self, rate: Array, counts: Array, mask: BoolArray) -> None:
        """Add a patch: rate and counts (G, R, C), mask (R, C) bool."""
        sums, n_windows = masked_ssim_stack(rate, counts, mask)
        self.sums += sums
        self.n_windows += n_windows

    def compute(self) -> Float64Array:
        """(G,) float64 in [−1, 1]; NaN where no window lay wholly in tissue."""
        if self.n_windows == 0:
            return np.full(self.n_genes, np.nan)
        return self.sums / self.n_windows
