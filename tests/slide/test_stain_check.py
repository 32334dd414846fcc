"""Stained tissue is told from other images, whatever the camera's noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import tifffile
from he_picture import DAB, EOSIN, HAEMATOXYLIN, he_picture

from virchow_st.errors import SlideError
from virchow_st.slide.sample import spread
from virchow_st.slide.stain_check import check_stain

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIDE = 512
HE = he_picture(SIDE, SIDE)
DAPI = np.dstack([np.zeros((SIDE, SIDE, 2), np.uint8), 255 - HE[..., 1]])


def noisy(colour: tuple[int, int, int], sigma: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    picture = np.array(colour) + rng.normal(0, sigma, (SIDE, SIDE, 3))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def on_glass(picture: np.ndarray) -> np.ndarray:
    whole = noisy((243, 243, 243))
    whole[100:400, 100:400] = picture[100:400, 100:400]
    return whole


def jpeg(picture: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("change", [lambda p: p, jpeg, on_glass, lambda p: (p * 0.9).astype("u1")])
def test_h_and_e_passes(seed: int, change) -> None:
    found = check_stain([change(he_picture(SIDE, SIDE, seed))])
    assert found.fault == ""
    assert found.stained > 0.1


REFUSED = {
    "white": (noisy((243, 243, 243)), "white"),
    "one colour": (noisy((200, 120, 180)), "one colour"),
    "black": (noisy((3, 3, 3)), "black"),
    "one colour on glass": (on_glass(noisy((200, 120, 180), 1)), "one"),
    "eosin alone": (he_picture(SIDE, SIDE, nuclei=EOSIN), "one hue"),
    "haematoxylin alone": (he_picture(SIDE, SIDE, stroma=HAEMATOXYLIN), "one hue"),
    "grey": (np.repeat(HE[..., 1:2], 3, axis=2), "one hue"),
    "brown stain": (he_picture(SIDE, SIDE, stroma=DAB), "more blue than green"),
    "inverted": (255 - HE, "black|blue"),
    "fluorescence": (DAPI // 2, "black"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("change", [lambda p: p, jpeg])
def test_what_is_no_h_and_e_is_refused(name: str, change) -> None:
    picture, match = REFUSED[name]
    with pytest.raises(SlideError, match=match) as e:
        check_stain([change(picture)]).raise_for("a.tif")
    assert str(e.value).startswith("a.tif: expected tissue stained with H&E; ")


def test_immunohistochemistry_is_refused() -> None:
    """A public photograph that scikit-image brings along."""
    assert "more blue than green" in check_stain([skimage.data.immunohistochemistry()]).fault


def test_a_mask_says_what_counts() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[100:400, 100:400] = True
    picture = on_glass(HE)
    assert not check_stain([picture], [mask]).fault
    assert "white" in check_stain([picture], [~mask]).fault


def test_spread_takes_first_and_last() -> None:
    assert spread(3, 24) == [0, 1, 2]
    assert spread(100, 3) == [0, 50, 99]
    assert len(spread(1000, 24)) == 24


@pytest.mark.parametrize(("name", "file"), [("C2", "tissue_image.btf"), ("C5", "tissue_image.tif")])
def test_real_sections_pass(name: str, file: str) -> None:
    path = SHARED / "slides" / name / file
    if not path.exists():
        pytest.skip(f"shared slides are not at {SHARED}")
    whole = tifffile.imread(path, key=0)
    windows = [whole[y : y + 400, x : x + 400] for y, x in ((500, 500), (900, 900), (900, 1300))]
    assert not check_stain(windows).fault


def test_real_tiles_pass_one_by_one() -> None:
    path = SHARED / "real" / "crc_p5_tiles.npz"
    if not path.exists():
        pytest.skip(f"real tiles are not at {path}")
    with np.load(path) as tiles:
        assert [check_stain([tile]).fault for tile in tiles["he"]] == [""] * len(tiles["he"])
