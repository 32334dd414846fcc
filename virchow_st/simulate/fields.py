"""Random fields, scattered points and outlines, from which the simulated tissue is drawn."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from virchow_st.types import Array, BoolArray, Float32Array, Float64Array, UInt8Array

_SUBPIXEL_BITS = 4


def smooth_noise(rng: np.random.Generator, side: int, sigma: float) -> Float32Array:
    """Draw a smooth Gaussian random field (side, side) float32, mean 0, sd about 1.

    ``sigma`` is the length over which it is smooth, px.

    It is drawn and smoothed on a coarse grid, where smoothing is cheap, and then interpolated.
    """
    step = max(1.0, sigma / 2.0)
    coarse = int(np.ceil(side / step)) + 8
    field = gaussian_filter(rng.standard_normal((coarse, coarse)), sigma / step, mode="wrap")
    field = (field / field.std()).astype(np.float32)
    grown = cv2.resize(field, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    start = int(2 * step)
    return np.ascontiguousarray(grown[start : start + side, start : start + side])


def scatter(
    rng: np.random.Generator, side: int, spacing: float, jitter: float = 0.28
) -> Float64Array:
    """Draw points of a jittered hexagonal lattice over a canvas: (N, 2) float64 ``x, y`` px.

    ``jitter`` is the sd of the displacement as a share of ``spacing`` (px between neighbours).
    """
    rows = np.arange(0, side, spacing * np.sqrt(3) / 2)
    cols = np.arange(0, side, spacing)
    x = cols[None, :] + np.where(np.arange(rows.size) % 2, spacing / 2, 0.0)[:, None]
    y = np.broadcast_to(rows[:, None], x.shape)
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.normal(0.0, jitter * spacing, points.shape)
    inside = (points >= 0).all(axis=1) & (points <= side - 1).all(axis=1)
    kept: Float64Array = points[inside]
    return kept


def at(field: Array, points: Array) -> Array:
    """Values of a (side, side) field at the pixels nearest to (N, 2) ``x, y`` points."""
    index = np.rint(points).astype(np.int64)
    values: Array = field[index[:, 1], index[:, 0]]
    return values


def blobs(
    rng: np.random.Generator,
    centres: Array,
    semi_axes: Array,
    angles: Array,
    roughness: float,
    vertices: int = 20,
) -> Float64Array:
    """Draw outlines of deformed ellipses: (N, vertices, 2) float64 ``x, y`` px.

    ``centres`` and ``semi_axes`` are (N, 2) px, ``angles`` (N,) radians from the x axis to the
    first semi-axis; ``roughness`` is the relative size of the low harmonics that bend the outline.
    """
    n = len(centres)
    theta = np.linspace(0.0, 2 * np.pi, vertices, endpoint=False)
    radius = np.ones((n, vertices))
    for harmonic in (2, 3, 4, 5):
        size = rng.normal(0.0, roughness / harmonic, (n, 1))
        phase = rng.uniform(0.0, 2 * np.pi, (n, 1))
        radius += size * np.cos(harmonic * theta + phase)
    u = radius * np.cos(theta) * semi_axes[:, :1]
    v = radius * np.sin(theta) * semi_axes[:, 1:]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    turned = np.stack([u * cos - v * sin, u * sin + v * cos], axis=2)
    outlines: Float64Array = turned + centres[:, None, :]
    return outlines


def fill(canvas: Array, outlines: Array, values: Array | float) -> None:
    """Fill each outline (N, V, 2) of a uint8 or float32 canvas with its value, in order."""
    fixed = np.rint(outlines * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    for outline, value in zip(fixed, np.broadcast_to(values, len(fixed)).tolist(), strict=True):
        cv2.fillPoly(canvas, [outline], value, shift=_SUBPIXEL_BITS)


def depth_px(mask: BoolArray | UInt8Array) -> Float32Array:
    """Distance of every pixel of the mask to the nearest pixel outside it, px; 0 outside."""
    distance: Float32Array = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    return distance


def voronoi(side: int, points: Array) -> Array:
    """Label of the nearest point for every pixel, (side, side) int32, in arbitrary numbering."""
    seeds = np.ones((side, side), np.uint8)
    index = np.clip(np.rint(points), 0, side - 1).astype(np.int64)  # a point may lie on the edge
    seeds[index[:, 1], index[:, 0]] = 0
    _, labels = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nearest: Array = labels
    return nearest


def along(
    outlines: Float64Array, spacing: float, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """Points about every ``spacing`` px along closed outlines, and unit vectors to the inside.

    Both are (N, 2) float64 ``x, y``; ``outlines`` (M, V, 2) px run from +x towards +y, as `blobs`
    draws them.
    """
    points, inwards = [np.zeros((0, 2))], [np.zeros((0, 2))]
    for outline in outlines:
        closed = np.vstack([outline, outline[:1]])
        step = np.diff(closed, axis=0)
        length = np.concatenate([[0.0], np.cumsum(np.hypot(step[:, 0], step[:, 1]))])
        n = max(3, round(length[-1] / spacing))
        where = (np.arange(n) + rng.normal(0, 0.12, n)) / n % 1.0 * length[-1]
        xy = np.stack([np.interp(where, length, closed[:, i]) for i in (0, 1)], axis=1)
        tangent = step[np.clip(np.searchsorted(length, where, "right") - 1, 0, len(step) - 1)]
        # With that sense of rotation the inside lies on the side (-dy, dx).
        inward = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
        points.append(xy)
        inwards.append(inward / np.hypot(inward[:, 0], inward[:, 1])[:, None])
    return np.concatenate(points), np.concatenate(inwards)


def strands(rng: np.random.Generator, potential_um: Float32Array, width_um: float) -> Float32Array:
    """Smooth one-dimensional noise as a function of the potential: strands about a width apart."""
    per_um = 8
    taps = np.hanning(int(2 * width_um * per_um) + 3)
    noise = np.convolve(rng.standard_normal(1 << 15), taps, mode="same")
    noise = (noise / noise.std()).astype(np.float32)
    looked_up: Float32Array = noise[(potential_um * per_um).astype(np.int64) % noise.size]
    return looked_up
