"""Slide → store: every count in its bin, every image on its bins."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import tifffile
from scipy import sparse
from slide_reference import Reference
from tiny_slide import COMBINATIONS, TinySlide, draw_markers, write_image

from virchow_st.config import ExtractConfig
from virchow_st.errors import ConfigError, SlideError
from virchow_st.extract.slide import extract_slide
from virchow_st.store.reader import Store, open_store, verify
from virchow_st.types import PATCH_BINS

pytestmark = pytest.mark.usefixtures("markers_for_tissue")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "slides"
STAIN = ExtractConfig(encoder="stain", device="cpu")
SQUARE = Path("binned_outputs") / "square_002um"


def assert_store_holds(store: Store, truth: Reference, min_tissue: float = 0.5) -> None:
    """Patches, masks, counts and totals are the reference's, bin by bin."""
    assert list(store.genes.ids) == truth.ids
    rows, cols = (n // PATCH_BINS for n in truth.tissue.shape)
    expected = []
    for r in range(rows):
        for c in range(cols):
            square = truth.tissue[r * 128 : r * 128 + 128, c * 128 : c * 128 + 128]
            if square.any() and square.mean() >= min_tissue:
                expected.append((r * 128, c * 128))
    assert [(p.row0, p.col0) for p in store] == expected
    totals = np.zeros(len(truth.ids), np.int64)
    n_tissue = 0
    for patch in store:
        info, mask = patch.info, patch.tissue_mask
        window = np.s_[info.row0 : info.row0 + 128, info.col0 : info.col0 + 128]
        np.testing.assert_array_equal(mask, truth.tissue[window])
        want, actual = truth.patch(info.row0, info.col0), patch.counts().astype(np.int64)
        assert abs(sparse.csr_matrix(actual) - want).nnz == 0
        assert actual.nnz == want.nnz
        assert info.total_umi == want.sum()
        assert info.tissue_fraction == pytest.approx(mask.mean(), abs=1e-6)
        totals += np.asarray(want.sum(axis=1)).ravel()
        n_tissue += int(mask.sum())
    np.testing.assert_array_equal(store.genes.totals, totals)
    assert store.manifest["tissue_bins"] == {"slide": int(truth.tissue.sum()), "patches": n_tissue}
    assert store.manifest["grid_shape"] == list(truth.tissue.shape)
    assert verify(store) == []


# --- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("patient", ["P1", "P2", "P5"])
def test_store_holds_the_simulated_counts(simulated: Path, stores, patient: str) -> None:
    truth = Reference(simulated / patient / "outs", "filtered")
    store = open_store(stores[patient])
    assert_store_holds(store, truth)
    assert int(store.genes.totals.sum()) == truth.counts.sum()  # 384 bins: all lie in patches


def test_raw_matrix_gives_the_same_counts(simulated: Path, stores, tmp_path: Path) -> None:
    slide = simulated / "P2"
    config = ExtractConfig(encoder="stain", matrix="raw", device="cpu")
    raw = extract_slide(
        slide / "outs", slide / "tissue_image.tif", tmp_path / "raw.vst", "P2", config
    )
    filtered = open_store(stores["P2"])
    assert raw.genes.ids == filtered.genes.ids
    for a, b in zip(raw, filtered, strict=True):
        assert abs(a.counts().astype(np.int64) - b.counts().astype(np.int64)).nnz == 0
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.image, b.image)
    assert_store_holds(raw, Reference(slide / "outs", "raw"))


@pytest.mark.parametrize("kind", ["mirror", "perspective"])
def test_counts_of_a_grid_that_is_no_multiple_of_a_patch(tmp_path: Path, kind: str) -> None:
    slide = TinySlide(rows=300, cols=260, kind=kind)
    outs = slide.write(tmp_path / "outs")
    image = write_image(
        tmp_path / "image.tif", draw_markers(slide.homography, slide.image_size, []), "tiles"
    )
    store = extract_slide(outs, image, tmp_path / "s.vst", "A", STAIN)
    assert len(store) == 4
    assert_store_holds(store, Reference(outs, "filtered"))
    for patch in store:  # straight from what the files were written from
        window = np.s_[:, patch.row0 : patch.row0 + 128, patch.col0 : patch.col0 + 128]
        want = (slide.counts * slide.tissue)[slide.is_gene][window]
        np.testing.assert_array_equal(patch.counts().toarray().reshape(want.shape), want)
    assert store[0].counts().max() == 70_000  # a count far beyond a byte


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_counts_and_image_however_the_slide_lies(tmp_path: Path, kind: str) -> None:
    """Every count in its bin and a dark square on its bin, through the whole of extract."""
    slide = TinySlide(rows=140, cols=150, kind=kind)
    outs = slide.write(tmp_path / "outs")
    drawn = draw_markers(slide.homography, slide.image_size, [(20, 90)], side=8.0)
    image = write_image(tmp_path / "image.tif", drawn, "strips")
    (patch,) = store = extract_slide(outs, image, tmp_path / "s.vst", "A", STAIN)
    want = (slide.counts * slide.tissue)[slide.is_gene][:, :128, :128]
    np.testing.assert_array_equal(patch.counts().toarray().reshape(want.shape), want)
    assert int(store.genes.totals.sum()) == want.sum()
    dark = 235.0 - patch.image[..., 1].astype(float)
    dark[dark < 40] = 0
    rows, cols = np.indices(dark.shape)
    found = [((at + 0.5) * dark).sum() / dark.sum() / 2 - 0.5 for at in (rows, cols)]
    assert found == pytest.approx([20, 90], abs=0.25)


@pytest.mark.parametrize("lattice", ["origin", "best"])
def test_lattice_is_laid_as_asked_and_recorded(tmp_path: Path, lattice: str) -> None:
    slide = TinySlide(rows=200, cols=180)
    slide.tissue[:] = False
    slide.tissue[33:161, 21:149] = True  # one patch, not on the grid's first bin
    outs = slide.write(tmp_path / "outs")
    image = write_image(
        tmp_path / "image.tif", draw_markers(slide.homography, slide.image_size, []), "tiles"
    )
    config = ExtractConfig(encoder="stain", min_tissue=0.1, lattice=lattice)
    store = extract_slide(outs, image, tmp_path / "s.vst", "A", config)
    offset = [33, 21] if lattice == "best" else [0, 0]
    assert store.manifest["lattice"] == store.manifest["job"]["inputs"]["lattice"] == offset
    assert store.manifest["job"]["options"]["lattice"] == lattice
    assert [[p.row0, p.col0] for p in store] == [offset]
    covered = 128 * 128 if lattice == "best" else 95 * 107
    assert store.manifest["tissue_bins"] == {"slide": 128 * 128, "patches": covered}
    row0, col0 = offset
    window = np.s_[:, row0 : row0 + 128, col0 : col0 + 128]
    want = (slide.counts * slide.tissue)[slide.is_gene][window]
    np.testing.assert_array_equal(store[0].counts().toarray().reshape(want.shape), want)
    assert verify(store) == []


@pytest.mark.parametrize(
    ("name", "image"), [("C2", "tissue_image.btf"), ("C5", "tissue_image.tif")]
)
def test_store_holds_the_counts_of_real_slides(tmp_path: Path, name: str, image: str) -> None:
    slide = SHARED / name
    if not slide.is_dir():
        pytest.skip(f"{slide} is not here")
    store = extract_slide(slide, slide / image, tmp_path / "s.vst", name, STAIN)
    assert_store_holds(store, Reference(slide, "filtered"))


def test_min_tissue_chooses_patches(tmp_path: Path) -> None:
    slide = TinySlide(rows=256, cols=256)
    slide.tissue[:] = False
    slide.tissue[:128, :128] = True
    slide.tissue[:128, 128:160] = True  # a quarter
    slide.tissue[130, 5] = True
    outs = slide.write(tmp_path / "outs")
    image = write_image(
        tmp_path / "image.tif", draw_markers(slide.homography, slide.image_size, []), "tiles"
    )
    for min_tissue, n in ((1.0, 1), (0.25, 2), (0.0, 3)):
        config = ExtractConfig(encoder="stain", min_tissue=min_tissue)
        store = extract_slide(outs, image, tmp_path / f"{n}.vst", "A", config)
        assert len(store) == n
        assert_store_holds(store, Reference(outs, "filtered"), min_tissue)


# --- images and geometry ------------------------------------------------------------------------


def homography_of(slide: Path) -> np.ndarray:
    with h5py.File(slide / "truth.h5") as f:
        return f["homography"][:]


def project(h: np.ndarray, col: float, row: float) -> np.ndarray:
    x, y, w = h @ [col, row, 1.0]
    return np.array([x, y]) / w


@pytest.mark.parametrize("patient", ["P1", "P2", "P5"])
def test_a_marker_is_found_on_its_bin(simulated: Path, tmp_path: Path, patient: str) -> None:
    """Paint squares over known bins of the slide image; look for them in the store's images."""
    slide = simulated / patient
    h = homography_of(slide)
    image = np.ascontiguousarray(tifffile.imread(slide / "tissue_image.tif"))
    bins = [(30, 40), (64, 200), (150, 300), (200, 150), (300, 60), (330, 340)]
    side = 8.0  # bins
    shift = 4  # fillPoly takes coordinates in 16ths of a pixel
    for row, col in bins:
        corners = [
            project(h, col + dc * side / 2, row + dr * side / 2)
            for dc, dr in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ]
        # corner-based px to OpenCV's centres, half a pixel off
        points = np.round((np.array(corners) - 0.5) * 2**shift).astype(np.int32)
        cv2.fillPoly(image, [points], (0, 255, 0), cv2.LINE_AA, shift)
    path = tmp_path / "marked.tif"
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="zlib")
    store = extract_slide(slide / "outs", path, tmp_path / "s.vst", patient, STAIN)
    by_place = {(p.row0, p.col0): p for p in store}
    for row, col in bins:
        patch = by_place[row // 128 * 128, col // 128 * 128]
        rgb = patch.image.astype(float)
        green = np.clip(rgb[..., 1] - rgb[..., [0, 2]].max(axis=2) - 60, 0, None)
        # the patch's own marker alone: a window of 16 bins around where it should be
        r, c = row % 128, col % 128
        rows, cols = np.mgrid[0:256, 0:256]
        near = (abs((rows + 0.5) / 2 - 0.5 - r) < 16) & (abs((cols + 0.5) / 2 - 0.5 - c) < 16)
        weight = green * near
        assert (weight > 0).sum() > 100, f"no marker at {(row, col)}"
        found_row = ((rows + 0.5) * weight).sum() / weight.sum() / 2 - 0.5
        found_col = ((cols + 0.5) * weight).sum() / weight.sum() / 2 - 0.5
        assert abs(found_row - r) < 0.25, (row, col)
        assert abs(found_col - c) < 0.25, (row, col)


@pytest.mark.parametrize("patient", ["P1", "P5"])
def test_manifest_tells_the_geometry(simulated: Path, stores, patient: str) -> None:
    store = open_store(stores[patient])
    h = homography_of(simulated / patient)
    fitted = np.array(store.manifest["homography"])
    for patch in store:
        r, c = patch.row0 - 0.5, patch.col0 - 0.5
        for corner, (dc, dr) in zip(
            patch.info.corners_px, ((0, 0), (128, 0), (128, 128), (0, 128)), strict=True
        ):
            np.testing.assert_allclose(corner, project(h, c + dc, r + dr), atol=1e-6)
            np.testing.assert_allclose(corner, project(fitted, c + dc, r + dr), atol=1e-6)
    pitch = np.linalg.norm(project(h, 192.5, 191.5) - project(h, 191.5, 191.5))
    assert store.manifest["mpp"] == pytest.approx(2 / pitch, rel=1e-3)


@pytest.mark.parametrize("patient", ["P1", "P2", "P5"])
def test_validity_masks_are_the_bins_wholly_on_the_image(
    simulated: Path, stores, patient: str
) -> None:
    slide = simulated / patient
    with tifffile.TiffFile(slide / "tissue_image.tif") as tiff:
        height, width = tiff.pages[0].shape[:2]
    h = homography_of(slide)
    for patch in open_store(stores[patient]):
        edges = np.arange(129) - 0.5
        col, row = np.meshgrid(patch.col0 + edges, patch.row0 + edges)
        x, y, w = np.tensordot(h, np.stack([col, row, np.ones_like(col)]), 1)
        x, y = x / w, y / w
        inside = np.minimum(np.minimum(x, width - x), np.minimum(y, height - y))  # px
        corners = [inside[:-1, :-1], inside[1:, :-1], inside[:-1, 1:], inside[1:, 1:]]
        least = np.min(corners, axis=0)
        mask = patch.validity_mask
        assert mask[least > 2.5].all()
        assert not mask[np.max(corners, axis=0) < 0].any()


# --- what the manifest says, and running again ----------------------------------------------------


def test_tokens_are_those_of_the_encoder(simulated: Path, stores) -> None:
    from virchow_st.models.encoders import load_encoder
    from virchow_st.slide.image import SlideImage
    from virchow_st.slide.patches import render_patch
    from virchow_st.slide.visium_hd import VisiumHDSlide

    store = open_store(stores["P1"])
    encoder = load_encoder("stain")
    assert store.token_shape == (encoder.grid, encoder.grid, encoder.dim)
    slide = VisiumHDSlide.open(simulated / "P1" / "outs")
    with SlideImage.open(simulated / "P1" / "tissue_image.tif") as image:
        patch = store[4]
        [(rgb, _), (small, _)] = render_patch(
            image, slide.homography, patch.row0, patch.col0, (256, encoder.image_px)
        )
    jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    np.testing.assert_array_equal(patch.image, cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1])
    tokens = encoder.encode(small[None])
    np.testing.assert_array_equal(patch.tokens, tokens.tokens[0].astype(np.float16))
    np.testing.assert_array_equal(patch.cls, tokens.cls[0].astype(np.float16))


def test_extracting_again_changes_nothing(simulated: Path, stores, tmp_path: Path) -> None:
    slide, store = simulated / "P1", tmp_path / "P1.vst"
    shutil.copytree(stores["P1"], store)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in store.iterdir()}
    again = extract_slide(slide / "outs", slide / "tissue_image.tif", store, "P1", STAIN)
    assert len(again) == 9
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in store.iterdir()} == before


def test_a_changed_input_is_not_the_same_job(simulated: Path, stores, tmp_path: Path) -> None:
    slide, store = simulated / "P1", tmp_path / "P1.vst"
    shutil.copytree(stores["P1"], store)
    image = tmp_path / "tissue_image.tif"
    pixels = tifffile.imread(slide / "tissue_image.tif")
    tifffile.imwrite(image, pixels[::-1], tile=(256, 256), photometric="rgb", compression="zlib")
    with pytest.raises(Exception, match="other inputs or options"):
        extract_slide(slide / "outs", image, store, "P1", STAIN)
    with pytest.raises(Exception, match="other inputs or options"):
        extract_slide(slide / "outs", slide / "tissue_image.tif", store, "P2", STAIN)


def test_a_patient_has_a_name(simulated: Path, tmp_path: Path) -> None:
    slide = simulated / "P1"
    with pytest.raises(ConfigError, match="patient"):
        extract_slide(slide / "outs", slide / "tissue_image.tif", tmp_path / "s.vst", "", STAIN)
    assert not (tmp_path / "s.vst").exists()


def test_a_slide_without_tissue_is_refused(tmp_path: Path) -> None:
    slide = TinySlide()
    slide.tissue[:] = False
    outs = slide.write(tmp_path / "outs")
    image = write_image(
        tmp_path / "image.tif", draw_markers(slide.homography, slide.image_size, []), "tiles"
    )
    with pytest.raises(SlideError):
        extract_slide(outs, image, tmp_path / "s.vst", "A", STAIN)
    assert not (tmp_path / "s.vst").exists()
