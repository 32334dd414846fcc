"""``vst predict`` from an image to the files on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from cli_place import assert_refused
from tiny_cohort import STAIN
from tiny_slide import TinySlide

import virchow_st
from virchow_st.config import PredictConfig
from virchow_st.errors import ConfigError, SlideError
from virchow_st.extract.slide import extract_slide
from virchow_st.predict.image import scaling
from virchow_st.predict.slide import predict_slide
from virchow_st.run.checkpoint import read_state
from virchow_st.run.integrity import file_hashes, hash_of
from virchow_st.slide.geometry import Homography

PITCH = 6  # px a bin
MPP = 2 / PITCH
BINS = 264  # two patches and a rest
GREEN = (0, 200, 0)
MARKER_UM = (90.0, 150.0, 300.0, 380.0)  # left, right, top, bottom


@pytest.fixture(scope="module")
def runs(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ by their seed alone."""
    from virchow_st_cli.main import run as vst

    folder = tmp_path_factory.mktemp("runs")
    panel = folder / "panel.txt"
    panel.write_text("\n".join(virchow_st.open_store(stores["P1"]).genes.ids[:12]))
    made = [folder / "a", folder / "b"]
    for seed, path in enumerate(made):
        arguments = [
            "train", *stores.values(), "--run", path, "--test-patient", "P5", "--panel", panel,
            "--decoder", "linear", "--optimizer", "adamw", "--epochs", 1, "--lr", "5e-4",
            "--batch-size", 4, "--accumulate", 1, "--device", "cpu", "--seed", seed,
        ]  # fmt: skip
        assert vst([str(a) for a in arguments]) == 0
    return made


@pytest.fixture(scope="module")
def picture(simulated: Path) -> np.ndarray:
    """Tissue of a simulated slide at 1/3 µm/px, glass below it, and a green square."""
    whole = tifffile.imread(simulated / "P5" / "tissue_image.tif")
    middle = [n // 2 for n in whole.shape[:2]]
    cut = whole[middle[0] - 350 : middle[0] + 350, middle[1] - 350 : middle[1] + 350]
    side = BINS * PITCH
    pixels = cv2.resize(np.ascontiguousarray(cut), (side, side), interpolation=cv2.INTER_CUBIC)
    pixels[-300:, :700] = 245
    left, right, top, bottom = (round(um / MPP) for um in MARKER_UM)
    pixels[top:bottom, left:right] = GREEN
    return pixels


@pytest.fixture(scope="module")
def image(picture: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It as a pyramidal TIFF that knows its resolution."""
    path = tmp_path_factory.mktemp("image") / "slide.tif"
    with tifffile.TiffWriter(path) as tiff:
        how: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "lzw"}
        known = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
        tiff.write(picture, **how, **known)
        half = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        tiff.write(half, subfiletype=1, **how)
    return path


@pytest.fixture(scope="module")
def predicted(runs: list[Path], image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SpatialData folder of both runs, with the default overlap."""
    from virchow_st_cli.main import run as vst

    out = tmp_path_factory.mktemp("predicted") / "slide.zarr"
    arguments = ["predict", runs[0], image, "--out", out, "--also", runs[1], "--device", "cpu"]
    assert vst([str(a) for a in arguments]) == 0
    return out


def test_rates_are_those_of_evaluation(runs: list[Path], image: Path, tmp_path: Path) -> None:
    """On a slide whose bins are a pure scaling of the image, on the same lattice."""
    scale = {"bin_size_um": 2.0, "tissue_hires_scalef": 0.25}
    slide = TinySlide(rows=BINS, cols=BINS, n_genes=8, scalefactors=scale)
    slide.homography = scaling(MPP)
    outs = slide.write(tmp_path / "outs")
    # Counts at random lie on no image: that it is the right one has to be told by its size.
    hires = cv2.resize(cv2.imread(str(image)), None, fx=0.25, fy=0.25)
    spatial = outs / "binned_outputs" / "square_002um" / "spatial"
    cv2.imwrite(str(spatial / "tissue_hires_image.png"), hires)
    store = extract_slide(outs, image, tmp_path / "slide.vst", "P9", STAIN)
    expected = list(virchow_st.load_run(runs[0], "cpu").predict_store(store))
    config = PredictConfig(overlap_um=0, min_tissue=0.0, device="cpu")
    done = predict_slide(runs[:1], image, tmp_path / "out.zarr", config)
    assert done.most_open_blocks == 1
    root = zarr.open_group(tmp_path / "out.zarr", mode="r")
    rates = root["images/rates_2um/s0"][:]
    assert rates.shape == (12, BINS, BINS)
    assert len(store) == 4
    for patch, rate in zip(store, expected, strict=True):
        actual = rates[:, patch.row0 : patch.row0 + 128, patch.col0 : patch.col0 + 128]
        np.testing.assert_allclose(actual, rate, rtol=1e-4, atol=1e-6)
    coarse = root["images/rates_8um/s0"][:, :64, :64]
    pooled = rates[:, :256, :256].reshape(12, 64, 4, 64, 4).sum(axis=(2, 4))
    np.testing.assert_allclose(coarse, pooled, rtol=2e-4)


def test_scaling_puts_the_first_bin_into_the_corner() -> None:
    h = scaling(MPP)
    np.testing.assert_allclose(h.patch_corners_px(0, 128)[0], (128 * PITCH, 0), atol=1e-9)
    assert isinstance(h, Homography)
    assert h.mpp_at(50, 50) == pytest.approx(MPP)


def test_what_a_prediction_holds(predicted: Path, runs: list[Path], image: Path) -> None:
    assert {p.name for p in predicted.parent.iterdir()} == {"slide.zarr", "slide_tissue.png"}
    root = zarr.open_group(predicted, mode="r")
    assert set(root["images"]) == {"he", "rates_2um", "rates_8um", "spread_2um", "spread_8um"}
    about = root.attrs["virchow_st"]
    assert about["format"] == "virchow_st.prediction/1"
    assert [run["path"] for run in about["runs"]] == [run.name for run in runs]
    assert len({run["config"] for run in about["runs"]}) == 2
    assert about["encoder"]["name"] == "stain"
    assert about["image"]["name"] == image.name
    assert about["image"]["mpp"] == pytest.approx(MPP)
    assert about["options"]["overlap_um"] == 32
    assert 0.5 < about["tissue"]["covered"] <= 1
    panel = virchow_st.load_run(runs[0], "cpu").panel
    assert about["genes"]["id"] == list(panel.ids)
    rates, spread = (root[f"images/{n}_2um/s0"][:] for n in ("rates", "spread"))
    there = ~np.isnan(rates)
    np.testing.assert_array_equal(there, ~np.isnan(spread))
    assert 0.5 < there[0].mean() <= 1
    assert (there == there[0]).all()
    assert (rates[there] >= 0).all()
    assert (spread[there] >= 0).all()
    assert spread[there].max() > 0
    tissue = root["labels/tissue/s0"][:].astype(bool)
    assert tissue.shape == (BINS // 4, BINS // 4)
    assert not tissue[56:, :25].any()  # glass
    assert tissue[:50].mean() > 0.95


def test_it_is_a_field_whose_maps_are_the_rates(predicted: Path) -> None:
    root = zarr.open_group(predicted, mode="r")
    field = virchow_st.open_field(predicted)
    assert field.is_direct
    assert field.provenance == root.attrs["virchow_st"]
    assert list(field.genes) == field.provenance["genes"]["id"]
    for scale_um in (2, 8):
        rates = root[f"images/rates_{scale_um}um/s0"][:]
        np.testing.assert_array_equal(field.gene(field.genes[5], scale_um), rates[5])
    np.testing.assert_array_equal(field.covered, np.isfinite(root["images/rates_2um/s0"][0]))
    tissue = root["labels/tissue/s0"][:] == 1
    np.testing.assert_array_equal(field.tissue_mask[::4, ::4], tissue)


def test_blending_leaves_no_seam(predicted: Path) -> None:
    """Neighbouring bins differ no more where patches meet than where tokens do."""
    rates = zarr.open_group(predicted, mode="r")["images/rates_2um/s0"][:, :224, :224]
    for steps in (np.abs(np.diff(rates, axis=1)).mean((0, 2)), np.abs(np.diff(rates)).mean((0, 1))):
        at = np.arange(1, 224)  # the step into this bin
        border, token = np.isin(at, [112, 128]), at % 8 == 0
        assert steps[border].mean() < 1.25 * steps[token & ~border].mean()


def test_a_picture_in_memory_gets_the_same_rates(
    runs: list[Path], picture: np.ndarray, tmp_path: Path
) -> None:
    """`Run.predict` on the pixels is ``vst predict`` on a file of them."""
    png = tmp_path / "slide.png"
    cv2.imwrite(str(png), picture[..., ::-1])
    predict_slide(runs[:1], png, tmp_path / "out.zarr", PredictConfig(mpp=MPP, device="cpu"))
    root = zarr.open_group(tmp_path / "out.zarr", mode="r")
    expected = root["images/rates_2um/s0"][:]
    run = virchow_st.load_run(runs[0], "cpu")
    actual = run.predict_image(picture, mpp=MPP, min_tissue=0.5)
    assert actual.rates.shape == expected.shape == (12, BINS, BINS)
    np.testing.assert_allclose(actual.rates, expected, rtol=2e-4, atol=1e-6)  # NaN at NaN
    tissue = root["labels/tissue/s0"][:].astype(bool)
    assert (actual.tissue_mask[::4, ::4] == tissue).mean() > 0.99
    left, right, top, bottom = map(round, MARKER_UM)
    assert actual.image.shape == (2 * BINS, 2 * BINS, 3)
    marker = actual.image[top + 2 : bottom - 2, left + 2 : right - 2].astype(int)
    assert (np.abs(marker - GREEN) <= 2).all()
    every = run.predict_image(picture, mpp=MPP)  # by default, cut edges are predicted too
    assert not np.isnan(every.rates[:, every.tissue_mask]).any()


def test_pictures_that_cannot_be_predicted(runs: list[Path], picture: np.ndarray) -> None:
    run = virchow_st.load_run(runs[0], "cpu")
    with pytest.raises(
        TypeError, match="expected a patch of a store.* got ndarray; use predict_st"
    ):
        run.predict(picture)
    with pytest.raises(SlideError, match="image: expected 0.05 to 1.2 µm per pixel"):
        run.predict_image(picture, mpp=4)
    for wrong in (picture.astype(float), picture[..., 0], picture[:0]):
        with pytest.raises(ValueError, match=r"image: expected uint8 \(H, W, 3\) RGB"):
            run.predict_image(wrong, mpp=MPP)
    with pytest.raises(SlideError, match=": expected tissue; nothing of 20,000"):
        run.predict_image(np.full((900, 900, 3), 240, np.uint8), mpp=0.5)
    with pytest.raises(ConfigError, match="weights"):
        run.predict_image(picture, mpp=MPP, weights="none.safetensors")


def test_marker_comes_out_at_its_micrometres(predicted: Path) -> None:
    """From the metadata alone: scale of the level, scale of the image."""
    group = zarr.open_group(predicted, mode="r")["images/he"]
    (scales,) = group.attrs["ome"]["multiscales"]
    whole = np.array(scales["coordinateTransformations"][0]["scale"])
    for dataset in scales["datasets"][:3]:
        _, y, x = whole * np.array(dataset["coordinateTransformations"][0]["scale"])
        pixels = group[dataset["path"]][:].astype(float)
        green = (pixels[1] > 170) & (pixels[0] < 60)
        rows, cols = (np.flatnonzero(green.any(axis)) for axis in (1, 0))
        actual = cols[0] * x, (cols[-1] + 1) * x, rows[0] * y, (rows[-1] + 1) * y
        np.testing.assert_allclose(actual, MARKER_UM, atol=1.01 * x)


def test_spatialdata_opens_it(predicted: Path) -> None:
    pytest.importorskip("spatialdata", reason="pip install 'virchow_st[spatial]'")
    code = """
import sys, warnings
import numpy as np
warnings.simplefilter("ignore")
import spatialdata
from spatialdata.transformations import get_transformation
s = spatialdata.read_zarr(sys.argv[1])
assert set(s.images) == {"he", "rates_2um", "rates_8um", "spread_2um", "spread_8um"}, s
assert set(s.labels) == {"tissue", "covered"}
assert (s["loadings"].X.toarray() == np.eye(len(s["loadings"]))).all()
assert list(s["loadings"].obs["gene_id"]) == s.attrs["virchow_st"]["genes"]["id"]
to_px = get_transformation(s["rates_8um"], "fullres_px").to_affine_matrix(("x", "y"), ("x", "y"))
mpp = s.attrs["virchow_st"]["image"]["mpp"]
assert np.allclose(to_px, np.diag([8 / mpp, 8 / mpp, 1])), to_px
assert s.attrs["virchow_st"]["format"] == "virchow_st.prediction/1"
for name, um in ("he", 2 / 3), ("rates_2um", 2.0), ("rates_8um", 8.0):
    scale = get_transformation(s[name]).to_affine_matrix(("x", "y"), ("x", "y"))
    assert np.allclose(scale, np.diag([um, um, 1]), atol=1e-4), scale
left, right, top, bottom = map(float, sys.argv[2:])
cut = spatialdata.bounding_box_query(
    s["he"], axes=("x", "y"), min_coordinate=[left + 3, top + 3],
    max_coordinate=[right - 3, bottom - 3], target_coordinate_system="global",
)
pixels = np.asarray(cut["scale0"].image.values)
assert np.abs(np.array(pixels.shape[1:]) * 2 / 3 - (bottom - top - 6, right - left - 6)).max() < 1
assert (np.abs(pixels - np.array([0, 200, 0])[:, None, None]) <= 2).all()
fine = np.asarray(s["rates_2um"]["scale0"].image.sel(c=s["rates_8um"].c.values[3]).values)
coarse = np.asarray(s["rates_8um"].values[3])
n, m = coarse.shape
assert np.allclose(fine.reshape(n, 4, m, 4).sum((1, 3)), coarse, rtol=2e-4, equal_nan=True)
"""
    # In a process of its own: it brings dask, pandas and a hundred warnings.
    import subprocess
    import sys

    arguments = [sys.executable, "-c", code, str(predicted), *map(str, MARKER_UM)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_file_with_the_rates_at_8_um(
    vst: Callable[..., Any], runs: list[Path], image: Path, predicted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "slide.npz"
    answer = vst("predict", runs[0], image, "--out", out, "--format", "npz", "--also", runs[1])
    assert answer.code == 0, answer.err
    assert {p.name for p in tmp_path.iterdir()} == {"slide.npz", "slide_tissue.png"}
    root = zarr.open_group(predicted, mode="r")
    with np.load(out) as actual:
        np.testing.assert_array_equal(actual["rates_8um"], root["images/rates_8um/s0"][:])
        np.testing.assert_array_equal(actual["spread_8um"], root["images/spread_8um/s0"][:])
        np.testing.assert_array_equal(actual["tissue"], root["labels/tissue/s0"][:] == 1)
        about = json.loads(str(actual["virchow_st"]))
        assert list(actual["gene_id"]) == about["genes"]["id"]
    assert about["options"]["format"] == "npz"


@pytest.mark.skipif(find_spec("anndata") is None, reason="pip install 'virchow_st[spatial]'")
def test_anndata(
    vst: Callable[..., Any], runs: list[Path], image: Path, predicted: Path, tmp_path: Path
) -> None:
    import h5py

    out = tmp_path / "slide.h5ad"
    answer = vst("predict", runs[0], image, "--out", out, "--format", "h5ad", "--also", runs[1])
    assert answer.code == 0, answer.err
    rates = zarr.open_group(predicted, mode="r")["images/rates_8um/s0"][:]
    with h5py.File(out) as f:
        xy = f["obsm/spatial"][:]
        row, col = (np.floor(xy[:, i] / 8).astype(int) for i in (1, 0))
        np.testing.assert_array_equal(f["X"][:], rates[:, row, col].T)
        assert f["layers/spread"].shape == f["X"].shape
        assert not np.isnan(f["X"][:]).any()
        # The picture lies in the same frame: the marker's centre is green in it.
        (of_slide,) = f["uns/spatial"].values()
        scale = of_slide["scalefactors/tissue_hires_scalef"][()]
        x, y = (scale * (MARKER_UM[i] + MARKER_UM[i + 1]) / 2 for i in (0, 2))
        seen = of_slide["images/hires"][int(y), int(x)].astype(int)
        assert (np.abs(seen - GREEN) <= 2).all()


def test_refusals_leave_nothing(
    vst: Callable[..., Any], runs: list[Path], picture: np.ndarray, image: Path, tmp_path: Path
) -> None:
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    outputs.mkdir()
    out, jpg = outputs / "a.zarr", inputs / "a.jpg"
    cv2.imwrite(str(jpg), picture)
    assert_refused(vst("predict", runs[0], jpg, "--out", out), str(jpg), "µm per pixel", "--mpp")
    glass = inputs / "glass.png"
    cv2.imwrite(str(glass), np.full((900, 900, 3), 240, np.uint8))
    assert_refused(vst("predict", runs[0], glass, "--out", out, "--mpp", 0.5), "tissue")
    assert_refused(vst("predict", tmp_path / "none", image, "--out", out), "none", "no such run")
    assert_refused(vst("predict", runs[0], inputs / "none.svs", "--out", out), "none.svs")
    assert_refused(vst("predict", runs[0], image, "--out", out, "--mpp", 5), "got 5")
    assert_refused(vst("predict", runs[0], image, "--out", out, "--weights", jpg), "weights")
    if find_spec("anndata") is None:
        answer = vst("predict", runs[0], image, "--out", out, "--format", "h5ad")
        assert_refused(answer, "pip install 'virchow_st[spatial]'")
    damaged = inputs / "damaged.tif"
    damaged.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    assert_refused(vst("predict", runs[0], damaged, "--out", out, "--mpp", MPP), "damaged.tif")
    assert not list(outputs.iterdir())


def write_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """As a run that was trained so would have it, with its hash."""
    content = {key: value for key, value in state.items() if key != "xxh64"}
    content["xxh64"] = hash_of(content)
    (checkpoint / "state.json").write_text(json.dumps(content))


def test_a_run_of_another_encoder(
    vst: Callable[..., Any], runs: list[Path], image: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    best = other / "checkpoints" / "best"
    state = read_state(best)
    write_state(best, state | {"encoder": state["encoder"] | {"weights": "stain/0"}})
    out = tmp_path / "out.zarr"
    assert_refused(vst("predict", other, image, "--out", out), "stain/0", "stain/1", str(other))
    assert_refused(vst("predict", runs[0], image, "--out", out, "--also", other), "one encoder")
    shutil.rmtree(other)
    shutil.copytree(runs[0], other)
    first, *genes = (other / "panel.tsv").read_text().splitlines(keepends=True)
    (other / "panel.tsv").write_text("".join([first, *genes[::-1]]))
    write_state(best, state | {"files": file_hashes(other)})
    assert_refused(
        vst("predict", runs[0], image, "--out", out, "--also", other), "--panel", str(other)
    )
    assert {p.name for p in tmp_path.iterdir()} == {"other"}


def test_an_output_is_never_replaced(
    vst: Callable[..., Any], runs: list[Path], image: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "a.zarr"
    kept.write_text("mine")
    assert_refused(vst("predict", runs[0], image, "--out", kept), str(kept), "already there")
    assert kept.read_text() == "mine"


def test_stopped_on_the_way_leaves_what_is_finished(
    vst: Callable[..., Any],
    runs: list[Path],
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from virchow_st.models.encoders.stain import StainEncoder

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / ".a.zarr.part").mkdir()  # of one that was killed
    monkeypatch.setattr(StainEncoder, "encode", stop)
    answer = vst("predict", runs[0], image, "--out", tmp_path / "a.zarr", "--device", "cpu")
    assert answer.code == 130
    assert "what was finished is kept, the same command goes on there" in answer.err
    assert [p.name for p in tmp_path.iterdir()] == [".a.zarr.part"]
