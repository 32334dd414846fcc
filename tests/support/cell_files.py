"""A lattice with planted cells, and the files in which other programs would hand them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.geometry import Homography
from virchow_st.types import Array

# The real homographies of FACTS, mirrored and not, and one that is turned by 30°.
HOMOGRAPHIES = {
    "mirrored": [
        [-7.30020288, 0.110259956, 2103.7433],
        [0.112578679, 7.30121053, 44.1895275],
        [1.30148815e-7, 7.56904127e-8, 1],
    ],
    "turned": [[6.3, -3.6, 1200.0], [3.6, 6.3, 35.0], [1e-7, -2e-7, 1]],
    "plain": [[4.0, 0.0, 2.0], [0.0, 4.0, 2.0], [0, 0, 1]],
}


def make_lattice(name: str = "mirrored", shape: tuple[int, int] = (96, 120)) -> Lattice:
    """Bins of which the first is (8, 16), with tissue but for a margin of 4 bins."""
    tissue = np.zeros(shape, bool)
    tissue[4:-4, 4:-4] = True
    return Lattice("S", Homography(np.array(HOMOGRAPHIES[name])), 8, 16, tissue)


def star_cells(lattice: Lattice, n: int = 60, seed: int = 0, reach: float = 4.0) -> Array:
    """Stars of 9 vertices at random places of the tissue, in bin coordinates; some overlap."""
    rng = np.random.default_rng(seed)
    rows, cols = lattice.shape
    shapes = []
    for x, y in rng.uniform((6, 6), (cols - 6, rows - 6), (n, 2)):
        theta = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(reach / 2, reach, 9)
        star = shapely.Polygon(
            np.stack([x + radius * np.cos(theta), y + radius * np.sin(theta)], 1)
        )
        if star.is_valid:
            shapes.append(star)
    return np.array(shapes, dtype=object)


def to_px(lattice: Lattice, shapes: Array) -> Array:
    """Shapes in full-resolution px."""
    return shapely.transform(shapes, lattice.to_px)


def geometry(shape: Any) -> dict[str, Any]:
    """A shape as GeoJSON has it."""
    return json.loads(shapely.to_geojson(shape))


def write_geojson(path: Path, shapes_px: Array, **properties: Any) -> Path:
    """A collection of features with ids c0, c1, …; properties may be functions of the number."""
    features = [
        {
            "type": "Feature",
            "id": f"c{i}",
            "geometry": geometry(shape),
            "properties": {k: v(i) if callable(v) else v for k, v in properties.items()},
        }
        for i, shape in enumerate(shapes_px)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def write_mappings(
    path: Path, labels: Array, lattice: Lattice, nuclei: Array | None = None, spelling: str = "{}"
) -> Path:
    """``barcode_mappings.parquet`` of the slide's grid, in row groups of 1,000, rows shuffled."""
    rows, cols = lattice.row0 + labels.shape[0] + 3, lattice.col0 + labels.shape[1] + 5
    whole, inside = np.zeros((rows, cols), np.int64), np.zeros((rows, cols), bool)
    at = (
        slice(lattice.row0, lattice.row0 + labels.shape[0]),
        slice(lattice.col0, lattice.col0 + labels.shape[1]),
    )
    whole[at] = labels
    inside[at] = nuclei if nuclei is not None else labels > 0
    order = np.random.default_rng(0).permutation(rows * cols)
    row, col = np.divmod(order, cols)
    of = whole.ravel()[order]
    none = spelling.format(0) if spelling != "{}" else None
    table = pa.table(
        {
            "square_002um": [f"s_002um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)],
            "square_008um": [f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)],
            "cell_id": pa.array([spelling.format(i) if i else none for i in of], pa.string()),
            "in_nucleus": inside.ravel()[order],
            "in_cell": of > 0,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=1000)
    return path


def brute_labels(lattice: Lattice, shapes: np.ndarray) -> np.ndarray:
    """The smallest shape that holds each bin's centre, by shapely; tested in px, not in bins."""
    row, col = np.indices(lattice.shape)
    x, y = lattice.to_px(np.stack([col.ravel(), row.ravel()], 1).astype(float)).T
    labels = np.zeros(row.size, np.int32)
    for i in np.argsort([-s.area for s in shapes], kind="stable"):
        labels[shapely.contains_xy(to_px(lattice, shapes[i : i + 1])[0], x, y)] = i + 1
    return labels.reshape(lattice.shape)


def named_labels(cells: CellMap) -> np.ndarray:
    """Labels by the number in the cell's name, from 1."""
    numbers = np.array([0, *(int(name.strip("c")) + 1 for name in cells.ids)])
    return numbers[cells.labels]
