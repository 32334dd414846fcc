"""Outlines from a shapes element of a SpatialData folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import shapely
import zarr

from virchow_st.errors import SlideError
from virchow_st.slide.cells.geojson import cell_name
from virchow_st.slide.cells.outlines import PARTS, POLYGON, Outlines, check_outlines
from virchow_st.slide.space_ranger import reading
from virchow_st.types import Float64Array

_FRAMES = "fullres_px", "global"
"""Coordinate systems taken for full-resolution pixels, the first that there is."""
_SMALLER = ("downscaled", "hires", "lowres")
_CLASSES = "class", "classification", "cell_type"
_INDEX = "__index_level_0__"


def find_element(path: Path) -> tuple[str, Path] | None:
    """The shapes or labels that a Zarr folder is or holds: ``"shapes"`` or ``"labels"``, and where.

    Raises:
        SlideError: it holds several, or none.
    """
    if not (path / "zarr.json").is_file() and not any(
        (path / name).is_file() for name in (".zgroup", ".zarray")
    ):
        return None
    if (path / "shapes.parquet").is_file():
        return "shapes", path
    for kind in ("shapes", "labels"):
        folder = path / kind
        found = sorted(f for f in folder.glob("*") if f.is_dir()) if folder.is_dir() else []
        if len(found) > 1:
            names = ", ".join(f"{kind}/{f.name}" for f in found)
            raise SlideError(
                f"{path}: expected one element of cells; found {names}; give one of them"
            )
        if found:
            return kind, found[0]
    return "labels", path


def read_shapes(path: Path) -> Outlines:
    """Read the polygons of a shapes element, in full-resolution pixels.

    The coordinate system is ``fullres_px`` where there is one, else ``global``, else the only one
    that is not of a smaller picture. Names are the column ``cell_id``, else the index.

    Raises:
        SlideError: the element is damaged, has no such coordinate system, or no polygons.
    """
    file = path / "shapes.parquet"
    with reading(file, "a SpatialData shapes element"):
        attributes = dict(zarr.open_group(str(path), mode="r").attrs)
        affine = _to_px(path, attributes.get("coordinateTransformations", ()))
        table = pq.read_table(file)
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        shapes = shapely.from_wkb(columns.pop("geometry"))
    ids = columns.get("cell_id", columns.get(_INDEX, list(range(len(shapes)))))
    label = next((columns[name] for name in _CLASSES if name in columns), [None] * len(shapes))
    is_area = np.isin(shapely.get_type_id(shapes), (POLYGON, PARTS))
    passed_over = Counter(
        f"of type {shape.geom_type}" if shape is not None else "without an outline"
        for shape in shapes[~is_area]
    )
    kept = np.flatnonzero(is_area)
    moved = shapely.transform(shapes[kept], lambda xy: xy @ affine[:, :2].T + affine[:, 2])
    return check_outlines(
        path,
        moved,
        [cell_name(ids[i]) for i in kept],
        ["" if label[i] is None else str(label[i]) for i in kept],
        passed_over,
    )


def _to_px(path: Path, steps: Any) -> Float64Array:
    """(2, 3) affine from the element's coordinates to full-resolution pixels."""
    by_name = {step["output"]["name"]: step for step in steps}
    full = [name for name in by_name if not any(word in name for word in _SMALLER)]
    frame = next((name for name in _FRAMES if name in by_name), full[0] if len(full) == 1 else None)
    if frame is None:
        raise SlideError(
            f"{path}: expected a coordinate system of full-resolution pixels, "
            f"{' or '.join(_FRAMES)}; found {', '.join(by_name) or 'none'}; add one to the element"
        )
    return _affine(by_name[frame])[:2]


def _affine(step: dict[str, Any]) -> Float64Array:
    """(3, 3) matrix on ``(x, y, 1)``."""
    matrix = np.eye(3)
    kind = step["type"]
    if kind == "scale":
        matrix[[0, 1], [0, 1]] = step["scale"]
    elif kind == "translation":
        matrix[:2, 2] = step["translation"]
    elif kind == "affine":
        matrix[:2] = step["affine"][:2]
    elif kind == "sequence":
        for inner in step["transformations"]:
            matrix = _affine(inner) @ matrix
    elif kind != "identity":
        raise ValueError(f"a transformation of type {kind!a:.40}")
    return matrix
