"""Patches: which are kept, where they lie, and how they are rendered."""

import numpy as np
import pytest
from tiny_slide import COMBINATIONS, draw_markers, homography, write_image

from virchow_st.errors import SlideError
from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import (
    PatchTable,
    best_offset,
    bin_validity,
    lay_patches,
    leftover_tissue_bins,
    render_patch,
)

ROWS, COLS = 150, 290
PATCH = (0, 128)  # row0, col0: not at the origin, so that a swap of rows and columns shows
MARKERS = [(14, 138), (20, 240), (64, 191), (100, 150), (118, 246)]


def test_lattice_is_row_major_and_counts_tissue():
    rng = np.random.default_rng(0)
    mask = rng.random((300, 500)) < np.linspace(0, 1, 500)
    table = lay_patches(mask, 0.3)
    expected = [
        (r, c, mask[r : r + 128, c : c + 128].mean())
        for r in (0, 128)
        for c in (0, 128, 256)
        if mask[r : r + 128, c : c + 128].mean() >= 0.3
    ]
    assert len(table) == len(expected) == 4
    np.testing.assert_allclose(
        np.stack([table.row0, table.col0, table.tissue_fraction], 1), expected, rtol=1e-6
    )
    inside = sum(mask[r : r + 128, c : c + 128].sum() for r, c, _ in expected)
    assert leftover_tissue_bins(mask, table) == mask.sum() - inside
    assert (table.row0.dtype, table.tissue_fraction.dtype) == (np.int32, np.float32)


def test_patch_without_tissue_is_never_kept():
    mask = np.zeros((256, 128), bool)
    mask[200, 5] = True
    assert lay_patches(mask, 0.0).row0.tolist() == [128]


def test_refusals():
    with pytest.raises(SlideError, match="at least 128×128 bins; got 128×127"):
        lay_patches(np.ones((128, 127), bool), 0.5)
    mask = np.zeros((128, 128), bool)
    mask[:32] = True
    with pytest.raises(SlideError, match="at least 50% tissue; the best has 25%"):
        lay_patches(mask, 0.5)


# --- the lattice that covers most -----------------------------------------------------------------


def covered_from(mask, first_row, first_col, min_tissue):
    """Tissue bins in the patches kept of one lattice, patch by patch."""
    total = 0
    for r in range(first_row, mask.shape[0] - 127, 128):
        for c in range(first_col, mask.shape[1] - 127, 128):
            patch = mask[r : r + 128, c : c + 128]
            total += patch.sum() if patch.mean() >= min_tissue else 0
    return total


def blobs(shape, seed):
    """Tissue in a few ellipses, with holes."""
    rng = np.random.default_rng(seed)
    row, col = np.indices(shape)
    mask = np.zeros(shape, bool)
    for _ in range(4):
        r, c = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        a, b = rng.uniform(40, 120, 2)
        mask |= ((row - r) / a) ** 2 + ((col - c) / b) ** 2 < 1
    return mask & (rng.random(shape) < 0.9)


@pytest.mark.parametrize(
    ("shape", "min_tissue", "seed"),
    [((300, 270), 0.3, 0), ((300, 270), 0.0, 1), ((129, 400), 0.5, 2), ((257, 140), 0.75, 3)],
)
def test_best_lattice_covers_as_much_as_any(shape, min_tissue, seed):
    mask = blobs(shape, seed)
    covered = np.array(
        [[covered_from(mask, a, b, min_tissue) for b in range(128)] for a in range(128)]
    )
    want = divmod(int(covered.argmax()), 128)  # the first: smallest row, then column
    assert best_offset(mask, min_tissue) == want
    table = lay_patches(mask, min_tissue, "best")
    assert table.offset == want
    inside = mask.sum() - leftover_tissue_bins(mask, table)
    assert inside == covered.max() >= covered[0, 0]
    assert (table.row0 + 128).max() <= shape[0]
    assert (table.col0 + 128).max() <= shape[1]


def test_best_lattice_is_found_and_ties_go_to_the_first():
    mask = np.zeros((500, 600), bool)
    mask[37 : 37 + 256, 101 : 101 + 384] = True
    table = lay_patches(mask, 0.9, "best")
    assert len(table) == 6
    assert table.offset == (37, 101)
    assert (table.tissue_fraction == 1).all()
    everywhere = np.ones((300, 300), bool)
    assert lay_patches(everywhere, 0.5, "best").offset == (0, 0)
    with pytest.raises(SlideError, match="at least 50% tissue; the best has 0%"):
        lay_patches(np.zeros((300, 300), bool), 0.5, "best")
    with pytest.raises(SlideError, match="at least 128×128 bins; got 128×127"):
        lay_patches(np.ones((128, 127), bool), 0.5, "best")


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Images with dark squares at known bins, drawn by the exact homography; written once each."""
    folder = tmp_path_factory.mktemp("marked")
    written = {}

    def write(kind, how):
        h, size = homography(kind, ROWS, COLS)
        path = folder / f"{kind} {how}.tif".replace(" ", "-")
        if (kind, how) not in written:
            written[kind, how] = write_image(path, draw_markers(h, size, MARKERS), how)
        return h, written[kind, how]

    return write


def find_marker(rgb, row, col):
    """Centroid of darkness near a bin, in bins of the patch (centre-based)."""
    px = rgb.shape[0] / 128
    top, left = (int((n - 6) * px) for n in (row, col))
    window = slice(top, top + int(13 * px)), slice(left, left + int(13 * px))
    dark = (235.0 - rgb[window][..., 1]).clip(0)
    assert dark.sum() > 100
    v, u = (np.arange(n) + 0.5 for n in dark.shape)
    v, u = (dark.sum(1) @ v / dark.sum() + top), (dark.sum(0) @ u / dark.sum() + left)
    return v / px - 0.5, u / px - 0.5


@pytest.mark.parametrize("kind", ["rotation", "mirror", "quarter turn", "perspective"])
@pytest.mark.parametrize("how", ["tiles", "strips", "one piece", "pyramid", "subifds"])
def test_markers_are_found_within_a_quarter_bin(marked, kind, how):
    h, path = marked(kind, how)
    with SlideImage.open(path) as image:
        rendered = render_patch(image, h, *PATCH, (224, 256, 128))
    for rgb, valid in rendered:
        assert valid.all()
        for row, col in MARKERS:
            r, c = find_marker(rgb, row - PATCH[0], col - PATCH[1])
            assert np.hypot(r - (row - PATCH[0]), c - (col - PATCH[1])) < 0.1


@pytest.mark.parametrize("kind", COMBINATIONS)
@pytest.mark.parametrize("how", ["tiles", "vendor", "strips", "pyramid"])
def test_markers_are_found_however_the_slide_lies(marked, kind, how):
    h, path = marked(kind, how)
    with SlideImage.open(path) as image:
        assert image.backend == ("openslide" if how == "vendor" else "tifffile")
        ((rgb, _),) = render_patch(image, h, *PATCH, (256,))
    for row, col in MARKERS:
        r, c = find_marker(rgb, row - PATCH[0], col - PATCH[1])
        assert np.hypot(r - (row - PATCH[0]), c - (col - PATCH[1])) < 0.25


def test_area_and_darkness_are_kept(marked):
    """A square of 3×3 bins stays 9 bins of its darkness: nothing is skipped or counted twice."""
    h, path = marked("mirror", "tiles")
    with SlideImage.open(path) as image:
        ((rgb, _),) = render_patch(image, h, *PATCH, (256,))
    dark = (235.0 - rgb[..., 1]).sum() / 180
    assert dark == pytest.approx(len(MARKERS) * 9 * 4, rel=0.02)


@pytest.mark.parametrize("kind", ["rotation", "mirror"])
def test_off_the_image_is_white_and_invalid(marked, kind):
    h, path = marked(kind, "tiles")
    moved = np.array([[1, 0, -200.5], [0, 1, -90.25], [0, 0, 1]]) @ h.matrix
    off = Homography(moved / moved[2, 2])
    for row0, col0 in ((0, 0), (0, 128), (22, 162)):
        with SlideImage.open(path) as image:
            ((rgb, valid),) = render_patch(image, off, row0, col0, (256,))
            width, height = image.width, image.height
        col, row = np.meshgrid(np.arange(128), np.arange(128))
        corners = [
            off.to_px(col0 + col + a, row0 + row + b) for a in (-0.5, 0.5) for b in (-0.5, 0.5)
        ]
        x, y = (np.stack(axis) for axis in zip(*corners, strict=True))

        def on(slack, x=x, y=y, width=width, height=height):
            wide = (x >= -slack) & (x <= width + slack)
            return (wide & (y >= -slack) & (y <= height + slack)).all(axis=0)

        bins = bin_validity(valid)
        assert not bins[~on(0.5)].any()  # no bin that lies off the image counts as on it
        assert bins[on(-9.0)].all()  # and none is lost but near the edge, 1½ bins at most
        wholly_off = (x < -9).all(axis=0) | (y < -9).all(axis=0)
        assert (rgb[np.kron(wholly_off, np.ones((2, 2))).astype(bool)] == 255).all()
    far = Homography(np.array([[6.0, 0, 1e5], [0, 6.0, 1e5], [0, 0, 1]]))
    with SlideImage.open(path) as image:
        ((rgb, valid),) = render_patch(image, far, 0, 0, (224,))
    assert (rgb == 255).all()
    assert not valid.any()


def test_bin_validity_needs_all_pixels_of_a_bin():
    valid = np.ones((256, 256), bool)
    valid[2 * 5 + 1, 2 * 9] = False
    assert np.argwhere(~bin_validity(valid)).tolist() == [[5, 9]]
    with pytest.raises(ValueError, match="multiple of 128"):
        bin_validity(np.ones((224, 224), bool))


def test_coarse_image_is_enlarged():
    """Where the scan is coarser than the target, pixels are interpolated, not skipped."""

    class Ramp:
        width, height = 400, 400

        def level_factor(self, downsample):
            return 1

        def read_region(self, x0, y0, width, height, downsample):
            x = np.arange(x0, x0 + width) + 0.5
            rgb = np.broadcast_to(x[None, :, None] / 2, (height, width, 3)).astype(np.uint8)
            return np.ascontiguousarray(rgb), np.ones((height, width), bool), 1.0

    h = Homography(np.array([[1.5, 0, 40], [0, 1.5, 40], [0, 0, 1]]))  # 1.33 µm/px
    ((rgb, _),) = render_patch(Ramp(), h, 0, 0, (256,))
    x = 40 - 0.75 + (np.arange(256) + 0.5) * 0.75
    assert np.abs(rgb[100, :, 0] - x / 2).max() < 1.1


def test_table_is_frozen():
    table = PatchTable(*3 * [np.zeros(2)])
    with pytest.raises(AttributeError):
        table.row0 = np.ones(2)
