"""Outlines of cells or regions as polygons in full-resolution pixels, checked and repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from virchow_st.errors import SlideError
from virchow_st.types import Array, Float64Array, Int64Array

_SAME_AREA = 1e-6  # largest relative change of area by a repair
_LARGEST_PX = 1e7  # larger than any scan
SELF_CROSSING = "outlines that cross themselves or are empty"
POLYGON, PARTS = 3, 6
"""Shapely's types of geometry that have an area."""


@dataclass(frozen=True, eq=False)
class Outlines:
    """n polygons with names.

    Attributes:
        path: the file that they come from.
        polygons: (n,) shapely Polygon or MultiPolygon, valid, in full-resolution px.
        ids: names, each once.
        classes: class of each, ``""`` where it has none.
        passed_over: what the file holds beside them: what it is → how many.
        n_repaired: polygons that touched themselves and were repaired without a change of area.
    """

    path: Path
    polygons: Array
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    passed_over: dict[str, int] = field(default_factory=dict)
    n_repaired: int = 0


def check_outlines(
    path: Path,
    polygons: Sequence[Any] | Array,
    ids: Sequence[str],
    classes: Sequence[str],
    passed_over: Counter[str],
) -> Outlines:
    """Check polygons as they were read, and repair those that merely touch themselves.

    A polygon that crosses itself has no agreed area. It is left out and counted, unless
    `shapely.make_valid` gives it the area that its vertices enclose by the shoelace formula.

    Raises:
        SlideError: no polygon is left, a name occurs twice, or a coordinate is impossible.
    """
    remedy = "give outlines of cells or regions as polygons in full-resolution pixels"
    shapes = np.array(polygons, dtype=object)
    if not len(shapes):
        seen = ", ".join(f"{n} {what}" for what, n in passed_over.items()) or "nothing"
        raise SlideError(f"{path}: expected polygons; found {seen}; {remedy}")
    repeated = [name for name, n in Counter(ids).items() if n > 1]
    if repeated:
        raise SlideError(
            f"{path}: expected every name once; {len(repeated)} occur more often, such as "
            f"{repeated[0]!a}; number the cells anew in the program that wrote them"
        )
    bounds = shapely.bounds(shapes)
    if not (np.abs(bounds) < _LARGEST_PX).all():
        at = int(np.flatnonzero(~(np.abs(bounds) < _LARGEST_PX).all(axis=1))[0])
        raise SlideError(
            f"{path}: {ids[at]}: expected coordinates below 1e7 px; got "
            f"{bounds[at].tolist()}; {remedy}"
        )
    shapes, kept, n_repaired = _repaired(shapes)
    if not kept.all():
        passed_over = passed_over + Counter({SELF_CROSSING: int((~kept).sum())})
        if not kept.any():
            raise SlideError(
                f"{path}: expected polygons; all {len(kept)} cross themselves or are empty; "
                f"{remedy}"
            )
    return Outlines(
        path,
        shapes[kept],
        tuple(np.array(ids, dtype=object)[kept].tolist()),
        tuple(np.array(classes, dtype=object)[kept].tolist()),
        dict(passed_over),
        n_repaired,
    )


def _repaired(shapes: Array) -> tuple[Array, Array, int]:
    """Polygons made valid, which of them are kept, and how many were changed."""
    kept = shapely.area(shapes) > 0
    broken = np.flatnonzero(~shapely.is_valid(shapes))
    n_repaired = 0
    for i in broken:
        enclosed = float(shapely.area(shapes[i]))  # by the shoelace formula
        mended = _areas_of(shapely.make_valid(shapes[i]))
        kept[i] = enclosed > 0 and abs(mended.area / enclosed - 1) <= _SAME_AREA
        if kept[i]:
            shapes[i] = mended
            n_repaired += 1
    return shapes, kept, n_repaired


def _areas_of(shape: Any) -> Any:
    """The parts of a geometry that have an area."""
    parts = shapely.get_parts(shape) if shapely.get_type_id(shape) > POLYGON else np.array([shape])
    return shapely.union_all(parts[np.isin(shapely.get_type_id(parts), (POLYGON, PARTS))])


def ragged(polygons: Array) -> tuple[Float64Array, Int64Array, Int64Array, Array]:
    """Vertices and limits of polygons as `virchow_st.kernels.outlines` takes them.

    Returns:
        xy (V, 2); limits of rings (R + 1,); limits of polygons (P + 1,); and which rings are
        outer ones, (R,) bool.

    Example:
        >>> xy, rings, limits, outer = ragged(np.array([shapely.box(0, 0, 2, 1)]))
        >>> len(xy), rings.tolist(), limits.tolist(), outer.tolist()
        (5, [0, 5], [0, 1], [True])
    """
    parts, of_polygon = shapely.get_parts(polygons, return_index=True)
    rings, of_part = shapely.get_rings(parts, return_index=True)
    xy, of_ring = shapely.get_coordinates(rings, return_index=True)
    n_vertices = np.bincount(of_ring, minlength=len(rings))
    n_rings = np.bincount(of_polygon[of_part], minlength=len(polygons))
    outer = np.ones(len(rings), bool)
    outer[1:] = of_part[1:] != of_part[:-1]  # the first ring of a part
    return xy, _limits(n_vertices), _limits(n_rings), outer


def _limits(sizes: Array) -> Int64Array:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
