"""What rates rest on: shares of the own counts, of the neighbours and of the image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from denoised import patchwork
from tiny_store import make_records, write_records

import virchow_st
from virchow_st.config import DenoiseConfig, ExportConfig
from virchow_st.denoise.alike import Surroundings
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.prior import Prior
from virchow_st.denoise.smooth import Smoother, gaussian
from virchow_st.denoise.sources import Sources, source_maps, weights_alike, weights_gaussian
from virchow_st.denoise.store import denoise_store
from virchow_st.errors import ConfigError
from virchow_st.output.export.write import export_run

SHAPE, WIDTH_UM, BETA = (24, 30), 4.0, np.array([0.75, 0.0])


class Tissue:
    """Bins with holes, unequal exposure, and maps of an image for two factors."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.place = np.flatnonzero(rng.random(SHAPE) < 0.9)
        n = len(self.place)
        self.smoother = Smoother(self.place, SHAPE, rng.uniform(0.5, 2.0, n))
        self.maps = rng.gamma(2.0, 1.0, (n, 2))
        self.umis = rng.poisson(3.0, (n, 2)).astype(float)

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        def guide(k: int) -> np.ndarray:
            return (self.maps[:, k] ** BETA[k]).astype(np.float32)

        return weights_gaussian(self.smoother, WIDTH_UM, guide, 2)

    def rates(self, maps: np.ndarray) -> np.ndarray:
        """(n, K) by the definition, in float64."""
        g = maps**BETA
        at = np.stack(np.divmod(self.place, SHAPE[1]))
        apart = at[:, :, None] - at[:, None, :]
        kernel = gaussian(WIDTH_UM / 2).astype(float)
        middle = len(kernel) // 2
        tail = np.append(kernel[middle:], 0.0)
        w = tail[np.minimum(np.abs(apart), len(tail) - 1)].prod(0)
        return g * (w @ self.umis) / (w @ (self.smoother.exposure[:, None] * g))


@pytest.fixture
def tissue() -> Tissue:
    return Tissue()


def test_the_image_has_the_share_by_which_a_rate_follows_it(tissue: Tissue) -> None:
    own, of_cell = tissue.weights()
    rates = tissue.rates(tissue.maps)
    shares = Sources.of((own, of_cell), rates.astype(np.float32), BETA, rates[:0], BETA).columns
    row, col = np.divmod(tissue.place, SHAPE[1])
    cell = row // 4 * 100 + col // 4
    step = 1e-5
    for i in (0, 137, 400):
        for raised, column, inside in (
            (np.arange(len(rates)) == i, 2, np.arange(len(rates)) == i),
            (cell == cell[i], 4, cell == cell[i]),
        ):
            maps = tissue.maps * np.where(raised, 1 + step, 1.0)[:, None]
            change = (tissue.rates(maps) - rates)[inside].sum() / rates[inside].sum() / step
            total = shares[inside, 0]
            assert change == pytest.approx(shares[inside, column] @ total / total.sum(), abs=2e-4)


def test_own_counts_have_the_weight_with_which_they_enter(tissue: Tissue) -> None:
    own, of_cell = tissue.weights()
    # Where every bin says the same of every other, one per cent more UMIs is a share more rate.
    tissue.umis = tissue.smoother.exposure[:, None] * tissue.maps**BETA
    level = tissue.rates(tissue.maps)
    tissue.umis[137] *= 1.01
    change = (tissue.rates(tissue.maps)[137] / level[137] - 1) / 0.01
    np.testing.assert_allclose(change, own[137], rtol=1e-3)
    assert (own <= of_cell * 1.0001).all()
    np.testing.assert_array_less(of_cell, 1 + 1e-6)


def test_a_gaussian_by_itself_is_the_case_in_which_all_are_alike(tissue: Tissue) -> None:
    n = len(tissue.place)
    for guides in (None, (tissue.maps**BETA).astype(np.float32)):
        base = tissue.smoother.exposure[:, None] * (1 if guides is None else guides)
        kernel = gaussian(WIDTH_UM / 2)
        near = Surroundings(np.zeros((n, 1), np.float32), base, guides, kernel, 1.0)
        guide = None if guides is None else (lambda k, g=guides: g[:, k])
        expected = weights_gaussian(tissue.smoother, WIDTH_UM, guide, 2)
        for found, one in zip(weights_alike(near, tissue.smoother), expected, strict=True):
            np.testing.assert_allclose(found, one, rtol=2e-4)


def test_shares_of_an_estimate() -> None:
    means = {}
    for umis in (8.0, 0.5):
        slide, truth = patchwork(48, umis)
        maps = truth[:, np.argsort(-truth.sum(0))[:10]].astype(np.float32)
        loadings = np.full((len(slide.panel), 10), np.nan)
        prior = Prior.of_one(maps, maps[:0], loadings, "run")
        for name, given in ("counts", None), ("image", prior):
            found = estimate(slide, 3, 0, prior=given).rates.sources
            assert found is not None
            at_2um, at_8um = source_maps(found.columns.T.reshape(5, 48, 48))
            for shares in at_2um, at_8um:
                np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
                assert shares.min() >= -1e-6
            means[name, umis] = found.means()
    for umis in (8.0, 0.5):
        assert means["counts", umis]["8"]["image"] == 0
        assert means["image", umis]["8"]["image"] > 0.1
        assert means["counts", umis]["8"]["own counts"] > means["counts", umis]["2"]["own counts"]
    assert means["counts", 8.0]["2"]["own counts"] > 1.5 * means["counts", 0.5]["2"]["own counts"]


def test_a_field_keeps_them_and_its_export_too(tmp_path: Path) -> None:
    store = write_records(tmp_path / "A.vst", make_records(1, rate=0.6), 6, patient="A")
    failed = np.zeros((128, 128), np.uint8)
    failed[40:44, 20:60] = 1
    cv2.imwrite(str(tmp_path / "failed.png"), failed)
    given = DenoiseConfig(factors=2)
    denoise_store(store.path, tmp_path / "A.zarr", given, failed=tmp_path / "failed.png")
    field = virchow_st.open_field(tmp_path / "A.zarr")
    fine, coarse = field.sources(2), field.sources()
    there = field.covered & field.tissue_mask
    assert fine.shape == (3, *field.shape)
    np.testing.assert_array_equal(np.isnan(fine[0]), ~there)
    np.testing.assert_allclose(fine[:, there].sum(0), 1, atol=0.02)
    assert not fine[0, field.failed].any()
    assert (fine[0, there & ~field.failed] > 0).all()
    rate = field.gene(field.genes[0])
    assert coarse.shape == (3, rate.shape[0] // 4, rate.shape[1] // 4)
    about = field.provenance["sources"]["8"]
    assert about["own counts"] == pytest.approx(np.nanmean(coarse[0]), abs=0.03)
    chosen = ExportConfig(format="spatialdata", genes=field.genes[0])
    export_run(field.path, tmp_path / "B.zarr", chosen)
    again = virchow_st.open_field(tmp_path / "B.zarr")
    for um in (2, 8):
        np.testing.assert_array_equal(again.sources(um), field.sources(um))
    with pytest.raises(ConfigError, match=r"scale_um: expected one of \(2, 8\); got 4"):
        field.sources(4)
