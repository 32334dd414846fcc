"""The planted cells of a simulated slide, as Space Ranger 4 would hand them on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_place import Answer
from simulated_slide import Slide

from virchow_st import SimulateConfig, simulate_cohort
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells
from virchow_st.slide.geometry import Homography

PLAIN = SimulateConfig(patients=("P1", "P4"), bins=128, genes=60, seed=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two slides, one of which is mirrored."""
    out = tmp_path_factory.mktemp("planted")
    config = SimulateConfig(patients=("P1", "P4"), bins=128, genes=60, seed=3, cells=True)
    found = simulate_cohort(out, config)
    signs = [np.sign(np.linalg.det(Slide(folder).homography[:2, :2])) for folder in found]
    assert sorted(signs) == [-1, 1]
    return found


def lattice_of(folder: Path) -> Lattice:
    slide = Slide(folder)
    return Lattice(folder.name, Homography(slide.homography), 0, 0, slide.tissue())


def test_table_and_outlines_hold_the_same_cells(folders: list[Path]) -> None:
    for folder in folders:
        lattice = lattice_of(folder)
        outlines = folder / "outs" / "segmented_outputs"
        for want, name in (("cells", "cell"), ("nuclei", "nucleus")):
            bins = read_cells(folder / "outs", lattice, want=want)
            drawn = read_cells(outlines / f"{name}_segmentations.geojson", lattice)
            assert bins.ids == drawn.ids
            assert len(bins) > 100
            # Outlines are of the largest piece, without its holes.
            assert (bins.labels != drawn.labels).mean() < 0.03
            assert drawn.n_shared < 0.02 * len(drawn.bins)


def test_nuclei_are_where_the_truth_has_nuclei(folders: list[Path]) -> None:
    for folder in folders:
        nuclei = read_cells(folder / "outs", lattice_of(folder), want="nuclei")
        share = Slide(folder).truth("nuclei")
        assert share[nuclei.labels > 0].mean() > 0.75
        assert share[nuclei.labels == 0].mean() < 0.1
        area = nuclei.area_um2
        assert 15 < np.median(area) < 80
        cells = read_cells(folder / "outs", lattice_of(folder))
        assert (cells.labels[nuclei.labels > 0] > 0).all()


def test_the_table_is_as_space_ranger_writes_it(folders: list[Path]) -> None:
    file = pq.ParquetFile(folders[0] / "outs" / "barcode_mappings.parquet")
    table = file.read()
    assert table.column_names == [
        "square_002um", "square_008um", "square_016um", "cell_id", "in_nucleus", "in_cell"
    ]  # fmt: skip
    assert table["square_002um"][129].as_py() == "s_002um_00001_00001-1"
    assert table["square_008um"][129].as_py() == "s_008um_00000_00000-1"
    assert len(table) == 128 * 128
    assert file.num_row_groups == 2
    named = [i is not None for i in table["cell_id"].to_pylist()]
    assert named == table["in_cell"].to_pylist()


def test_nothing_else_changes(folders: list[Path], tmp_path: Path) -> None:
    plain = simulate_cohort(tmp_path / "plain", PLAIN)
    for folder, other in zip(plain, folders, strict=True):
        files = sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
        assert len(files) > 8
        more = {f.relative_to(other) for f in other.rglob("*") if f.is_file()} - set(files)
        assert {f.name for f in more} == {
            "barcode_mappings.parquet",
            "cell_segmentations.geojson",
            "nucleus_segmentations.geojson",
        }
        for name in files:
            if name.name != "truth.h5":  # which records the option
                assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_a_slide_without_cells_is_not_taken_for_one_with_them(
    tmp_path: Path, vst: Callable[..., Answer]
) -> None:
    options = ["--patients", "P1", "--bins", 128, "--genes", 60]
    assert vst("simulate", tmp_path / "c", *options).code == 0
    answer = vst("simulate", tmp_path / "c", *options, "--cells")
    assert answer.code == 2
    assert "cells=True" in answer.err
    assert answer.err.strip().count("\n") == 0
