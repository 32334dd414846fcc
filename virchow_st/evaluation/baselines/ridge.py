"""Ridge regression from tokens to counts: what a decoder has to add to a linear look."""

from __future__ import annotations

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.evaluation.baselines.regression import LinearMap, NormalEquations
from virchow_st.kernels.pooling import sum_pool
from virchow_st.types import PATCH_BINS, Array, BoolArray, Float32Array, Float64Array

PENALTIES = tuple(10.0 ** (step / 2) for step in range(-10, 5))
"""Tried penalties, in units of a standardised feature's variance."""


class RidgeFit:
    """Normal equations of the training tokens, and of the validation tokens that pick the penalty.

    Args:
        grid, dim: T and D of the tokens.
        n_genes: G.
    """

    def __init__(self, grid: int, dim: int, n_genes: int) -> None:
        self._bins = PATCH_BINS // grid
        self._train, self._validation = (NormalEquations(dim, n_genes) for _ in range(2))

    def add(
        self, tokens: Array, counts: Float32Array, tissue_mask: BoolArray, validates: bool
    ) -> None:
        """Add a patch; (T, T, D), (G, 128, 128) and (128, 128).

        An observation is a token at least half of whose bins are tissue; its target is the mean
        UMIs of those bins.
        """
        n_tissue = sum_pool(tissue_mask[None].astype(np.float32), self._bins)[0]  # (T, T)
        chosen = 2 * n_tissue >= self._bins**2
        sums = sum_pool(counts * tissue_mask, self._bins)[:, chosen]  # (G, n)
        y = sums / n_tissue[chosen]
        x = tokens[chosen].astype(np.float64)  # (n, D)
        equations = self._validation if validates else self._train
        equations.add(x, (y @ x).T, y.sum(1), (y**2).sum(1))

    def solve(self) -> tuple[LinearMap, float]:
        """The map to UMIs per 2 µm bin that errs least on the validation tokens, and its penalty.

        Raises:
            ConfigError: no token of one of the two parts is half tissue.
        """
        for part, equations in (("training", self._train), ("validation", self._validation)):
            if not equations.n:
                raise ConfigError(
                    f"ridge baseline: expected {part} patches with tokens in tissue; got none; "
                    f"extract with a larger --min-tissue and train anew"
                )
        fits = [self._train.solve(penalty) for penalty in PENALTIES]
        errors = [self._validation.error(fit) for fit in fits]
        best = int(np.argmin(errors))
        return fits[best], PENALTIES[best]


def token_rates(fit: LinearMap, tokens: Array) -> Float64Array:
    """UMIs per 2 µm bin (G, 128, 128) from tokens (T, T, D), the same all over a token."""
    grid = len(tokens)
    values = fit(tokens.reshape(grid * grid, -1).astype(np.float32))
    side = PATCH_BINS // grid
    return values.T.reshape(-1, grid, grid).repeat(side, 1).repeat(side, 2)
