"""The registration check finds known shifts, takes no noise for a shift, and warns the user."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage.registration import phase_cross_correlation

from virchow_st.config import ExtractConfig
from virchow_st.extract.registration import (
    NEAR_UM,
    SEARCHED_BINS,
    TRUSTED,
    RegistrationCheck,
    describe,
    local_contrast,
)
from virchow_st.extract.slide import extract_slide
from virchow_st.models.encoders.stain import haematoxylin, stain_maps
from virchow_st.output.figures.registration_check import registration_figure
from virchow_st.runtime.progress import Recording
from virchow_st.slide.visium_hd import VisiumHDSlide
from virchow_st.store.reader import Store, open_store, verify

STAIN = ExtractConfig(encoder="stain", device="cpu")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "slides"
POSITIONS = Path("binned_outputs/square_002um/spatial/tissue_positions.parquet")


def umi_of(patch) -> np.ndarray:
    counts = patch.sparse_counts
    return np.bincount(counts.positions, counts.counts, 128 * 128).reshape(128, 128)


def moved(image: np.ndarray, valid: np.ndarray, row_px: int, col_px: int):
    """The image moved by pixels of 1 µm, down and right, and which bins it still shows."""
    shown = np.roll(np.kron(valid, np.ones((2, 2), bool)), (row_px, col_px), (0, 1))
    for axis, shift in enumerate((row_px, col_px)):
        gone = np.arange(256) < shift if shift > 0 else np.arange(256) >= 256 + shift
        shown &= ~(gone[:, None] if axis == 0 else gone)
    whole = shown.reshape(128, 2, 128, 2).all(axis=(1, 3))
    return np.roll(image, (row_px, col_px), (0, 1)), whole


def checked(store: Store, row_px: int = 0, col_px: int = 0, change=lambda umi, mask: umi):
    """The check over a store whose images are moved and whose counts are changed."""
    check = RegistrationCheck()
    for patch in store:
        image, valid = moved(patch.image, patch.validity_mask, row_px, col_px)
        check.add(image, valid, change(umi_of(patch), patch.tissue_mask), patch.tissue_mask)
    return check.result()


# --- what is computed -----------------------------------------------------------------------------


def pearson_over_pairs(patches: list[tuple[np.ndarray, ...]], row: int, col: int) -> float:
    """The definition: all bins of counts with the bins of image ``(row, col)`` on from them."""
    us, hs = [], []
    for u, tissue, h, valid in patches:
        for r in range(128):
            for c in range(128):
                at = (r + row, c + col)
                if tissue[r, c] and min(at) >= 0 and max(at) < 128 and valid[at]:
                    us.append(u[r, c])
                    hs.append(h[at])
    return float(np.corrcoef(us, hs)[0, 1])


@pytest.fixture(scope="module")
def made_up():
    """Three patches of smooth noise with ragged masks, the counts partly following the image."""
    rng = np.random.default_rng(0)
    patches = []
    for _ in range(3):
        image = cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3), np.uint8), (0, 0), 2)
        valid, tissue = rng.random((2, 128, 128)) < 0.8
        valid[:, 100:], tissue[:30] = False, False
        darkness = 255.0 - image[::2, ::2, 0]
        umi = rng.poisson(np.roll(darkness, (3, -5), (0, 1)) / 40) * tissue
        patches.append((image, valid, umi, tissue))
    return patches


def test_correlation_is_pearsons_over_all_pairs_of_bins(made_up) -> None:
    check, slow = RegistrationCheck(), []
    for image, valid, umi, tissue in made_up:
        check.add(image, valid, umi, tissue)
        stain = haematoxylin(image).reshape(128, 2, 128, 2).mean(axis=(1, 3)).astype(float)
        slow.append(
            (local_contrast(np.sqrt(umi), tissue), tissue, local_contrast(stain, valid), valid)
        )
    maps = check.correlations()
    assert maps.shape == (8, 33, 33)
    for row, col in [(0, 0), (-3, 5), (16, -16), (-16, 7), (1, 16)]:
        want = pearson_over_pairs(slow, row, col)
        assert maps[0, SEARCHED_BINS + row, SEARCHED_BINS + col] == pytest.approx(want, abs=1e-6)
    turned = [(np.rot90(u[:, ::-1]), np.rot90(t[:, ::-1]), h, v) for u, t, h, v in slow]
    want = pearson_over_pairs(turned, 4, -9)
    assert maps[5, SEARCHED_BINS + 4, SEARCHED_BINS - 9] == pytest.approx(want, abs=1e-6)


def test_checks_of_parts_merge_into_that_of_all(made_up) -> None:
    whole, merged = RegistrationCheck(), RegistrationCheck()
    for patch in made_up:
        whole.add(*patch)
    for part in (made_up[:1], made_up[1:]):
        check = RegistrationCheck()
        for patch in part:
            check.add(*patch)
        merged.merge(check)
    merged.merge(RegistrationCheck())  # of no patch
    np.testing.assert_allclose(merged.correlations(), whole.correlations(), atol=1e-9)
    assert merged.example is not None
    assert merged.example.umi.sum() == max(umi.sum() for _, _, umi, _ in made_up)


def test_shift_is_that_of_scikit_image(made_up) -> None:
    """Of one patch: the reference pools nothing. Its shift takes the moving image back."""
    image, valid, umi, tissue = made_up[0]
    check = RegistrationCheck()
    check.add(image, valid, umi, tissue)
    stain = haematoxylin(image).reshape(128, 2, 128, 2).mean(axis=(1, 3)).astype(float)
    shift, _, _ = phase_cross_correlation(
        local_contrast(np.sqrt(umi), tissue),
        local_contrast(stain, valid),
        reference_mask=tissue,
        moving_mask=valid,
        overlap_ratio=0.5,
    )
    found = check.result()
    assert shift.tolist() == [3, -5]
    assert np.round(np.array(found.shift_um) / 2).tolist() == (-shift).tolist()


def test_local_contrast_knows_nothing_of_what_is_masked() -> None:
    rng = np.random.default_rng(1)
    values, mask = rng.random((128, 128)), rng.random((128, 128)) < 0.7
    other = np.where(mask, values, 1e6 * rng.random((128, 128)))
    np.testing.assert_array_equal(
        local_contrast(values * mask, mask), local_contrast(other * mask, mask)
    )
    assert (local_contrast(values, mask)[~mask] == 0).all()
    flat = local_contrast(np.full((128, 128), 7.0), mask)
    np.testing.assert_allclose(flat, 0, atol=1e-12)


def test_haematoxylin_is_the_encoders_map() -> None:
    image = np.random.default_rng(2).integers(0, 256, (256, 256, 3), np.uint8)
    np.testing.assert_allclose(haematoxylin(image), stain_maps(image)["haematoxylin"], atol=1e-6)


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("patient", ["P1", "P2", "P5"])
def test_an_image_in_place_is_aligned(stores, patient: str) -> None:
    found = checked(open_store(stores[patient]))
    assert found.verdict == "aligned"
    assert np.hypot(*found.shift_um) < 1
    assert found.strength > 3 * TRUSTED
    assert found.uncertainty_um <= NEAR_UM


@pytest.mark.parametrize(
    ("row_um", "col_um"), [(16, 0), (0, -16), (-11, 7), (27, 30), (5, 0), (-2, 1)]
)
def test_a_known_shift_is_found(stores, row_um: int, col_um: int) -> None:
    found = checked(open_store(stores["P2"]), row_um, col_um)
    np.testing.assert_allclose(found.shift_um, (row_um, col_um), atol=1)
    assert found.verdict == ("shifted" if max(abs(row_um), abs(col_um)) > NEAR_UM else "aligned")
    assert f"({found.shift_um[0]:+.1f}, {found.shift_um[1]:+.1f}) µm" in describe(
        found.to_manifest()
    )


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_counts_are_undecided(stores, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def shuffle(umi, mask):
        umi = umi.copy()
        umi[mask] = rng.permutation(umi[mask])
        return umi

    found = checked(open_store(stores["P1"]), 16, 0, shuffle)
    assert found.verdict == "undecided"
    assert 1 < found.strength < TRUSTED
    assert "undecided: no peak of 6 × the noise within 32 µm" in describe(found.to_manifest())


def test_counts_of_other_patches_are_undecided(stores) -> None:
    """As smooth as real counts, but of elsewhere: smoothness alone makes no peak."""
    patches = list(open_store(stores["P5"]))
    check = RegistrationCheck()
    for patch, other in zip(patches, patches[4:] + patches[:4], strict=True):
        check.add(patch.image, patch.validity_mask, umi_of(other), other.tissue_mask)
    assert check.result().verdict == "undecided"


def test_a_shift_beyond_the_range_is_undecided(stores) -> None:
    found = checked(open_store(stores["P2"]), 36, 0)
    assert found.verdict == "undecided"


def test_tissue_whose_nuclei_hold_less_is_found_too(stores) -> None:
    found = checked(open_store(stores["P2"]), 12, -8, lambda umi, mask: (umi.max() - umi) * mask)
    np.testing.assert_allclose(found.shift_um, (12, -8), atol=1)
    assert found.verdict == "shifted"
    assert found.to_manifest()["correlation"] < 0


@pytest.mark.parametrize("empty", ["image", "counts", "validity", "tissue"])
def test_where_nothing_is_to_be_seen_nothing_is_decided(empty: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 256, 3), np.uint8)
    umi, valid, tissue = rng.poisson(1, (128, 128)), *np.ones((2, 128, 128), bool)
    {"image": image, "counts": umi, "validity": valid, "tissue": tissue}[empty][:] = 0
    check = RegistrationCheck()
    check.add(image, valid, umi, tissue)
    found = check.result()
    assert (found.verdict, found.strength) == ("undecided", 0)
    assert json.loads(json.dumps(found.to_manifest(), allow_nan=False)) == found.to_manifest()


# --- what users are told --------------------------------------------------------------------------


def misregistered(slide: Path, folder: Path, row: float, col: float) -> Path:
    """A copy of a slide's outs whose positions point to the pixels of bin (r + row, c + col)."""
    outs = Path(shutil.copytree(slide / "outs", folder / "outs"))
    h = VisiumHDSlide.open(outs).homography
    table = pq.read_table(outs / POSITIONS)
    x, y = h.to_px(
        table.column("array_col").to_numpy() + col, table.column("array_row").to_numpy() + row
    )
    for name, px in (("pxl_col_in_fullres", x), ("pxl_row_in_fullres", y)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(px))
    pq.write_table(table, outs / POSITIONS)
    return outs


@pytest.mark.parametrize("patient", ["P1", "P5"])
def test_extract_warns_of_a_shifted_slide(simulated: Path, tmp_path: Path, patient: str) -> None:
    """The counts of a bin lie on the image of the bin 8 rows up: the image is 16 µm down."""
    outs = misregistered(simulated / patient, tmp_path, -8.0, 3.0)
    said = Recording()
    image = simulated / patient / "tissue_image.tif"
    store = extract_slide(outs, image, tmp_path / "s.vst", patient, STAIN, said)
    found = store.manifest["registration"]
    assert found["verdict"] == "shifted"
    assert (found["shift_row_um"], found["shift_col_um"]) == pytest.approx((16, -6), abs=1)
    assert found["correlation"] > 2 * abs(found["correlation_at_zero"])
    (warning,) = said.warnings
    assert str(store.path / "registration.png") in warning
    assert "--loupe-alignment" in warning
    picture = cv2.imread(str(store.path / "registration.png"))
    assert picture.shape[1] == 2160  # 7.2 inches
    assert picture.std() > 20
    assert verify(store) == []
    assert {p.name for p in store.path.iterdir()} == {"data.mdb", "store.json", "registration.png"}


def test_extract_keeps_quiet_where_all_is_well(simulated: Path, stores) -> None:
    for path in stores.values():
        assert open_store(path).manifest["registration"]["verdict"] == "aligned"
        assert not (path / "registration.png").exists()


def test_a_picture_that_cannot_be_written_is_one_line(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs = misregistered(simulated / "P2", tmp_path, 8.0, 0.0)
    image, path = simulated / "P2" / "tissue_image.tif", tmp_path / "s.vst"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("virchow_st.output.figures.registration_check.draw_registration", full)
        with pytest.raises(Exception, match=r"registration.png cannot be written .*all 9 patches"):
            extract_slide(outs, image, path, "P2", STAIN)
    assert len(extract_slide(outs, image, path, "P2", STAIN)) == 9
    assert (path / "registration.png").exists()


@pytest.mark.parametrize(("name", "file"), [("C2", "tissue_image.btf"), ("C5", "tissue_image.tif")])
def test_shared_slides_are_aligned(tmp_path: Path, name: str, file: str) -> None:
    if not (slide := SHARED / name).is_dir():
        pytest.skip(f"{slide} is not here")
    store = extract_slide(slide, slide / file, tmp_path / "s.vst", name, STAIN)
    found = store.manifest["registration"]
    assert found["verdict"] == "aligned"
    assert np.hypot(found["shift_row_um"], found["shift_col_um"]) < 1


def test_figure_shows_the_map_and_the_images_moved_back(stores) -> None:
    check = RegistrationCheck()
    for patch in open_store(stores["P1"]):
        image, valid = moved(patch.image, patch.validity_mask, 20, -8)
        check.add(image, valid, umi_of(patch), patch.tissue_mask)
    found, example = check.result(), check.example
    assert example is not None
    figure = registration_figure(
        found.correlation, found.shift_um, example.haematoxylin, example.umi, example.tissue_mask
    )
    correlation, before, after = [a.images[0].get_array() for a in figure.axes if a.images][:3]
    np.testing.assert_array_equal(correlation, found.correlation)
    texts = [t.get_text() for t in figure.texts]
    assert "image moved down −20, right +8 µm" in texts
    # Where inks lie on each other, the paper between them stays white.
    assert after.mean() > before.mean() + 0.005
