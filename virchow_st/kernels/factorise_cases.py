"""Inputs and calls that compare the kernel of the factorisation with its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from virchow_st.types import Array, Float64Array


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
