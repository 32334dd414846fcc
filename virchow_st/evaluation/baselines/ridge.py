"""Ridge baseline: linear regression from tokens to counts, with an L2 penalty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.evaluation.baselines.regression import LinearMap, NormalEquations
from virchow_st.kernels.pooling import sum_pool
from virchow_st.types import PATCH_BINS, Array, BoolArray, Float32Array, Float64Array

PENALTIES = tuple(10.0 ** (step / 2) for step in range(-10, 5))
"""Candidate penalties, for features of variance 1."""


class RidgeFit:
    """Ridge regression on training tokens, with the penalty selected on validation tokens.

    Args:
        grid, dim: Tokens per side T and token channels D.
        n_genes: Number of genes G.
    """

    def __init__(self, grid: int, dim: int, n_genes: int) -> None:
        self._bins = PATCH_BINS // grid
        self.train, self.validation = (NormalEquations(dim, n_genes) for _ in range(2))

    def add(
        self, tokens: Array, counts: Float32Array, tissue_mask: BoolArray, validates: bool
    ) -> None:
        """Add one patch.

        An observation is a token with at least half of its bins in tissue; its target is the mean
        UMIs of these bins.

        Args:
            tokens: (T, T, D).
            counts: (G, 128, 128) float32, UMIs per 2 µm bin.
            tissue_mask: (128, 128) bool, True = tissue.
            validates: Whether it is a validation patch; else it is a training patch.
        """
        n_tissue = sum_pool(tissue_mask[None].astype(np.float32), self._bins)[0]  # (T, T)
        chosen = 2 * n_tissue >= self._bins**2
        sums = sum_pool(counts * tissue_mask, self._bins)[:, chosen]  # (G, n)
        y = sums / n_tissue[chosen]
        x = tokens[chosen].astype(np.float64)  # (n, D)
        equations = self.validation if validates else self.train
        equations.add(x, (y @ x).T, y.sum(1), (y**2).sum(1))

    def solve(self, penalty: float) -> LinearMap:
        """Linear map to UMIs per 2 µm bin."""
        return self.train.solve(penalty)


def solve_together(groups: Sequence[RidgeFit]) -> tuple[list[LinearMap], float]:
    """Linear maps to UMIs per 2 µm bin of groups of genes, and the penalty that all share.

    It has the smallest validation error, averaged over the genes that vary in validation patches.

    Args:
        groups: Fits of genes that the same stores measured.

    Raises:
        ConfigError: No training token of a group, or no validation token of any, lies at least half
            in tissue.
    """
    trained = all(group.train.n for group in groups)
    validated = [group for group in groups if group.validation.n]
    for part, is_there in (("training", trained), ("validation", validated)):
        if not is_there:
            raise ConfigError(
                f"ridge baseline: expected {part} patches with tokens in tissue; got none; "
                f"extract with a larger --min-tissue and train again"
            )
    errors = []
    for penalty in PENALTIES:
        of_genes = [group.validation.errors(group.solve(penalty)) for group in validated]
        defined = np.concatenate(of_genes)
        errors.append(float(defined[~np.isnan(defined)].mean()))
    best = PENALTIES[int(np.argmin(errors))]
    return [group.solve(best) for group in groups], best


def token_rates(fit: LinearMap, tokens: Array) -> Float64Array:
    """Predict UMIs per 2 µm bin, (G, 128, 128), from tokens (T, T, D); constant within a token."""
    grid = len(tokens)
    values = fit(tokens.reshape(grid * grid, -1).astype(np.float32))
    side = PATCH_BINS // grid
    return values.T.reshape(-1, grid, grid).repeat(side, 1).repeat(side, 2)
