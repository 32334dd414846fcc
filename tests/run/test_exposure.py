"""The exposure of a slide, as its store tells it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virchow_st.errors import ConfigError
from virchow_st.metrics.stripes import Stripes
from virchow_st.run.exposure import EXPOSURE, CohortExposure, SlideExposure, slide_exposure
from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import open_store


def test_depth_is_that_of_the_tissue(stores: dict[str, Path]) -> None:
    store = open_store(stores["P1"])
    found = slide_exposure(store)
    umis = bins = 0.0
    for patch in store:
        tissue = patch.tissue_mask
        exposure = found.of_patch(patch.info)
        umis += patch.counts().sum(axis=0)[tissue.ravel()].sum()
        bins += exposure[tissue].sum(dtype=np.float64)
    assert found.depth == pytest.approx(umis / bins, rel=1e-6)
    assert found.without_stripes().of_patch(store[0].info).min() == 1
    assert not found.without_stripes().has_stripes


def at(row0: int, col0: int) -> PatchInfo:
    """A patch that begins there."""
    return PatchInfo(row0, col0, np.zeros((4, 2)), 1.0, 0)


def test_a_patch_takes_its_own_rows_and_columns() -> None:
    rows = Stripes(np.arange(1.0, 257), np.ones(256), 0.1)
    cols = Stripes(np.full(128, 2.0), np.ones(128), 0.1)
    exposure = SlideExposure(3.0, 10, 20, rows, cols)
    np.testing.assert_array_equal(exposure.of_patch(at(138, 20))[:, 5], 2 * np.arange(129.0, 257))
    assert exposure.of_patch(at(10, 20)).dtype == np.float32
    for row0, col0 in ((9, 20), (139, 20), (10, 21), (10, 19)):
        with pytest.raises(ConfigError, match="exposure: expected rows"):
            exposure.of_patch(at(row0, col0))


@pytest.fixture(scope="module")
def cohort(stores: dict[str, Path]) -> CohortExposure:
    opened = [open_store(path) for path in stores.values()]
    return CohortExposure.of_training("auto", opened, range(len(opened)))


def test_depths_are_relative_to_the_training_slides(cohort: CohortExposure) -> None:
    relative = np.array([cohort.relative_depth(i) for i in cohort.slides])
    assert np.log(relative).mean() == pytest.approx(0, abs=1e-5)
    info = at(cohort.slides[0].row0, cohort.slides[0].col0)
    np.testing.assert_allclose(
        cohort.of_patch(0, info), relative[0] * cohort.stripes_of_patch(0, info), rtol=1e-6
    )


def test_what_is_written_is_read(
    cohort: CohortExposure, stores: dict[str, Path], tmp_path: Path
) -> None:
    opened = [open_store(path) for path in stores.values()]
    digest = cohort.write(tmp_path, opened)
    found = CohortExposure.read(tmp_path, digest, opened)
    assert (found.mode, found.reference) == (cohort.mode, cohort.reference)
    for i, slide in cohort.slides.items():
        assert found.slides[i].depth == slide.depth
        for mine, theirs in (
            (found.slides[i].rows, slide.rows),
            (found.slides[i].cols, slide.cols),
        ):
            np.testing.assert_array_equal(mine.efficiency, theirs.efficiency)
            np.testing.assert_array_equal(mine.se, theirs.se)
    with pytest.raises(ConfigError, match="is of other stores"):
        CohortExposure.read(tmp_path, digest, opened[::-1])
    text = (tmp_path / EXPOSURE).read_text()
    (tmp_path / EXPOSURE).write_text(text.replace('"auto"', '"depth"'))
    with pytest.raises(ConfigError, match="does not match the hash"):
        CohortExposure.read(tmp_path, digest, opened)
    (tmp_path / EXPOSURE).write_text(text[:200])
    with pytest.raises(ConfigError, match="exposure.json"):
        CohortExposure.read(tmp_path, digest, opened)
    (tmp_path / EXPOSURE).unlink()
    with pytest.raises(ConfigError, match="exposure.json"):
        CohortExposure.read(tmp_path, digest, opened)


def test_depth_alone_leaves_out_the_stripes(stores: dict[str, Path]) -> None:
    opened = [open_store(path) for path in stores.values()]
    training = range(len(opened))
    for slide in CohortExposure.of_training("depth", opened, training).slides.values():
        assert not slide.has_stripes
