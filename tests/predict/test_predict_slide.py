"""The parts of ``vst predict``: resolution, lattice, window, stitching, rounding, metadata."""

import json

import numpy as np
import pytest
import tifffile
import zarr

from virchow_st.errors import SlideError
from virchow_st.field.bins import rounded
from virchow_st.field.loadings import Loadings
from virchow_st.field.ngff import Folder
from virchow_st.predict.lattice import covered, lay_over, window
from virchow_st.predict.rates import RateImages
from virchow_st.predict.slide import write_picture
from virchow_st.predict.stitch import Stitcher
from virchow_st.run.panel import Panel
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import lay_patches
from virchow_st.types import BLOCK_BINS

# --- lattice ------------------------------------------------------------------------------------


def test_lattice_without_overlap_is_that_of_extraction():
    rng = np.random.default_rng(0)
    cells = rng.random((3 * 32, 5 * 32)) < np.linspace(0, 1, 5 * 32)
    ours = lay_over(cells, 0.4)
    theirs = lay_patches(cells.repeat(4, 0).repeat(4, 1), 0.4)
    one, other = (set(zip(t.row0.tolist(), t.col0.tolist(), strict=True)) for t in (ours, theirs))
    assert one == other
    assert len(one) == 9


@pytest.mark.parametrize("overlap", [0, 16, 32, 64])
@pytest.mark.parametrize("shape", [(100, 70), (33, 32), (20, 90)])
def test_lattice_covers_the_grid_and_weighs_tissue(overlap, shape):
    rng = np.random.default_rng(1)
    cells = rng.random(shape) < 0.7
    every = lay_over(np.ones(shape, bool), 0.0, overlap)
    assert covered(np.ones(shape, bool), every) == 1
    starts = sorted(set(every.row0.tolist()))
    assert starts == [(128 - overlap) * i for i in range(len(starts))]
    assert len(starts) == 1 or starts[-2] + 128 < 4 * shape[0]  # none in vain
    table = lay_over(cells, 0.3, overlap)
    for r, c, fraction in zip(table.row0 // 4, table.col0 // 4, table.tissue_fraction, strict=True):
        inside = cells[r : r + 32, c : c + 32]
        assert fraction == pytest.approx(inside.sum() / 1024)  # off the grid there is none
        assert fraction >= 0.3


def test_no_patch_with_enough_tissue():
    cells = np.zeros((64, 64), bool)
    cells[:8] = True
    with pytest.raises(SlideError, match=r"at least 50% tissue; the best has 25%.*--min-tissue"):
        lay_over(cells, 0.5)


@pytest.mark.parametrize("overlap", [0, 16, 32, 64])
def test_windows_of_neighbours_add_up_to_one(overlap):
    w = window(overlap)
    assert w.min() > 0
    side = np.sqrt(w.diagonal())
    np.testing.assert_allclose(side[:overlap] + side[128 - overlap :], 1, atol=1e-6)
    np.testing.assert_allclose(side[overlap : 128 - overlap], 1, atol=1e-6)
    np.testing.assert_allclose(w, np.outer(side, side), atol=1e-6)


# --- stitching ----------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0, 16, 64])
def test_stitching_is_the_weighted_mean(overlap):
    rng = np.random.default_rng(3)
    cells = rng.random((150, 130)) < 0.9
    cells[40:80, 20:90] = False
    table = lay_over(cells, 0.5, overlap)
    shape = 4 * cells.shape[0], 4 * cells.shape[1]
    rates = rng.random((len(table), 2, 128, 128), np.float32)
    w = window(overlap).astype(np.float64)
    sums, weights = np.zeros((2, 1000, 1000)), np.zeros((1000, 1000))
    for r, c, rate in zip(table.row0, table.col0, rates, strict=True):
        sums[:, r : r + 128, c : c + 128] += rate * w
        weights[r : r + 128, c : c + 128] += w
    there = weights[: shape[0], : shape[1]] > 0
    expected = (sums / np.maximum(weights, 1e-12))[:, : shape[0], : shape[1]]

    actual = np.full((2, *shape), np.nan, np.float32)
    written = set()

    def write(row0, col0, block, mask):
        assert (row0, col0) not in written
        written.add((row0, col0))
        h, w = mask.shape
        actual[:, row0 : row0 + h, col0 : col0 + w] = block
        np.testing.assert_array_equal(mask, there[row0 : row0 + h, col0 : col0 + w])

    stitcher = Stitcher(table, overlap, shape, write)
    for r, c, rate in zip(table.row0.tolist(), table.col0.tolist(), rates, strict=True):
        stitcher.add(r, c, rate)
    np.testing.assert_array_equal(np.isnan(actual[0]), ~there)
    np.testing.assert_allclose(actual[:, there], expected[:, there], rtol=2e-6)
    assert (stitcher.n_bins, stitcher.n_left_out) == (there.sum(), 0)
    # A bin that one of the patches over it lacks is left out, and counted once.
    rates[:, :, 3, 100] = np.nan
    lost = np.zeros_like(there)
    for r, c in zip(table.row0, table.col0, strict=True):
        lost[r + 3 : r + 4, c + 100 : c + 101] = True
    written.clear()
    stitcher = Stitcher(table, overlap, shape, write)
    for r, c, rate in zip(table.row0.tolist(), table.col0.tolist(), rates, strict=True):
        stitcher.add(r, c, rate)
    np.testing.assert_array_equal(np.isnan(actual[0]), ~there | lost)
    assert (stitcher.n_bins, stitcher.n_left_out) == (there.sum(), lost.sum())


@pytest.mark.parametrize(("overlap", "bound"), [(0, 1), (16, 20 + 4)])
def test_few_blocks_are_open_at_a_time(overlap, bound):
    """On a slide 20 blocks wide and high: one block, or with overlap one row of them."""
    cells = np.ones((20 * BLOCK_BINS // 4, 20 * BLOCK_BINS // 4), bool)
    table = lay_over(cells, 0.5, overlap)
    side = 20 * BLOCK_BINS
    n = []
    stitcher = Stitcher(table, overlap, (side, side), lambda *block: n.append(block[:2]))
    nothing = np.zeros((1, 128, 128), np.float32)
    for r, c in zip(table.row0.tolist(), table.col0.tolist(), strict=True):
        stitcher.add(r, c, nothing)
    assert len(n) == len(set(n)) == 400
    assert stitcher.most_open <= bound


# --- what is written ----------------------------------------------------------------------------


def test_rounding():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.lognormal(-3, 4, 10_000), [0, 1, 0.5]]).astype(np.float32)
    actual = rounded(values)
    np.testing.assert_allclose(actual, values, rtol=2**-13 / 2 * 1.001)
    np.testing.assert_array_equal(actual[-3:], [0, 1, 0.5])
    assert (actual.view(np.uint32) & 1023 == 0).all()
    np.testing.assert_array_equal(np.isnan(rounded(np.float32([np.nan, 2]))), [True, False])


def test_channels_have_names_of_their_own():
    panel = Panel(("E1", "E2", "E3", "E4"), ("A", "B", "A", ""))
    assert panel.labels == ["A (E1)", "B", "A (E3)", "E4"]


def test_rates_at_both_scales_and_their_spread(tmp_path):
    rng = np.random.default_rng(5)
    folder = Folder(tmp_path / "a", "spatialdata", {})
    images = RateImages(folder, Loadings(Panel(("E1", "E2"), ("A", "B"))), 3, (256, 264))
    rates = rng.random((6, 256, 8), np.float32)
    there = np.ones((256, 8), bool)
    there[128:] = False
    rates[:, ~there] = np.nan
    images.write(0, 256, rates, there)
    root = zarr.open_group(tmp_path / "a", mode="r")
    by_run = rates.reshape(3, 2, 256, 8)[:, :, :128].astype(float)
    at_8um = by_run.reshape(3, 2, 32, 4, 2, 4).sum(axis=(3, 5))
    for name, values, axis in (("2um", by_run, 256), ("8um", at_8um, 64)):
        cut = np.s_[:, : values.shape[2], axis:]
        actual = root[f"images/rates_{name}/s0"]
        np.testing.assert_allclose(actual[cut], values.mean(0), rtol=1e-4)
        np.testing.assert_allclose(
            root[f"images/spread_{name}/s0"][cut], values.std(0, ddof=1), rtol=1e-4
        )
        assert np.isnan(actual[:, :, :axis]).all()  # never written
        assert np.isnan(actual[:, values.shape[2] :]).all()
    half = root["images/rates_2um/s1"][:, :64, 128:]
    means = by_run.mean(0).reshape(2, 64, 2, 4, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(half, means, rtol=1e-4)


@pytest.mark.parametrize("mpp", [0.25, 0.274, 0.6])
def test_the_slides_picture_is_a_pyramid_of_means(tmp_path, mpp):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1111, 1703, 3), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128))
    with SlideImage.open(path) as image:
        folder = Folder(tmp_path / "z", "ome-zarr", {})
        picture = write_picture(folder, image, mpp)
    k = int(1 / mpp)
    assert picture.mpp == pytest.approx(k * mpp)
    h, w = 1111 // k, 1703 // k  # whole ones
    means = pixels[: h * k, : w * k].reshape(h, k, w, k, 3).mean(axis=(1, 3))
    finest, _ = picture.read(0)
    assert finest.shape == (-(-1111 // k), -(-1703 // k), 3)
    assert np.abs(finest[:h, :w] - means).max() <= 1
    coarse, um_per_px = picture.read(3)
    assert um_per_px == pytest.approx(8 * picture.mpp)
    h, w = h // 8, w // 8
    means = finest[: h * 8, : w * 8].reshape(h, 8, w, 8, 3).mean(axis=(1, 3))
    assert np.abs(coarse[:h, :w] - means).max() <= 2
    assert (picture.levels[0][:, finest.shape[0] :] == 255).all()


@pytest.mark.parametrize("flavour", ["spatialdata", "ome-zarr"])
def test_metadata_put_pixels_at_their_micrometres(tmp_path, flavour):
    folder = Folder(tmp_path / "a", flavour, {"about": {"x": 1}})
    levels = folder.add_image(
        "rates", ["A", "B"], (64, 32), 2.0, 3, dtype="float32", chunk=32, fill=np.nan, brightest=1
    )
    folder.add_labels("tissue", (16, 8), 8.0)[:] = 1
    folder.finish(more=2)
    assert [a.shape for a in levels] == [(2, 64, 32), (2, 32, 16), (2, 16, 8)]
    root = json.loads((tmp_path / "a" / "zarr.json").read_text())["attributes"]
    assert (root["about"], root["more"]) == ({"x": 1}, 2)
    attributes = json.loads((tmp_path / "a/images/rates/zarr.json").read_text())["attributes"]
    (scales,) = attributes["ome"]["multiscales"]
    whole = np.ones(3)
    if flavour == "spatialdata":
        whole = np.array(scales["coordinateTransformations"][0]["scale"])
    for level, dataset in enumerate(scales["datasets"]):
        assert dataset["path"] == f"s{level}"
        own = np.array(dataset["coordinateTransformations"][0]["scale"])
        np.testing.assert_array_equal(whole * own, [1, 2 << level, 2 << level])
    assert [axis["name"] for axis in scales["axes"]] == ["c", "y", "x"]
    assert {axis.get("unit") for axis in scales["axes"][1:]} == {"micrometer"}
    channels = attributes["ome"]["omero"]["channels"]
    assert [channel["label"] for channel in channels] == ["A", "B"]
    if flavour == "ome-zarr":
        assert attributes["ome"]["version"] == root["ome"]["version"] == "0.5"
        listed = json.loads((tmp_path / "a/OME/zarr.json").read_text())["attributes"]["ome"]
        assert listed["series"] == ["images/rates"]
        assert all(channel["color"] and channel["window"]["end"] == 1 for channel in channels)
    else:
        assert root["spatialdata_attrs"]["version"] == "0.2"
