"""Abundance of simulated genes: unchanged for panels, realistic for transcriptomes."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from simulated_slide import Slide

from virchow_st.config import SimulateConfig
from virchow_st.simulate import simulate_cohort
from virchow_st.simulate.abundance import abundance_curve


@pytest.fixture(scope="module")
def transcriptome(tmp_path_factory) -> Slide:
    config = SimulateConfig(patients=("P1",), bins=128, genes=18_000)
    return Slide(simulate_cohort(tmp_path_factory.mktemp("transcriptome"), config)[0])


def umis_per_bin(slide: Slide) -> np.ndarray:
    """Expected UMIs of every gene in an average tissue bin, (G,)."""
    tissue = slide.tissue()
    weighted = slide.truth("programmes")[:, tissue] * slide.truth("depth")[tissue].astype(float)
    return slide.truth("loadings") @ weighted.mean(axis=1)


def test_a_panel_keeps_the_power_law():
    for n in (60, 400, 1000):
        np.testing.assert_array_equal(abundance_curve(n), (1 + np.arange(n) / 25) ** -1.15)


def test_the_two_curves_meet():
    panel, more = (abundance_curve(n) for n in (1000, 1001))
    totals = [curve.sum() / curve[:50].sum() for curve in (panel, more)]
    assert totals[1] == pytest.approx(totals[0], rel=0.1)


def test_fewer_genes_are_the_most_abundant_of_a_transcriptome():
    np.testing.assert_array_equal(abundance_curve(5000), abundance_curve(18_000)[:5000])
    for n in (18_000, 30_000):
        log = np.log(abundance_curve(n))
        assert (np.diff(log) < 0).all()
        assert log.mean() == pytest.approx(0, abs=1e-6)
        assert log.std() == pytest.approx(2.2, rel=0.002)


def test_quantiles_of_a_transcriptome(transcriptome):
    """Most genes lie below 1e-4 UMIs per bin, and all together have about nine."""
    mean = np.sort(umis_per_bin(transcriptome))[::-1]
    top = mean[:50].sum()
    assert 2.5 * 0.78 < top < 2.5 * 1.28  # patients differ in depth
    mean *= 2.5 / top
    assert mean.sum() == pytest.approx(9.0, abs=0.7)
    assert (mean < 1e-4).mean() == pytest.approx(0.64, abs=0.03)
    found = np.quantile(mean, [0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
    expected = np.array([2.6e-6, 1.0e-5, 4.4e-5, 2.0e-4, 7.5e-4, 7.5e-3])  # log-normal, sd 2.2
    np.testing.assert_allclose(found, expected, rtol=0.15)


def test_counts_have_the_abundances(transcriptome):
    mean, n_bins = umis_per_bin(transcriptome), transcriptome.tissue().sum()
    with h5py.File(transcriptome.square / "filtered_feature_bc_matrix.h5") as f:
        m = f["matrix"]
        assert m["shape"][:].tolist() == [18_000, n_bins]
        total = np.bincount(m["indices"][:], m["data"][:], 18_000)
    assert total.sum() == pytest.approx(mean.sum() * n_bins, rel=0.02)
    classes = np.array_split(np.argsort(mean), 20)
    for observed, expected in ((total[part].sum(), mean[part].sum() * n_bins) for part in classes):
        assert abs(observed - expected) < 4.5 * np.sqrt(expected) + 1
    unseen = np.exp(-mean * n_bins).sum()  # Poisson numbers of 0
    assert 3000 < unseen < 10_000
    assert (total == 0).sum() == pytest.approx(unseen, rel=0.05)


def test_the_default_slide_is_the_one_it_was(tmp_path):
    """Drawn before there were transcriptomes; other libraries may move single UMIs by rounding."""
    config = SimulateConfig(patients=("P1",), bins=128)
    assert config.genes == 1000
    counts = Slide(simulate_cohort(tmp_path, config)[0]).counts("raw")[0]
    by_gene = counts.sum(axis=(1, 2))
    assert abs(by_gene.sum() - 83178) <= 20
    first = [1308, 929, 1665, 628, 977, 874, 789, 943, 725, 537, 818, 685]
    hundredths = [228, 68, 81, 42, 42, 15, 41, 16, 12]
    assert np.abs(by_gene[:12] - first).max() <= 2
    assert np.abs(by_gene[100::100] - hundredths).max() <= 2
    assert np.abs(counts.sum(axis=0)[:4].sum(axis=1) - [38, 73, 143, 178]).max() <= 2
