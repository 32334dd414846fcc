"""Hidden variation: independent fields of variance 1, in the counts and the truth, not in H&E."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from simulated_slide import Slide, assert_poisson

from virchow_st.config import SimulateConfig
from virchow_st.errors import ConfigError
from virchow_st.simulate import simulate_cohort, true_rate
from virchow_st.simulate.hidden import HiddenVariation, splitmix64
from virchow_st.simulate.truth import read_origin

BINS, GENES, SD = 250, 120, 0.8  # no multiple of 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Slide, Slide]:
    """The same slide without and with hidden variation."""
    slides = []
    for sd in (0.0, SD):
        config = SimulateConfig(("P5",), bins=BINS, genes=GENES, seed=3, hidden_variation=sd)
        slides.append(Slide(simulate_cohort(tmp_path_factory.mktemp("hidden"), config)[0]))
    return slides[0], slides[1]


@pytest.fixture(scope="module")
def log_factor(pair) -> np.ndarray:
    """Logarithm of true rate over the rate of the programmes, (G, BINS, BINS) float64."""
    return np.log(rate_of(pair[1])) - np.log(pair[1].visible_rate())


def rate_of(slide: Slide) -> np.ndarray:
    rate = true_rate(slide.folder / "truth.h5", slide.truth("gene_id"), 0, 0, BINS, BINS)
    return rate.astype(float)


def test_what_he_shows_of_the_rate_is_that_of_the_programmes(pair):
    slide = pair[1]
    path, genes = slide.folder / "truth.h5", slide.truth("gene_id")
    shown = true_rate(path, genes, 30, 40, 50, 60, shown=True)
    np.testing.assert_allclose(shown, slide.visible_rate()[:, 30:80, 40:100], rtol=1e-5)


def test_splitmix64_is_the_published_generator():
    """Against the recurrence in Python's integers, and outputs published for this seed."""
    state, expected = 1234567, []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        expected.append(z ^ (z >> 31))
    assert expected[:2] == [6457827717110365317, 3203168211198807973]
    index = np.array([[0, 1], [2, 3], [4, 0]], np.uint64)
    drawn = splitmix64(1234567, index)
    assert drawn.tolist() == [[expected[i] for i in row] for row in index.tolist()]


def test_knots_are_independent_standard_normal_numbers():
    from scipy import stats

    v = HiddenVariation(1.0, 5).knots(np.arange(300), np.arange(20), np.arange(30))
    assert stats.kstest(v.ravel(), "norm").pvalue > 1e-3
    pairs = [(v[1:], v[:-1]), (v[:, 1:], v[:, :-1]), (v[..., 1:], v[..., :-1]), (v[64:], v[:-64])]
    for a, b in [*pairs, (v, HiddenVariation(1.0, 6).knots(*map(np.arange, v.shape)))]:
        assert abs((a * b).mean()) < 4 / np.sqrt(a.size)
        assert abs((a**2 * b**2).mean() - 1) < 4 * np.sqrt(8 / a.size)


def test_every_bin_has_variance_one_and_mean_factor_one():
    """At knots and between them alike, over many genes."""
    hidden, n = HiddenVariation(0.6, 11), 3000
    factors = np.stack([hidden.factors(g, 37, 15, 24, 23) for g in range(n)])
    z = (np.log(factors) + 0.18) / 0.6
    assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(n)
    assert np.abs(z.var(axis=0) - 1).max() < 5 * np.sqrt(2 / n)
    spread = np.sqrt((np.exp(0.36) - 1) / n)
    assert np.abs(factors.mean(axis=0) - 1).max() < 6 * spread


def test_fields_are_interpolated_between_knots():
    """Against the plain sum over the four corners, bin by bin."""
    hidden = HiddenVariation(1.0, 3)
    found = np.log(hidden.factors(9, 55, 130, 30, 25)) + 0.5
    for row in (55, 60, 71, 84):
        for col in (130, 139, 140, 154):
            (i, u), (j, v) = (divmod(at, 20) for at in (row, col))
            corners = hidden.knots(np.array([9]), np.arange(2) + i, np.arange(2) + j)[0]
            weights = np.outer([20 - u, u], [20 - v, v]) / 400
            z = (weights * corners).sum() / np.sqrt((weights**2).sum())
            assert found[row - 55, col - 130] == pytest.approx(z, abs=1e-12)


def test_the_log_rate_varies_as_set(log_factor):
    # Over 120 genes of 13 x 13 independent knots and more.
    assert log_factor.var() == pytest.approx(SD**2, rel=0.05)
    assert log_factor.mean() == pytest.approx(-(SD**2) / 2, abs=4 * SD / np.sqrt(GENES * 169))
    assert np.exp(log_factor).mean() == pytest.approx(1, abs=0.03)


def test_fields_are_smooth_over_tens_of_um(log_factor):
    z = log_factor / SD + SD / 2

    def correlation(bins: int) -> float:
        return float((z[:, bins:] * z[:, :-bins]).mean())

    assert correlation(1) > 0.98
    assert 0.6 < correlation(10) < 0.9  # 20 µm
    assert 0.1 < correlation(20) < 0.4
    assert abs(correlation(45)) < 0.05  # 90 µm
    assert abs((z[:, 45:] * z[:, :-45]).mean() - (z[..., 45:] * z[..., :-45]).mean()) < 0.08


def test_genes_vary_independently(log_factor):
    r = np.corrcoef(log_factor[:, ::10, ::10].reshape(GENES, -1))[np.triu_indices(GENES, 1)]
    assert abs(r.mean()) < 0.01
    assert 0.05 < r.std() < 0.12  # about 1 / sqrt(169 knots)
    assert np.abs(r).max() < 0.45


def test_counts_follow_the_varied_rates(pair):
    slide = pair[1]
    tissue = slide.tissue()
    count, rate = slide.counts("raw")[0], rate_of(slide)
    assert_poisson(count[:, tissue], rate[:, tissue])
    assert abs(count.sum() - rate.sum()) < 4 * np.sqrt(rate.sum())
    # And gene by gene on the fields' own scale, cell by cell between knots.
    cells = [
        x[:, :240, :240].reshape(GENES, 12, 20, 12, 20).sum(axis=(2, 4)) for x in (count, rate)
    ]
    z = (cells[0] - cells[1]) / np.sqrt(cells[1])
    assert abs((z**2).mean() - 1) < 4 * np.sqrt((2 + 1 / cells[1]).mean() / z.size)


def test_the_image_shows_nothing_of_it(pair):
    plain, varied = pair
    np.testing.assert_array_equal(plain.image, varied.image)
    for name in ("programmes", "loadings", "depth", "nuclei", "homography"):
        np.testing.assert_array_equal(plain.truth(name), varied.truth(name))
    np.testing.assert_allclose(rate_of(plain), plain.visible_rate(), rtol=2e-5)


def test_the_best_prediction_from_the_image_is_worse(pair):
    """Factors have mean 1, so the rate of the programmes is the best that H&E can tell."""

    def pcc(slide: Slide, rate: np.ndarray) -> float:
        tissue = slide.tissue()[:240, :240].reshape(30, 8, 30, 8).all(axis=(1, 3))
        a, b = (x[:60, :240, :240].reshape(60, 30, 8, 30, 8).sum(axis=(2, 4))[:, tissue]
                for x in (slide.counts("raw")[0], rate))  # fmt: skip
        return float(np.mean([np.corrcoef(*both)[0, 1] for both in zip(a, b, strict=True)]))

    plain, varied = (pcc(slide, slide.visible_rate()) for slide in pair)
    assert varied < 0.85 * plain
    assert pcc(pair[1], rate_of(pair[1])) > plain > varied  # and there is more to find


def test_windows_and_single_genes_are_parts_of_the_whole(pair):
    path, ids = pair[1].folder / "truth.h5", pair[1].truth("gene_id")
    part = true_rate(path, [ids[70], ids[3]], 17, 131, 33, 119)
    assert part.dtype == np.float32
    np.testing.assert_allclose(part, rate_of(pair[1])[[70, 3], 17:50, 131:250], rtol=1e-5)
    assert true_rate(path, ids[:2], 40, 250, 3, 0).shape == (2, 3, 0)


def test_the_truth_stores_no_maps_of_genes(pair):
    with h5py.File(pair[1].folder / "truth.h5") as f:
        assert f.attrs["format"] == "virchow_st.truth/2"
        assert {name: f["hidden"][name].shape for name in f["hidden"]} == {
            "key": (), "knot_bins": (), "sd": (),
        }  # fmt: skip
    with h5py.File(pair[0].folder / "truth.h5") as f:
        assert f.attrs["format"] == "virchow_st.truth/1"
        assert "hidden" not in f
        assert "hidden_variation" not in f.attrs
    assert read_origin(pair[1].folder / "truth.h5") == {
        "patient": "P5", "seed": 3, "bins": BINS, "genes": GENES, "hidden_variation": SD,
    }  # fmt: skip


def test_the_same_slide_again_and_other_patients_otherwise(pair, tmp_path):
    config = SimulateConfig(("P1", "P5"), bins=BINS, genes=GENES, seed=3, hidden_variation=SD)
    other, again = (Slide(folder) for folder in simulate_cohort(tmp_path, config))
    for file in ("truth.h5", "outs/binned_outputs/square_002um/raw_feature_bc_matrix.h5"):
        assert (again.folder / file).read_bytes() == (pair[1].folder / file).read_bytes()
    with h5py.File(other.folder / "truth.h5") as a, h5py.File(again.folder / "truth.h5") as b:
        assert a["hidden/key"][()] != b["hidden/key"][()]


def test_a_folder_with_other_variation_is_refused(pair):
    for slide, sd, held in ((pair[0], SD, "0"), (pair[1], 0.0, "0.8"), (pair[1], 0.5, "0.8")):
        config = SimulateConfig(("P5",), bins=BINS, genes=GENES, seed=3, hidden_variation=sd)
        with pytest.raises(ConfigError, match=f"it holds .* hidden_variation={held};"):
            simulate_cohort(slide.folder.parent, config)
    for sd in (-0.1, 2.5, float("nan")):
        with pytest.raises(ConfigError, match="hidden_variation: expected"):
            SimulateConfig(hidden_variation=sd)
