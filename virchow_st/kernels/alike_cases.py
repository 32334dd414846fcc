"""Inputs on which `virchow_st.kernels.alike` and its reference are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from virchow_st.types import Array, Float32Array


def inputs(rng: np.random.Generator, by_factor: bool = False) -> tuple[Any, ...]:
    """UMIs of 8 factors in a tissue of 64 × 48 bins with holes, and features like first rates."""
    shape, K = (64, 48), 8
    tissue = rng.random(shape) < 0.9
    place = np.flatnonzero(tissue)
    number = np.full(shape, -1, np.int32)
    number.ravel()[place] = np.arange(len(place))
    rate = np.repeat(rng.gamma(1.0, 1.0, (len(place), 1)), K, 1) * rng.uniform(0.8, 1.2, K)
    values = rng.poisson(rate).astype(np.float32)
    base = rng.uniform(0.5, 2.0, (len(place), K if by_factor else 1)).astype(np.float32)
    at = np.arange(-4, 5)
    kernel = np.exp(-0.5 * (at / 1.7) ** 2).astype(np.float32)
    return values, base, np.sqrt(rate).astype(np.float32), number, place, kernel, 2.0


def inputs_by_factor(rng: np.random.Generator) -> tuple[Any, ...]:
    """The same with a base of its own for each factor."""
    return inputs(rng, by_factor=True)


def means_by(kernel: Callable[..., None]) -> Callable[..., Array]:
    """The kernel over all bins, into a new array."""

    def of_all(values: Float32Array, *given: Any) -> Array:
        out = np.full_like(values, np.nan)
        kernel(values, *given, 0, len(values), out)
        return out

    return of_all


def shares_by(kernel: Callable[..., None]) -> Callable[..., Array]:
    """The shares of all bins, and of their cells of 4 × 4, stacked; the UMIs play no part."""

    def of_all(_: Float32Array, base: Float32Array, *given: Any) -> Array:
        found = np.full((2, *base.shape), np.nan, np.float32)
        kernel(base, *given, 4, 0, len(base), *found)
        return found

    return of_all
