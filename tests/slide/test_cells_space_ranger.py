"""Space Ranger's cells come out on the lattice bin by bin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from cell_files import (
    brute_labels,
    make_lattice,
    star_cells,
    to_px,
    write_geojson,
    write_mappings,
)

from virchow_st.errors import SlideError
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells


@pytest.mark.parametrize("spelling", ["{}", "cellid_{:09d}-1", "cellid_{:09d}"])
def test_space_rangers_table_is_taken_as_it_is(tmp_path: Path, spelling: str) -> None:
    lattice = make_lattice()
    labels = brute_labels(lattice, star_cells(lattice, 40))
    nuclei = (labels > 0) & (np.random.default_rng(1).random(labels.shape) < 0.5)
    outs = tmp_path / "outs"
    write_mappings(outs / "X_barcode_mappings.parquet", labels, lattice, nuclei, spelling)
    (outs / "segmented_outputs").mkdir()
    for place in (outs, tmp_path, outs / "segmented_outputs", outs / "X_barcode_mappings.parquet"):
        cells = read_cells(place, lattice)
        assert cells.ids == tuple(f"cellid_{i:09d}-1" for i in np.unique(labels)[1:])
        assert cells.outlines is None
        numbers = np.append(0, np.unique(labels)[1:])
        np.testing.assert_array_equal(numbers[cells.labels], labels)
    inner = read_cells(outs, lattice, want="nuclei")
    np.testing.assert_array_equal(inner.labels > 0, nuclei)


def test_outlines_of_bins_hold_these_bins(tmp_path: Path) -> None:
    lattice = make_lattice()
    labels = brute_labels(lattice, star_cells(lattice, 40))
    cells = read_cells(write_mappings(tmp_path / "m.parquet", labels, lattice), lattice)
    shapes = shapely.transform(cells.polygons_um(), lambda xy: xy / 2 - 0.5 - [16, 8])
    np.testing.assert_array_equal(shapely.area(shapes), cells.n_bins)
    # And their outlines in px, rounded as Space Ranger rounds them, give the bins back.
    px = shapely.transform(to_px(lattice, shapes), lambda xy: np.round(xy, 1))
    path = write_geojson(tmp_path / "cell_segmentations.geojson", px)
    again = read_cells(path, lattice)
    np.testing.assert_array_equal(again.labels, cells.labels)


def test_a_slide_without_segmentation_is_refused(tmp_path: Path) -> None:
    lattice = make_lattice()
    path = write_mappings(tmp_path / "m.parquet", np.zeros(lattice.shape, int), lattice)
    with pytest.raises(SlideError, match="cell_id names none; run Space Ranger 4 with segm"):
        read_cells(path, lattice)
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).select(["square_002um"]), path)
    with pytest.raises(SlideError, match="cell_id missing: this slide was not segmented"):
        read_cells(path, lattice)
    with pytest.raises(SlideError, match="found neither; run Space Ranger 4"):
        read_cells(tmp_path / "nothing", _made(tmp_path / "nothing", lattice))


def _made(folder: Path, lattice: Lattice) -> Lattice:
    (folder / "inside").mkdir(parents=True)
    return lattice
