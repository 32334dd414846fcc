"""Simulated exposure: in the counts and the rates, and known apart from the rates."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from simulated_slide import Slide, assert_poisson

from virchow_st.config import SimulateConfig
from virchow_st.errors import ConfigError, SlideError
from virchow_st.simulate import simulate_cohort, true_exposure, true_rate
from virchow_st.simulate.exposure import draw_exposure

BINS, GENES, DEPTH, STRIPES = 160, 60, 0.5, 0.3


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Slide, Slide]:
    """The same slide without and with further exposure."""
    slides = []
    for depth, stripes in ((0.0, 0.0), (DEPTH, STRIPES)):
        config = SimulateConfig(("P2",), BINS, GENES, seed=4, depth=depth, stripes=stripes)
        slides.append(Slide(simulate_cohort(tmp_path_factory.mktemp("exposure"), config)[0]))
    return slides[0], slides[1]


def rate_of(slide: Slide) -> np.ndarray:
    rate = true_rate(slide.folder / "truth.h5", slide.truth("gene_id"), 0, 0, BINS, BINS)
    return rate.astype(float)


def test_factors_are_log_normal_with_mean_one():
    drawn = [draw_exposure(np.random.default_rng(i), 40, 50, 0.5, 0.3) for i in range(1500)]
    slides = np.array([e.slide for e in drawn])
    stripes = np.stack([np.concatenate([e.rows, e.cols]) for e in drawn])
    assert stripes.shape == (1500, 90)
    assert np.log(slides).std() == pytest.approx(0.5, rel=0.08)
    assert np.log(stripes).std() == pytest.approx(0.3, rel=0.02)
    assert slides.mean() == pytest.approx(1, abs=0.06)
    assert stripes.mean() == pytest.approx(1, abs=0.005)
    assert abs(np.corrcoef(stripes[:, 0], stripes[:, 40])[0, 1]) < 0.1
    one = draw_exposure(np.random.default_rng(0), 40, 50, 0.0, 0.0)
    assert one.slide == 1
    assert (one.map() == 1).all()


def test_counts_follow_the_rates_with_their_exposure(pair):
    tissue = pair[1].tissue()
    assert_poisson(pair[1].counts("raw")[0][:, tissue], rate_of(pair[1])[:, tissue])


def test_rates_differ_by_the_further_exposure_alone(pair):
    ratio = rate_of(pair[1]) / rate_of(pair[0])
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=1e-4)
    log = np.log(ratio[0])
    rows, cols = log.mean(axis=1, keepdims=True), log.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(log, rows + cols - log.mean(), atol=1e-4)  # rows times columns
    assert rows.std() == pytest.approx(STRIPES, rel=0.2)
    assert cols.std() == pytest.approx(STRIPES, rel=0.2)
    np.testing.assert_array_equal(pair[0].image, pair[1].image)


def test_what_he_shows_of_the_rate_has_no_exposure(pair):
    path, genes = pair[1].folder / "truth.h5", pair[1].truth("gene_id")
    shown = true_rate(path, genes, 0, 0, BINS, BINS, shown=True)
    expected = rate_of(pair[1]) / true_exposure(path).map()
    np.testing.assert_allclose(shown, expected, rtol=1e-5)


def test_the_recorded_exposure_is_all_but_tissue_and_drift(pair):
    """Depth over exposure has no stripes left, neither the further ones nor those of before."""
    exposure = true_exposure(pair[1].folder / "truth.h5")
    assert (exposure.rows.shape, exposure.cols.shape) == ((BINS,), (BINS,))
    assert np.log(exposure.rows).std() == pytest.approx(np.hypot(STRIPES, 0.1), rel=0.2)
    drift = pair[1].truth("depth") / exposure.map()
    for axis in (0, 1):
        assert np.abs(np.diff(np.log(drift), axis=axis)).max() < 0.05
        assert np.abs(np.diff(np.log(pair[0].truth("depth")), axis=axis)).max() > 0.2


def test_rates_of_the_tissue_compare_between_slides(tmp_path):
    """Without exposure the depth is the drift alone, about 1 in every patient."""
    config = SimulateConfig(("A", "B", "C"), 128, GENES, seed=1, depth=0.7, stripes=0.1)
    levels, raw = [], []
    for slide in map(Slide, simulate_cohort(tmp_path, config)):
        exposure = true_exposure(slide.folder / "truth.h5")
        levels.append(float(np.median(slide.truth("depth") / exposure.map())))
        raw.append(float(np.median(slide.truth("depth"))))
    assert np.abs(np.log(levels)).max() < 0.15
    assert np.ptp(np.log(raw)) > 0.5


def test_default_slides_record_none_and_say_so(pair, tmp_path):
    with h5py.File(pair[0].folder / "truth.h5") as f:
        assert "exposure" not in f
        assert not {"depth", "stripes"} & set(f.attrs)
    with pytest.raises(SlideError, match="recorded exposure; got none; run vst simulate with"):
        true_exposure(pair[0].folder / "truth.h5")
    with pytest.raises(SlideError, match="expected the truth.h5"):
        true_exposure(tmp_path / "none.h5")
    config = SimulateConfig(("P2",), BINS, GENES, seed=4, stripes=STRIPES)
    with pytest.raises(ConfigError, match=r"hold .* stripes=0.3, depth=0; it holds .* depth=0.5"):
        simulate_cohort(pair[1].folder.parent, config)
