"""Inputs of the kernels for sparse counts and factors, and how the table runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from virchow_st.kernels.pooling import pool_mask
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, Array, Float64Array


def row_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Counts of 400 rows of 5,000 genes, one row empty, as CSR, and weights of 12 factors."""
    share = rng.lognormal(0.0, 2.0, 5_000)
    counts = rng.poisson(500 * share / share.sum(), (400, 5_000))
    counts[7] = 0
    row, gene = np.nonzero(counts)
    start = np.searchsorted(row, np.arange(len(counts) + 1))
    weights = rng.gamma(1.0, size=(400, 12)), rng.gamma(1.0, size=(5_000, 12))
    return start, gene.astype(np.int32), counts[row, gene].astype(np.float32), *weights


def expected_umis_by(kernel: Callable[..., None]) -> Callable[..., tuple[Float64Array, ...]]:
    """Wrap a function that fills its outputs into one that returns them."""

    def of_all(start: Array, *inputs: Array) -> tuple[Float64Array, ...]:
        out, log_sums = np.full_like(inputs[2], np.nan), np.full(len(start) - 1, np.nan)
        kernel(start, *inputs, 0, len(log_sums), out, log_sums)
        return out, log_sums

    return of_all


def patch_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Counts of 300 genes in a patch, two factors' predictions at 8 µm, and the scored bins."""
    G, K, factor = 300, 6, 4
    n_umi = rng.poisson(rng.lognormal(3.0, 1.5, G))
    n_umi[5] = 0
    cell = np.repeat(np.arange(G), n_umi) * PATCH_POSITIONS
    cells, count = np.unique(cell + rng.integers(0, PATCH_POSITIONS, len(cell)), return_counts=True)
    gene, position = np.divmod(cells, PATCH_POSITIONS)
    start = np.searchsorted(gene, np.arange(G + 1))
    mask = np.ones((PATCH_BINS, PATCH_BINS), np.bool_)
    mask[:40], mask[70, 90] = False, False
    factors = rng.gamma(0.5, size=(2, PATCH_POSITIONS // factor**2, K)).astype(np.float32)
    loadings = rng.dirichlet(np.full(G, 0.1), K).T.astype(np.float32)
    loadings[7] = 0
    counts = start, position.astype(np.uint16), count.astype(np.uint32)
    return *counts, loadings, factors, pool_mask(mask, factor), factor, 1e-6


def factor_moments_by(kernel: Callable[..., None]) -> Callable[..., Float64Array]:
    """Wrap a function that adds to its output into one that returns it."""

    def of_all(start: Array, *inputs: Any) -> Float64Array:
        out = np.ones((len(start) - 1, 7))
        kernel(start, *inputs, 0, len(out), out)
        return out

    return of_all
