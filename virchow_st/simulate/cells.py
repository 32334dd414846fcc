"""The planted cells of a simulated slide, written as Space Ranger 4 writes its segmentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from scipy.ndimage import distance_transform_edt

from virchow_st.simulate.frame import SlideFrame
from virchow_st.simulate.morphology import MARGIN_BINS, PX_PER_BIN, Tissue
from virchow_st.types import Array

_REACH_BINS = 4  # a cell reaches 8 µm beyond its nucleus, where no other nucleus is nearer
_ROWS_PER_GROUP = 10_000


def planted_cells(tissue: Tissue) -> tuple[Array, Array]:
    """Cells and nuclei of a section on its bins, numbered from 1 in row-major order.

    Returns:
        (R, C) int32 cells, 0 = none: the bins whose centres lie in a nucleus, and those within 8 µm
        of them, by the nearest nucleus bin; and (R, C) int32 nuclei, with the same numbers.
    """
    inner = slice(MARGIN_BINS * PX_PER_BIN, -MARGIN_BINS * PX_PER_BIN)
    half = PX_PER_BIN // 2
    at_centres = tissue.nucleus[inner, inner][half::PX_PER_BIN, half::PX_PER_BIN]
    values, first, inverse = np.unique(at_centres, return_index=True, return_inverse=True)
    named = np.flatnonzero(values > 0)
    number = np.zeros(len(values), np.int32)
    number[named[np.argsort(first[named])]] = np.arange(1, len(named) + 1)
    nuclei = number[inverse].reshape(at_centres.shape)
    distance, nearest = distance_transform_edt(nuclei == 0, return_indices=True)
    cells = np.where(distance <= _REACH_BINS, nuclei[tuple(nearest)], 0).astype(np.int32)
    return cells, nuclei


def write_segmentation(outs: Path, cells: Array, nuclei: Array, frame: SlideFrame) -> None:
    """Write ``barcode_mappings.parquet`` and ``segmented_outputs/*_segmentations.geojson``.

    As of Space Ranger 4, the table has a row for each bin of the grid, and the outlines are those
    of whole bins, the largest piece without its holes, in full-resolution px rounded to 0.1.

    Args:
        outs: Folder of the slide's output.
        cells, nuclei: (R, C) of `planted_cells`.
        frame: Where the bins lie on the image.
    """
    _write_mappings(outs / "barcode_mappings.parquet", cells, nuclei)
    folder = outs / "segmented_outputs"
    folder.mkdir()
    for name, labels in (("cell", cells), ("nucleus", nuclei)):
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"cell_id": cell},
            }
            for cell, ring in _outlines(labels, frame)
        ]
        content = {"type": "FeatureCollection", "features": features}
        path = folder / f"{name}_segmentations.geojson"
        path.write_text(json.dumps(content), "utf-8")


def _write_mappings(path: Path, cells: Array, nuclei: Array) -> None:
    row, col = (grid.ravel() for grid in np.indices(cells.shape))
    columns: dict[str, Any] = {}
    for um, side in ((2, 1), (8, 4), (16, 8)):
        places = zip((row // side).tolist(), (col // side).tolist(), strict=True)
        columns[f"square_{um:03d}um"] = [f"s_{um:03d}um_{r:05d}_{c:05d}-1" for r, c in places]
    of = cells.ravel()
    ids = [f"cellid_{i:09d}-1" if i else None for i in of.tolist()]
    columns |= {
        "cell_id": pa.array(ids, pa.string()),
        "in_nucleus": nuclei.ravel() > 0,
        "in_cell": of > 0,
    }
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=_ROWS_PER_GROUP)


def _outlines(labels: Array, frame: SlideFrame) -> Iterator[tuple[int, list[list[float]]]]:
    """Number and closed ring of each label's bins, ``[[x, y], …]`` px."""
    row, col = np.nonzero(labels)
    of = labels[row, col]
    order = np.argsort(of, kind="stable")
    row, col, of = row[order], col[order], of[order]
    boxes = shapely.box(col - 0.5, row - 0.5, col + 0.5, row + 0.5)
    starts = np.flatnonzero(np.diff(of, prepend=0))
    for start, stop in zip(starts, [*starts[1:], len(of)], strict=True):
        parts = shapely.get_parts(shapely.union_all(boxes[start:stop]))
        ring = shapely.get_coordinates(parts[np.argmax(shapely.area(parts))].exterior)
        xy = np.stack(frame.to_px(ring[:, 0], ring[:, 1]), axis=1).round(1)
        yield int(of[start]), xy.tolist()
