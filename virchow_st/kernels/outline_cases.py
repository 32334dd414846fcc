"""Inputs of the kernels for cells, and how the table runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from virchow_st.kernels import outlines
from virchow_st.types import Array, Float64Array

_SHAPE = 24, 30


def _polygons(rng: np.random.Generator, n: int = 12) -> tuple[Any, ...]:
    """Stars around random places, some off the lattice, every third with a hole."""
    xy: list[Array] = []
    rings, polygons, signs = [0], [0], []
    for p in range(n):
        centre = rng.uniform(-4, (_SHAPE[1] + 4, _SHAPE[0] + 4))
        theta = np.sort(rng.uniform(0, 2 * np.pi, 14))
        radius = rng.uniform(2, 7, 14)
        for sign, scale in ((1, 1.0), (-1, 0.3))[: 1 + (p % 3 == 0)]:
            ring = centre + scale * np.stack([radius * np.cos(theta), radius * np.sin(theta)], 1)
            turn = 1 if rng.random() < 0.5 else -1
            xy.append(np.vstack([ring, ring[:1]])[::turn])
            rings.append(rings[-1] + 15)
            signs.append(sign * turn)
        polygons.append(len(rings) - 1)
    return np.concatenate(xy), np.array(rings), np.array(signs, np.float64), np.array(polygons)


def paint_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Polygons, and the order in which they are painted."""
    xy, rings, _, polygons = _polygons(rng)
    return xy, rings, polygons, rng.permutation(len(polygons) - 1)


def paint_by(kernel: Callable[..., None]) -> Callable[..., tuple[Array, Array]]:
    """Wrap a function that fills its outputs into one that returns them."""

    def painted(*inputs: Any) -> tuple[Array, Array]:
        labels, shared = np.zeros(_SHAPE, np.int32), np.zeros(_SHAPE, bool)
        kernel(*inputs, labels, shared)
        return labels, shared

    return painted


def share_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Polygons, the signs of their rings, and the lattice."""
    return *_polygons(rng, 6), *_SHAPE


def shares_by_kernel(*inputs: Any) -> Float64Array:
    """Shares as the reference returns them, (P, rows, columns)."""
    n = len(inputs[3]) - 1
    room = n * _SHAPE[0] * _SHAPE[1]
    bins, cell, share = np.empty(room, np.int64), np.empty(room, np.int32), np.empty(room)
    half = n // 2
    found = np.zeros((n, _SHAPE[0] * _SHAPE[1]))
    for first, last in ((0, half), (half, n)):
        m = outlines.covered_shares(*inputs, first, last, bins, cell, share)
        found[cell[:m], bins[:m]] = share[:m]
    return found.reshape(n, *_SHAPE)


def expand_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """A few labels, and the offsets within 5 bins by distance."""
    labels = np.where(rng.random(_SHAPE) < 0.02, rng.integers(1, 9, _SHAPE), 0).astype(np.int32)
    rows, cols = (grid.ravel() for grid in np.mgrid[-5:6, -5:6])
    squared = rows**2 + cols**2
    order = np.argsort(squared, kind="stable")
    order = order[squared[order] <= 25]
    return labels, rows[order], cols[order], squared[order]


def sum_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Maps with places without values, and 500 shares of bins in 40 cells."""
    maps = rng.gamma(1.0, size=(5, *_SHAPE)).astype(np.float32)
    maps[:, 3:6, 4] = np.nan
    row, col = rng.integers(0, _SHAPE[0], 500), rng.integers(0, _SHAPE[1], 500)
    share = rng.random(500).astype(np.float32)
    return maps, row, col, rng.integers(0, 40, 500).astype(np.int32), share


def map_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Maps with places without values."""
    return (sum_inputs(rng)[0],)


def sums_by(kernel: Callable[..., None]) -> Callable[..., Float64Array]:
    """Wrap a function that adds to its output into one that returns it."""

    def summed(*inputs: Any) -> Float64Array:
        sums = np.ones((40, len(inputs[0])))
        kernel(*inputs, sums)
        return sums

    return summed
