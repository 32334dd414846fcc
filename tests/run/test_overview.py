"""The overview of a slide that is too large to keep as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import virchow_st
from virchow_st.run import overview
from virchow_st.run.split import Member, Split


def test_a_large_slide_is_shown_smaller_in_the_overview(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "LONGEST_PX", 200)  # of 768
    store = virchow_st.open_store(stores["P5"])
    split = Split((), (), tuple(Member(0, i) for i in (4, 5, 8)), ("",))
    overview.write_overview(tmp_path / "overview.h5", [store], split, {}, 512)
    (slide,) = overview.read_overviews(tmp_path)
    assert slide.um_per_px == 4
    assert [(place.row, place.col) for place in slide.patches] == [(0, 0), (0, 128), (128, 128)]
    assert slide.image.shape == (128, 128, 3)
    expected = store[5].image.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)).round()
    np.testing.assert_array_equal(slide.image[:64, 64:], expected)
    assert (slide.image[64:, :64] == 255).all()
