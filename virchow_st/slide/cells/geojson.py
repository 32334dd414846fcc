"""Outlines from GeoJSON: Space Ranger's, QuPath's, TRIDENT's, and plain ones.

Coordinates are full-resolution pixels ``(x, y)``, whatever the standard says of longitudes. The
file's text is held in memory, and one feature at a time beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import shapely

from virchow_st.errors import SlideError, to_read
from virchow_st.slide.cells.outlines import Outlines, check_outlines

CELLS, NUCLEI, REGIONS = "cells", "nuclei", "regions"
"""What is wanted of a file that holds several kinds."""
_OF_CELLS = ("cell", "detection")
_NEVER = ("root", "tile", "tmaCore", "tma_core")
_SPACE = " \t\r\n"


def read_geojson(path: Path, want: str = CELLS) -> Outlines:
    """Read the polygons of a GeoJSON file.

    QuPath's objects have types. Of a file with cells or detections, `CELLS` are these, `NUCLEI`
    the outlines of their nuclei, and `REGIONS` the annotations; of a file without types all
    polygons are taken. A name is ``cell_id`` (Space Ranger; named as in its matrix), ``tissue_id``
    (TRIDENT), the feature's id, or a running number.

    Raises:
        SlideError: the file cannot be read, is not GeoJSON, holds NaN or no polygons of the wanted
            kind, or names two alike.

    Example:
        >>> read_geojson(Path("cells.geojson")).ids[:2]  # doctest: +SKIP
        ('cellid_000000001-1', 'cellid_000000002-1')
    """
    found: list[tuple[str, str, str, Any]] = []  # kind, name, class, geometry
    passed_over: Counter[str] = Counter()
    number = 0
    for feature in _features(path):
        for flat in _flattened(path, feature):
            number += 1
            kind, name, label = _described(path, flat, number)
            geometry = flat.get("geometry")
            if want == NUCLEI and kind in _OF_CELLS:
                geometry = flat.get("nucleusGeometry")
            shape = _shape(path, name, geometry, passed_over)
            if shape is not None:
                found.append((kind, name, label, shape))
    kinds = {kind for kind, *_ in found}
    kept = [of for of in found if _is_wanted(of[0], want, kinds)]
    for kind, *_ in found:
        passed_over[kind or "polygons without a type"] += 1
    for kind, *_ in kept:
        passed_over[kind or "polygons without a type"] -= 1
    return check_outlines(
        path, [of[3] for of in kept], [of[1] for of in kept], [of[2] for of in kept], +passed_over
    )


def _is_wanted(kind: str, want: str, kinds: set[str]) -> bool:
    if kind in _NEVER:
        return False
    if want == REGIONS:
        return kind not in _OF_CELLS
    return kind in _OF_CELLS or not kinds & set(_OF_CELLS)


def _flattened(path: Path, feature: Any) -> Iterator[dict[str, Any]]:
    """A feature and those that nest in its properties."""
    waiting = [feature]
    while waiting:
        feature = _checked(path, waiting.pop())
        yield feature
        children = (feature.get("properties") or {}).get("childObjects")
        waiting += reversed(children if isinstance(children, list) else [])


def _checked(path: Path, feature: Any) -> dict[str, Any]:
    if not isinstance(feature, dict) or not isinstance(feature.get("properties") or {}, dict):
        raise SlideError(
            f"{path}: expected GeoJSON features; found {str(feature)[:40]!a}; export it anew"
        )
    if feature.get("type") not in ("Feature", None):
        return {"geometry": feature, "properties": {}}  # a bare geometry
    return feature


def _described(path: Path, feature: dict[str, Any], number: int) -> tuple[str, str, str]:
    """Kind, name and class of a feature."""
    properties = feature.get("properties") or {}
    kind = properties.get("objectType") or ""
    if (cell_id := properties.get("cell_id")) is not None:
        name = cell_name(cell_id)
    elif (tissue_id := properties.get("tissue_id")) is not None:
        name = str(tissue_id)
    elif _is_own(given := feature.get("id", properties.get("id"))):
        name = str(given)
    else:
        name = str(number)
    return str(kind), name, _class_name(properties.get("classification"))


def _is_own(given: Any) -> bool:
    """Whether an id is one; old versions of QuPath write the object's class in its place."""
    text = "" if given is None else str(given)
    return bool(text) and not (text.startswith("Path") and text.endswith("Object"))


def cell_name(cell_id: Any) -> str:
    """A cell's name as Space Ranger's matrix has it; of another program's, the name itself.

    >>> cell_name(12), cell_name("cellid_000000012-1"), cell_name("tumour 7")
    ('cellid_000000012-1', 'cellid_000000012-1', 'tumour 7')
    """
    text = str(cell_id)
    return f"cellid_{int(text):09d}-1" if text.isdecimal() else text


def _class_name(of: Any) -> str:
    """QuPath's class: null, a text, ``{"name": …}`` or ``{"names": […]}``.

    >>> _class_name({"names": ["Tumor", "Ki67+"], "color": [1, 2, 3]})
    'Tumor: Ki67+'
    """
    if isinstance(of, dict):
        names = of.get("names")
        of = ": ".join(map(str, names)) if isinstance(names, list) else of.get("name")
    return "" if of is None else str(of)


def _shape(path: Path, name: str, geometry: Any, passed_over: Counter[str]) -> Any:
    """A polygon, or None where there is none, which is counted."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "Polygon":
        parts = [geometry.get("coordinates")]
    elif kind == "MultiPolygon":
        parts = geometry.get("coordinates")
    else:
        passed_over[f"of type {kind}" if kind else "without an outline"] += 1
        return None
    try:
        polygons = [_polygon(rings) for rings in parts]
    except (TypeError, ValueError, IndexError, shapely.errors.ShapelyError) as e:
        raise SlideError(
            f"{path}: {name}: expected rings of at least three vertices (x, y); "
            f"{' '.join(str(e).split())[:100]}; export it anew"
        ) from None
    return polygons[0] if len(polygons) == 1 else shapely.multipolygons(polygons)


def _polygon(rings: list[Any]) -> Any:
    outer, *holes = (_ring(ring) for ring in rings)
    return shapely.polygons(outer, holes or None)


def _ring(vertices: list[Any]) -> Any:
    xy = np.array(vertices, np.float64)
    if xy.ndim != 2 or xy.shape[1] not in (2, 3) or len(xy) < 3:
        raise ValueError(f"got shape {xy.shape}")
    if not np.isfinite(xy).all():
        raise ValueError("got a coordinate that is NaN or infinite")
    return shapely.linearrings(xy[:, :2])


# --- features one at a time -----------------------------------------------------------------------


def _features(path: Path) -> Iterator[Any]:
    """The features of a collection, of a bare array, or the only one."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        way = to_read(e, "export it anew") if isinstance(e, OSError) else "export it anew"
        reason = getattr(e, "strerror", None) or e
        raise SlideError(f"{path}: expected GeoJSON; it cannot be read ({reason}); {way}") from None
    if not text.strip(_SPACE):
        raise SlideError(f"{path}: expected GeoJSON; the file is empty; export it anew")
    try:
        yield from _Scanner(text).features()
    except (ValueError, RecursionError) as e:
        reason = " ".join(str(e).split())[:120]
        raise SlideError(f"{path}: expected GeoJSON; {reason}; export it anew") from None


class _Scanner:
    """Decodes the elements of the features' array one by one, and all else whole."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._decode = json.JSONDecoder(parse_constant=_refuse).raw_decode

    def features(self) -> Iterator[Any]:
        first = self._next()
        if first == "[":
            yield from self._elements()
            return
        if first != "{":
            raise ValueError(f"found {self._text[self._at : self._at + 20]!a}")
        start = self._at
        self._at += 1
        others: dict[str, Any] = {}
        had_features = False
        while self._next() != "}":
            key = self._value()
            self._take(":")
            if key == "features" and self._next() == "[":
                had_features = True
                yield from self._elements()
            else:
                others[str(key)] = self._value()
            if self._next() != "}":
                self._take(",")
        if not had_features:
            if "type" not in others:
                raise ValueError("found an object with neither features nor a type")
            self._at = start
            yield others

    def _elements(self) -> Iterator[Any]:
        self._take("[")
        while self._next() != "]":
            yield self._value()
            if self._next() != "]":
                self._take(",")
        self._at += 1

    def _value(self) -> Any:
        self._next()
        value, self._at = self._decode(self._text, self._at)
        return value

    def _next(self) -> str:
        """The next character that is not white; an error at the end of the text."""
        text, n = self._text, len(self._text)
        while self._at < n and text[self._at] in _SPACE:
            self._at += 1
        if self._at == n:
            raise ValueError("the file is cut off")
        return text[self._at]

    def _take(self, expected: str) -> None:
        if (actual := self._next()) != expected:
            raise ValueError(f"expected {expected!a} at character {self._at}; found {actual!a}")
        self._at += 1


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"expected numbers; found {name}")
