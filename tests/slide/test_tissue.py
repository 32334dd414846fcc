"""Tissue found on an H&E image."""

import numpy as np
import pytest

from virchow_st.errors import SlideError
from virchow_st.output.figures.tissue_check import draw_tissue
from virchow_st.slide.tissue import LIMITS, find_tissue

UM = 8.0
GLASSES = {"white": (245, 245, 245), "pink": (230, 195, 222), "yellow": (240, 238, 215)}


def slide(glass, shape=(220, 260)):
    """Noisy glass with a disc of tissue of 75 px in which there is a small hole; the true mask."""
    rng = np.random.default_rng(0)
    picture = np.array(glass) + rng.normal(0, 2, (*shape, 3))
    y, x = np.indices(shape)
    tissue = (y - 110) ** 2 + (x - 120) ** 2 < 75**2
    stained = np.array((190, 120, 170)) + rng.normal(0, 18, (*shape, 3))
    picture[tissue] = stained[tissue]
    hole = (y - 110) ** 2 + (x - 90) ** 2 < 6**2
    picture[hole] = glass
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), tissue


@pytest.mark.parametrize("glass", sorted(GLASSES))
def test_tissue_is_told_from_glass_of_any_tint(glass):
    picture, tissue = slide(GLASSES[glass])
    found = find_tissue(picture, UM)
    assert (found.mask & tissue).sum() / (found.mask | tissue).sum() > 0.97
    assert found.mask[110, 90]  # a lumen belongs to the tissue
    assert LIMITS[0] <= found.threshold <= LIMITS[1]
    assert found.histogram.sum() == tissue.size


def test_dust_and_what_was_not_scanned_are_no_tissue():
    picture, tissue = slide(GLASSES["pink"])
    picture[20:27, 20:27] = (150, 40, 120)  # 56 µm of dust
    picture[:, 240:] = 255
    picture[200:, :] = (0, 0, 0)
    mask = find_tissue(picture, UM).mask
    assert not mask[~tissue].any() or (mask & ~tissue).sum() < 0.03 * tissue.sum()
    assert not mask[20:27, 20:27].any()
    assert not mask[:, 243:].any()
    assert not mask[203:].any()


@pytest.mark.parametrize("glass", sorted(GLASSES))
def test_bare_glass_holds_no_tissue(glass):
    rng = np.random.default_rng(1)
    picture = np.clip(np.array(GLASSES[glass]) + rng.normal(0, 3, (200, 200, 3)), 0, 255)
    with pytest.raises(SlideError, match="image: expected tissue; nothing of 20,000"):
        find_tissue(picture.astype(np.uint8), UM)


def test_a_slide_full_of_tissue_is_not_divided():
    rng = np.random.default_rng(2)
    pale = rng.random((200, 200, 1)) < 0.5
    picture = np.where(pale, (225, 185, 215), (120, 70, 150)) + rng.normal(0, 5, (200, 200, 3))
    picture[::10, ::10] = 250  # lumina
    assert find_tissue(np.clip(picture, 0, 255).astype(np.uint8), UM).mask.mean() > 0.98


@pytest.mark.parametrize("grey", [0, 200, 255])
def test_one_grey_holds_no_tissue(grey):
    with pytest.raises(SlideError, match="expected tissue"):
        find_tissue(np.full((200, 200, 3), grey, np.uint8), UM)


def test_picture_is_drawn_and_whole(tmp_path):
    picture, _ = slide(GLASSES["white"])
    found = find_tissue(picture, UM)
    path = tmp_path / "a_tissue.png"
    corners = np.array([[256, 512], [512, 512]])
    draw_tissue(path, picture, UM, found.mask, found.histogram, found.threshold, corners)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]
