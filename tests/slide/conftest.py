"""Space Ranger folders that several modules read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_slide import TinySlide
from visium_folder import read_all

from virchow_st.slide.patch_counts import PatchCounts


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The outs folder of a fabricated slide, for a test to damage."""
    return TinySlide().write(tmp_path / "outs")


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PatchCounts]:
    """The outs folder of a slide with counts below 201, which fit narrow types, and its counts."""
    slide = TinySlide(rows=140, cols=130, n_genes=12)
    slide.counts = np.minimum(slide.counts, 200)
    outs = slide.write(tmp_path_factory.mktemp("packed"))
    return outs, read_all(outs)[1]
