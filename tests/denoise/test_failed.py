"""Bins that failed: found or marked, left out of the likelihood, filled and told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from cli_place import Answer
from tiny_store import make_records, write_records, write_store

import virchow_st
from virchow_st.config import DenoiseConfig
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.failed import dead_lines, read_mask
from virchow_st.denoise.slide import read_slide
from virchow_st.denoise.smooth import Smoother
from virchow_st.denoise.store import denoise_store
from virchow_st.errors import ConfigError


def test_dead_rows_and_columns_are_found_and_sparse_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    umis = rng.poisson(2.0, (64, 96)).astype(float)
    umis[[10, 11, 40]] = 0
    umis[:, 70] = 0
    tissue = np.ones(umis.shape, bool)
    tissue[50:] = False
    umis[50:] = 0
    rows, cols = dead_lines(umis, tissue)
    assert np.flatnonzero(rows).tolist() == [10, 11, 40]
    assert np.flatnonzero(cols).tolist() == [70]
    # At 0.05 UMIs per bin, one row of 96 bins in 100 is empty by chance.
    rows, cols = dead_lines(rng.poisson(0.05, (400, 96)).astype(float), np.ones((400, 96), bool))
    assert not rows.any()
    assert not cols.any()


def planted(path: Path, rows: tuple[int, ...]) -> virchow_st.Store:
    """A store of 2 × 2 patches without counts in some array rows."""
    records = []
    for record in make_records(4, rate=0.6):
        at = record.position // 128 + record.info.row0
        kept = ~np.isin(at, rows)
        changed = {name: getattr(record, name)[kept] for name in ("gene", "position", "count")}
        info = replace(record.info, total_umi=int(changed["count"].sum()))
        records.append(replace(record, info=info, **changed))
    return write_records(path, records, 6, patient="A")


def test_dead_rows_are_filled_from_their_neighbours_and_marked(tmp_path: Path) -> None:
    store = planted(tmp_path / "A.vst", (30, 31, 200))
    denoise_store(store.path, tmp_path / "A.zarr", DenoiseConfig(factors=2))
    field = virchow_st.open_field(tmp_path / "A.zarr")
    tissue = field.tissue_mask
    assert field.provenance["dead_rows"] == [30, 31, 200]
    lines = np.zeros_like(tissue)
    lines[[30, 31, 200]] = True
    np.testing.assert_array_equal(field.failed, lines & tissue)
    total = sum(field.gene(gene) for gene in field.genes)
    near = tissue[[28, 29, 32, 33]]
    level = total[[28, 29, 32, 33]][near].mean()
    assert total[30][tissue[30]].mean() == pytest.approx(level, rel=0.15)
    low, high = field.interval(field.genes[0])
    rate = field.gene(field.genes[0])
    width = (high - low) / np.where(tissue, rate, 1)
    assert width[30][tissue[30]].mean() > 0.95 * width[28][tissue[28]].mean()


def test_stripes_are_exposure_and_not_rate(tmp_path: Path) -> None:
    efficiency = np.where(np.arange(256) % 2, 0.4, 1.0)
    rng, records = np.random.default_rng(0), []
    for record in make_records(4, rate=2.0):
        at = record.position // 128 + record.info.row0
        count = rng.binomial(record.count.astype(int), efficiency[at]).astype(record.count.dtype)
        kept = count > 0
        changed = {name: getattr(record, name)[kept] for name in ("gene", "position")}
        info = replace(record.info, total_umi=int(count.sum()))
        records.append(replace(record, info=info, count=count[kept], **changed))
    store = write_records(tmp_path / "A.vst", records, 6, patient="A")
    slide = read_slide(store)
    row = slide.place // slide.tissue.shape[1]
    odd, even = (slide.rows.exposure[row % 2 == i].mean() for i in (1, 0))
    assert odd / even == pytest.approx(0.4, abs=0.05)
    rates = estimate(slide, 2, 0).rates
    total = rates.factors @ rates.loadings.sum(0)
    assert total[row % 2 == 1].mean() / total[row % 2 == 0].mean() == pytest.approx(1, abs=0.06)
    assert slide.rows.exposure @ total == pytest.approx(slide.rows.count.sum(), rel=5e-3)


def test_marked_bins_do_not_enter(tmp_path: Path) -> None:
    store = write_store(tmp_path / "A.vst", n_patches=4, rate=0.6)
    mask = np.zeros((256, 256), np.uint8)
    mask[:100, :60] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    slide = read_slide(store, failed=tmp_path / "mask.png")
    whole = read_slide(store)
    inside = whole.tissue & (mask > 0)
    assert sorted(slide.unseen) == np.flatnonzero(inside.ravel()).tolist()
    assert len(slide.place) + len(slide.unseen) == len(whole.place)
    at = np.isin(whole.place, slide.place)
    np.testing.assert_array_equal(slide.rows.totals, whole.rows.totals[at])


def test_a_bin_beyond_reach_takes_what_is_nearest() -> None:
    smoother = Smoother(np.array([0, 1]), (1, 400))
    filled = smoother.filled(np.array([2.0, 4.0], np.float32), 2.0, np.array([2, 300]))
    assert 3.0 < filled[0] < 4.0
    assert filled[1] == pytest.approx(3.0, rel=0.05)
    guide = np.array([1.0, 2.0], np.float32), np.array([3.0, 3.0], np.float32)
    filled = smoother.filled(np.array([2.0, 4.0], np.float32), 2.0, np.array([2, 300]), guide)
    np.testing.assert_allclose(filled, 6.0, rtol=1e-5)  # twice the guide, as where it is seen


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "found no such file"),
        (lambda path: path.write_text("no"), "cannot be read as one"),
        (
            lambda path: cv2.imwrite(str(path), np.zeros((100, 300), np.uint8)),
            "at least 256×256",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(path := tmp_path / "mask.png")
    with pytest.raises(ConfigError, match=message):
        read_mask(path, (0, 0), (256, 256))


def test_a_mask_of_nearly_everything_is_one_line(
    vst: Callable[..., Answer], tmp_path: Path
) -> None:
    store = write_store(tmp_path / "A.vst", n_patches=4)
    cv2.imwrite(str(tmp_path / "mask.png"), np.ones((256, 256), np.uint8))
    answer = vst(
        "denoise", store.path, "--failed", tmp_path / "mask.png", "--out", tmp_path / "x.zarr"
    )
    assert answer.code == 2
    assert "expected at most half of the tissue bins to have failed; got 100%" in answer.err
    assert not (tmp_path / "x.zarr").exists()
