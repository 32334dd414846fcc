"""Space Ranger folders of tests: where their files are, and how their counts are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virchow_st.errors import SlideError
from virchow_st.slide.patch_counts import PatchCounts
from virchow_st.slide.patches import lay_patches
from virchow_st.slide.visium_hd import VisiumHDSlide

SHARED = Path(__file__).resolve().parents[3] / "shared"
SQUARE = Path("binned_outputs", "square_002um")
POSITIONS = SQUARE / "spatial" / "tissue_positions.parquet"


def shared(*parts: str) -> Path:
    """A path below the shared folder; the test is skipped where it is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the shared folder is not at {SHARED}")
    return path


def square(outs: Path) -> Path:
    """The folder of the 2 µm bins, whatever prefix its parent's name has."""
    return next(outs.glob("*binned_outputs/square_002um"))


def matrix_file(outs: Path, which: str = "filtered") -> Path:
    return next(square(outs).glob(f"*{which}_feature_bc_matrix.h5"))


def read_all(outs: Path, which: str = "filtered") -> tuple[VisiumHDSlide, PatchCounts]:
    """Open a slide and read the counts of every patch that holds tissue."""
    slide = VisiumHDSlide.open(outs, which)
    return slide, slide.read_counts(lay_patches(slide.tissue_mask, 0.0))


def assert_equal_counts(actual: PatchCounts, expected: PatchCounts) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(actual.gene_totals, expected.gene_totals)


def assert_one_line(error: pytest.ExceptionInfo[SlideError]) -> None:
    assert "\n" not in str(error.value)
