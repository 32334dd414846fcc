"""The homography from bins to pixels: fit, inverse, µm per pixel, and corners of patches."""

import numpy as np
import pytest
from tiny_slide import homography

from virchow_st.slide.geometry import Homography

BRAIN = [
    [-7.30020288, 0.110259956, 21030.7433],
    [0.112578679, 7.30121053, 44.1895275],
    [1.30148815e-7, 7.56904127e-8, 1],
]
SEURAT = [
    [7.30382621, -0.0487428968, -700.350277],
    [-0.0485143213, -7.3036242, 24543.6762],
    [1.08872431e-8, -1.22333116e-8, 1],
]
KINDS = ["rotation", "mirror", "quarter turn", "perspective"]


@pytest.mark.parametrize("matrix", [BRAIN, SEURAT], ids=["brain", "seurat"])
def test_fit_recovers_real_homography(matrix):
    rng = np.random.default_rng(0)
    col, row = rng.integers(0, 3350, (2, 60_000)).astype(np.uint32)
    x, y, w = np.array(matrix) @ np.stack([col, row, np.ones(len(col))])
    h = Homography.fit(col, row, x / w, y / w)
    np.testing.assert_allclose(h.matrix, matrix, rtol=1e-6, atol=1e-12)
    assert h.residual_px < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_fit_from_few_bins(kind):
    truth, _ = homography(kind, 500, 400)
    col, row = np.array([0, 399, 7, 380]), np.array([3, 0, 499, 490])
    h = Homography.fit(col, row, *truth.to_px(col, row))
    np.testing.assert_allclose(h.matrix, truth.matrix, rtol=1e-7, atol=1e-10)


def test_residual_is_the_largest_over_all_points():
    truth = Homography(np.array(BRAIN))
    row, col = (a.ravel() for a in np.mgrid[0:300, 0:300])
    x, y = truth.to_px(col, row)
    x[4321] += 40.0
    assert Homography.fit(col, row, x, y).residual_px == pytest.approx(40.0, abs=1.0)


@pytest.mark.parametrize(
    ("col", "row"), [([0, 1, 2], [0, 5, 9]), ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]), ([1] * 5, [2] * 5)]
)
def test_points_that_fix_no_homography(col, row):
    col, row = np.array(col), np.array(row)
    with pytest.raises(ValueError, match="bins"):
        Homography.fit(col, row, 7.0 * col, 7.0 * row)


@pytest.mark.parametrize("kind", KINDS)
def test_to_bins_inverts_to_px(kind):
    h, _ = homography(kind, 300, 200)
    col, row = np.random.default_rng(1).uniform(-3, 300, (2, 100))
    np.testing.assert_allclose(h.to_bins(*h.to_px(col, row)), (col, row), atol=1e-9)


def test_mpp_is_analytic_for_a_similarity_and_local_under_perspective():
    h, _ = homography("quarter turn", 300, 300)
    assert h.mpp_at(10, 200) == pytest.approx(2 / 6)
    h, _ = homography("perspective", 300, 300)
    x, y = h.to_px([99.5, 100.5, 100.5, 99.5], [49.5, 49.5, 50.5, 50.5])
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert h.mpp_at(100, 50) == pytest.approx(2 / np.sqrt(area), rel=1e-5)


def test_patch_corners_are_outer_bin_edges_in_the_bin_frame():
    h = Homography(np.array([[4.0, 0, 2], [0, 4.0, 2], [0, 0, 1]]))  # bin (0, 0) spans px 0 to 4
    corners = [[512, 0], [1024, 0], [1024, 512], [512, 512]]
    np.testing.assert_allclose(h.patch_corners_px(0, 128), corners)
    turned = Homography(np.array([[0, -4.0, 1000], [4.0, 0, 2], [0, 0, 1]]))
    np.testing.assert_allclose(turned.patch_corners_px(0, 0)[:2], [[1002, 0], [1002, 512]])


@pytest.mark.parametrize("matrix", [BRAIN, SEURAT], ids=["brain", "seurat"])
@pytest.mark.parametrize("size", [224, 256])
def test_patch_affine_errs_below_a_hundredth_px_on_real_slides(matrix, size):
    h = Homography(np.array(matrix))
    u, v = (a.ravel() for a in np.meshgrid(*2 * [np.linspace(0, size, 33)]))
    worst = 0.0
    for row0 in (0, 1664, 3200):
        for col0 in (0, 1664, 3200):
            x, y = h.to_px(col0 - 0.5 + u * 128 / size, row0 - 0.5 + v * 128 / size)
            ax, ay = h.patch_affine(row0, col0, size) @ np.stack([u, v, np.ones_like(u)])
            worst = max(worst, np.hypot(ax - x, ay - y).max())
    assert worst <= 0.01
