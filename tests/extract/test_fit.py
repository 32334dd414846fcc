"""An image that does not belong to its counts is refused or turned before the encoder runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import STAIN

from virchow_st.errors import SlideError
from virchow_st.extract.pair_report import report_on_pair
from virchow_st.extract.slide import extract_slide as extract
from virchow_st.runtime.progress import Recording
from virchow_st.store.reader import open_store

SPATIAL = Path("binned_outputs/square_002um/spatial")
HIRES = "tissue_hires_image.png"
RGB = {"photometric": "rgb", "tile": (256, 256), "compression": "lzw"}


@pytest.fixture(scope="module")
def pixels(simulated: Path) -> np.ndarray:
    return tifffile.imread(simulated / "P1" / "tissue_image.tif", key=0)


@pytest.fixture
def outs(simulated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(simulated / "P1" / "outs", tmp_path / "outs"))


def images_of(store: Path) -> list[np.ndarray]:
    return [patch.image for patch in open_store(store)]


def mean_off(store: Path, other: Path) -> float:
    """Mean difference of the stored images, grey levels; JPEGs of JPEGs differ by a little."""
    pairs = zip(images_of(store), images_of(other), strict=True)
    return float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs]))


# --- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [3, 6])
@pytest.mark.parametrize("is_true", [True, False])
def test_the_way_that_lies_on_the_counts_is_read(
    simulated: Path, stores, pixels: np.ndarray, tmp_path: Path, tag: int, is_true: bool
) -> None:
    """The tag may be right (the pixels are stored turned) or wrong (they are not)."""
    stored = np.rot90(pixels, {3: 2, 6: 1}[tag]).copy() if is_true else pixels
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, extratags=[(274, "H", 1, tag, True)], **RGB)
    said = Recording()
    store = extract(simulated / "P1" / "outs", path, tmp_path / "a.vst", "P1", STAIN, said)
    assert store.manifest["registration"]["verdict"] == "aligned"
    assert store.manifest["job"]["inputs"]["image"]["orientation"] == (tag if is_true else 1)
    assert mean_off(store.path, stores["P1"]) < 3
    (warning,) = said.warnings
    assert "Orientation tag" in warning
    again = Recording()
    extract(simulated / "P1" / "outs", path, tmp_path / "a.vst", "P1", STAIN, again)
    assert any("already complete" in note for note in again.notes)


def test_without_a_measurable_registration_pixels_are_read_as_stored(
    simulated: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    """A shuffled picture lies on the counts neither way."""
    blocks = np.random.default_rng(0).permutation(
        pixels[: len(pixels) // 64 * 64].reshape(-1, 64, *pixels.shape[1:])
    )
    mixed = pixels.copy()
    mixed[: len(blocks) * 64] = blocks.reshape(-1, *pixels.shape[1:])
    path, said = tmp_path / "a.tif", Recording()
    tifffile.imwrite(path, mixed, extratags=[(274, "H", 1, 3, True)], **RGB)
    store = extract(simulated / "P1" / "outs", path, tmp_path / "a.vst", "P1", STAIN, said)
    assert store.manifest["job"]["inputs"]["image"]["orientation"] == 1
    assert "cannot be measured" in said.warnings[0]


# --- Space Ranger's pictures ----------------------------------------------------------------------


def hide(outs: Path, how: str) -> None:
    """Put the hires picture where, or into what, copies of Space Ranger's folders have it."""
    here, above = outs / SPATIAL / HIRES, outs / "spatial" / HIRES
    (outs / SPATIAL / HIRES.replace("hires", "lowres")).unlink(missing_ok=True)
    above.parent.mkdir()
    if how in ("link", "above"):
        here.rename(above)
    else:
        here.unlink()
    if how in ("link", "dangling"):
        here.symlink_to(f"../../../spatial/{HIRES}")
    elif how == "stub":
        here.write_text(f"../../../spatial/{HIRES}")
    elif how == "cut":
        here.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")


@pytest.mark.parametrize("how", ["link", "above", "dangling", "stub", "cut", "none"])
def test_the_right_image_is_taken_and_a_scaled_one_refused(
    simulated: Path, stores, pixels: np.ndarray, outs: Path, tmp_path: Path, how: str
) -> None:
    hide(outs, how)
    said, image = Recording(), simulated / "P1" / "tissue_image.tif"
    store = extract(outs, image, tmp_path / "a.vst", "P1", STAIN, said)
    assert mean_off(store.path, stores["P1"]) == 0
    spoiled = how in ("dangling", "stub", "cut")
    assert len(said.warnings) == spoiled, said.warnings
    assert any("so it is the right image" in note for note in said.notes) == (
        spoiled or how == "none"
    )
    scaled = tmp_path / "scaled.tif"
    small = cv2.resize(pixels, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    tifffile.imwrite(scaled, small, **RGB)
    match = "the size of .*hires" if how in ("link", "above") else "outline|lie on the image"
    with pytest.raises(SlideError, match=match):
        extract(outs, scaled, tmp_path / "b.vst", "P1", STAIN)
    assert not (tmp_path / "b.vst").exists()


def test_a_scale_that_the_file_tells_speaks_against_it(
    pixels: np.ndarray, outs: Path, tmp_path: Path
) -> None:
    """Padded, so that all tissue lies on it; the tissue's outline is taken as unknown."""
    hide(outs, "none")
    small = cv2.resize(pixels, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    padded = np.full_like(pixels, 245)
    padded[: len(small), : small.shape[1]] = small
    path = tmp_path / "a.tif"
    per_cm = 1e4 / 0.64
    tifffile.imwrite(path, padded, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **RGB)
    with pytest.raises(SlideError, match=r"µm per pixel deviate by \+2\d%"):
        extract(outs, path, tmp_path / "a.vst", "P1", STAIN)


# --- stain ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [(243, 243, 243), (200, 120, 180), (0, 0, 0)])
def test_a_slide_without_stain_is_refused_before_the_encoder(
    simulated: Path, pixels: np.ndarray, tmp_path: Path, colour: tuple[int, ...]
) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"the encoder's {name} was asked for")

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full_like(pixels, colour), **RGB)
    with pytest.raises(SlideError, match="expected tissue stained with H&E"):
        extract(
            simulated / "P1" / "outs", path, tmp_path / "a.vst", "P1", STAIN,
            encoder=Untouchable(),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == [path]


# --- vst inspect IMAGE, vst doctor IMAGE OUTS -----------------------------------------------------


def test_doctor_reports_what_extraction_would_do(
    simulated: Path, pixels: np.ndarray, outs: Path, tmp_path: Path, vst
) -> None:
    image = simulated / "P1" / "tissue_image.tif"
    report = report_on_pair(image, outs)
    assert report.faults == ()
    assert report.rows["registration"].startswith("aligned")
    assert report.rows["scale of the file"].endswith("0.0% from that of the bins")
    before = sorted(tmp_path.rglob("*"))
    assert vst("doctor", image, outs).code == 0
    assert vst("inspect", image).code == 0
    assert sorted(tmp_path.rglob("*")) == before

    other = simulated / "P2" / "tissue_image.tif"
    answer = vst("doctor", other, outs)
    assert answer.code == 1
    assert str(other) in answer.err
    assert vst("doctor", image).code == 2

    path = tmp_path / "one.tif"
    tifffile.imwrite(path, np.full_like(pixels, (200, 120, 180)), **RGB)
    for arguments, code in ((("doctor", path, outs), 1), (("inspect", path), 2)):
        answer = vst(*arguments)
        assert answer.code == code
        assert "one colour" in answer.err


def test_inspect_takes_images_or_stores(simulated: Path, stores, tmp_path: Path, vst) -> None:
    image = simulated / "P1" / "tissue_image.tif"
    answer = vst("inspect", image, "--json")
    assert '"read as": "TIFF in tiles, read by tifffile, RGB, 8 bit"' in answer.out
    assert "µm per pixel" in vst("inspect", image, simulated / "P2" / "tissue_image.tif").out
    assert vst("inspect", image, stores["P1"]).code == 2
    missing = vst("inspect", tmp_path / "none.svs")
    assert missing.code == 2
    assert "none.svs" in missing.err
    assert "none.vst" in vst("inspect", tmp_path / "none.vst").err
