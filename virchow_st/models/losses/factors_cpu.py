"""Multi-scale Poisson deviance of a rate field of factors on a CPU, with the numba kernels.

Shape suffixes: B patches, G genes, K factors, R = C = bins per side at 2 µm, T bins of all levels,
S scales, N non-zeros, M = B·G maps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from virchow_st.kernels import factors as kernels
from virchow_st.kernels.levels import level_starts
from virchow_st.models.losses.base import Counts
from virchow_st.models.losses.fused import side_by_side
from virchow_st.types import Array


class FusedFactors:
    """Deviances of a batch, and what their gradients need.

    These are the factors of all levels and a quotient per count and scale; with them, the gradient
    of a single scale, which GradNorm needs, repeats nothing.

    Args:
        log_factors_BKRC: (B, K, R, C) log h, float32 or float64, on the CPU.
        loadings_GK: (G, K) W, of the same dtype.
        counts: Sparse UMI counts (B, G, R, C).
        mask_BRC: (B, R, C) bool, True = tissue.
        scales_um: Sides of the bins in increasing order, µm.
        measured_BG: (B, G) bool, or None if every gene was measured.

    Attributes:
        sums_S: (S,) float64 half deviances, summed over bins and genes.
    """

    sums_S: Tensor

    def __init__(
        self,
        log_factors_BKRC: Tensor,
        loadings_GK: Tensor,
        counts: Counts,
        mask_BRC: Tensor,
        scales_um: tuple[int, ...],
        measured_BG: Tensor | None,
    ) -> None:
        log_factors, self.loadings = _array(log_factors_BKRC), _array(loadings_GK)
        self.shape = B, _, R, C = log_factors.shape
        self.levels_S = np.array([scale.bit_length() - 2 for scale in scales_um])  # 2 µm is 0
        mask = _array(mask_BRC)
        self.lists = np.asarray(counts.start), np.asarray(counts.position)
        all_genes = np.ones((B, len(self.loadings)), np.bool_)
        self.measured = all_genes if measured_BG is None else _array(measured_BG)
        self.factors_BTK = _factor_levels(log_factors, mask, int(self.levels_S[-1]) + 1)
        n_coarsest = (R * C) >> (2 * int(self.levels_S[-1]))
        self.factor_sums_BK = self.factors_BTK[:, -n_coarsest:].sum(1, dtype=np.float64)
        self.loading_sums_BK = self.measured.astype(np.float64) @ self.loadings

        sums_MS = np.empty((len(self.lists[0]) - 1, len(self.levels_S)))
        lists = (*self.lists, np.asarray(counts.count))
        self.ratio_SN = np.empty((len(self.levels_S), len(lists[2])), log_factors.dtype)
        side_by_side(
            lambda first, last: kernels.factor_half_deviances(
                self.factors_BTK, self.loadings, mask, self.measured, *lists, self.levels_S,
                first, last, sums_MS, self.ratio_SN,
            ),
            len(sums_MS),
        )  # fmt: skip
        n_expected = (self.factor_sums_BK * self.loading_sums_BK).sum()  # the same at every scale
        self.sums_S = torch.from_numpy(sums_MS.sum(0) + n_expected)

    def log_factor_gradient(self, weights_S: Tensor) -> Tensor:
        """Gradient of the weighted sum of `sums_S` with respect to log h, (B, K, R, C)."""
        dtype = self.factors_BTK.dtype
        out_BKRC = np.empty(self.shape, dtype)
        sums, weights = self.loading_sums_BK.astype(dtype), weights_S.numpy().astype(dtype)
        side_by_side(
            lambda first, last: kernels.log_factor_gradient(
                self.factors_BTK, self.loadings, sums, *self.lists, self.ratio_SN, self.levels_S,
                weights, first, last, out_BKRC,
            ),
            len(out_BKRC),
        )  # fmt: skip
        return torch.from_numpy(out_BKRC)

    def loading_gradient(self, weights_S: Tensor) -> Tensor:
        """Gradient of the weighted sum of `sums_S` with respect to W, (G, K)."""
        dtype = self.factors_BTK.dtype
        out_GK = np.empty_like(self.loadings)
        sums, weights = self.factor_sums_BK.astype(dtype), weights_S.numpy().astype(dtype)
        side_by_side(
            lambda first, last: kernels.loading_gradient(
                self.factors_BTK, sums, *self.shape[2:], self.measured, *self.lists, self.ratio_SN,
                self.levels_S, weights, first, last, out_GK,
            ),
            len(out_GK),
        )  # fmt: skip
        return torch.from_numpy(out_GK)


def _factor_levels(log_factors: Array, mask: Array, n_levels: int) -> Array:
    """Factors of the bins of all levels, (B, T, K)."""
    B, K, R, C = log_factors.shape
    out_BTK = np.empty((B, level_starts(R, C, n_levels)[-1], K), log_factors.dtype)
    side_by_side(
        lambda first, last: kernels.factor_levels(
            log_factors, mask, n_levels, first, last, out_BTK
        ),
        B * (R >> (n_levels - 1)),
    )
    return out_BTK


def _array(x: Tensor) -> Array:
    return x.contiguous().numpy()
