"""Visibility of the grid in a predicted map: steps at the borders of tokens and patches.

Letters: G genes, R = C = 128 bins per side of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.types import BoolArray, Float32Array, Float64Array


@dataclass(frozen=True)
class Seams:
    """Mean step across borders divided by the mean step elsewhere, over genes; 1 means no seam.

    Attributes:
        token: at the borders of tokens within patches; NaN if no bins were compared.
        patch: at the borders of adjacent patches; NaN if there are none.
    """

    token: float
    patch: float


class SeamAccumulator:
    """Sums of steps between neighbouring 2 µm bins, both of them tissue.

    A step is the absolute difference of two rates. In a map without traces of tokens and patches,
    steps have the same mean size everywhere.

    Args:
        n_genes: G.
        token_bins: bins per side of a token.
    """

    def __init__(self, n_genes: int, token_bins: int) -> None:
        self._token_bins = token_bins
        # By kind of place: inside tokens, between tokens, between patches.
        self._sums: Float64Array = np.zeros((3, n_genes))
        self._n: Float64Array = np.zeros(3)

    def update(self, rate: Float32Array, tissue_mask: BoolArray) -> None:
        """Add a patch: rates (G, 128, 128) and tissue (128, 128)."""
        for maps, mask in ((rate, tissue_mask), (rate.swapaxes(1, 2), tissue_mask.T)):
            steps = np.abs(np.diff(maps, axis=2))
            both = mask[:, 1:] & mask[:, :-1]
            at_border = np.arange(1, maps.shape[2]) % self._token_bins == 0
            for kind, columns in enumerate((~at_border, at_border)):
                self._add(kind, steps[:, :, columns], both[:, columns])

    def update_border(
        self,
        rate: Float32Array,
        tissue_mask: BoolArray,
        next_rate: Float32Array,
        next_mask: BoolArray,
        *,
        is_below: bool,
    ) -> None:
        """Add the border between a patch and the next one, to its right or below it."""
        if is_below:
            rate, next_rate = rate.swapaxes(1, 2), next_rate.swapaxes(1, 2)
            tissue_mask, next_mask = tissue_mask.T, next_mask.T
        steps = np.abs(next_rate[:, :, :1] - rate[:, :, -1:])
        self._add(2, steps, next_mask[:, :1] & tissue_mask[:, -1:])

    def _add(self, kind: int, steps: Float32Array, counts: BoolArray) -> None:
        self._sums[kind] += np.where(counts, steps, 0.0).sum((1, 2), dtype=np.float64)
        self._n[kind] += counts.sum()

    def compute(self) -> Seams:
        """Compute the scores from all patches added."""
        with np.errstate(invalid="ignore", divide="ignore"):
            inside, token, patch = self._sums / self._n[:, None]
            ratios = np.stack([token, patch]) / inside
        varies = inside > 0
        found = [float(r[varies].mean()) if varies.any() else float("nan") for r in ratios]
        return Seams(*found)
