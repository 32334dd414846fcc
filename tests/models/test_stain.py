"""The stain encoder, and how its tokens rotate with the image."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from scipy import ndimage

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import dihedral_channels, load_encoder
from virchow_st.models.encoders.stain import (
    CHANNELS,
    DIM,
    SCALING,
    WINDOWS_UM,
    StainEncoder,
    stain_maps,
    sub_cells,
    surroundings,
)

BY_NAME = {c.name: c for c in CHANNELS}
HAEMATOXYLIN = np.array([0.6511, 0.7012, 0.2905]) / np.linalg.norm([0.6511, 0.7012, 0.2905])
EOSIN = np.array([0.2159, 0.8012, 0.5581]) / np.linalg.norm([0.2159, 0.8012, 0.5581])


def tissue(seed: int = 0) -> np.ndarray:
    """A patch of pink stroma with round nuclei and a lumen: (256, 256, 3) uint8."""
    rng = np.random.default_rng(seed)
    h, e = (
        np.full((256, 256), 0.1),
        0.3 + 0.05 * ndimage.gaussian_filter(rng.normal(size=(256, 256)), 2),
    )
    rows, cols = np.indices((256, 256))
    for r, c in rng.uniform(0, 256, (60, 2)):
        h[(rows - r) ** 2 + (cols - c) ** 2 < 16] = 0.9
    lumen = (rows - 180) ** 2 + (cols - 60) ** 2 < 900
    h[lumen] = e[lumen] = 0
    return paint(h, e)


def paint(h: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Concentrations to RGB by Beer–Lambert, I + 1 = 256 · 10^(−density)."""
    density = h[..., None] * HAEMATOXYLIN + e[..., None] * EOSIN
    return np.clip(np.round(256 * 10**-density - 1), 0, 255).astype(np.uint8)


def unscale(name: str, values: np.ndarray) -> np.ndarray:
    typical, spread = SCALING[name]
    return values * spread + typical


def test_channels_cover_the_token_without_gaps() -> None:
    assert 250 <= DIM <= 450
    covered = np.concatenate([np.arange(DIM)[c.slice] for c in CHANNELS])
    np.testing.assert_array_equal(covered, np.arange(DIM))
    assert len(BY_NAME) == len(CHANNELS)


def test_unmixing_recovers_known_concentrations() -> None:
    h, e = np.meshgrid(np.linspace(0, 0.8, 256), np.linspace(0, 0.6, 256))
    maps = stain_maps(paint(h, e))
    # 8 bits: half a grey level at the darkest pixel here is 0.5 / (256·10^-1.3 · ln 10) = 0.017.
    np.testing.assert_allclose(maps["haematoxylin"], h, atol=0.05)
    np.testing.assert_allclose(maps["eosin"], e, atol=0.05)
    assert abs(maps["haematoxylin"] - h).mean() < 0.005
    assert abs(maps["residual"]).mean() < 0.005


def test_fine_channels_are_the_means_of_the_bins() -> None:
    image = tissue()
    token = StainEncoder().encode(image[None]).tokens[0, 5, 9]
    for name in ("haematoxylin", "eosin", "whiteness"):
        crop = stain_maps(image)[name][5 * 16 : 6 * 16, 9 * 16 : 10 * 16]
        bins = np.array([[crop[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(8)]
                         for i in range(8)])  # fmt: skip
        np.testing.assert_allclose(
            unscale(name, token[BY_NAME[name].slice]), bins.ravel(), atol=1e-5
        )


def test_filters_agree_with_scipy() -> None:
    maps = stain_maps(tissue())

    def blur(name: str, sigma: float) -> np.ndarray:
        return ndimage.gaussian_filter(maps[name].astype(float), sigma, mode="reflect")

    h1 = blur("haematoxylin", 1)
    # OpenCV cuts its kernels at 4 σ, as scipy does; the rest is float32.
    np.testing.assert_allclose(maps["chromatin"], h1 - blur("haematoxylin", 2), atol=1e-3)
    nucleus = np.maximum(blur("haematoxylin", 2) - blur("haematoxylin", 4), 0)
    np.testing.assert_allclose(maps["nucleus"], nucleus, atol=1e-3)
    np.testing.assert_allclose(maps["fibre"], blur("eosin", 1) - blur("eosin", 4), atol=1e-3)
    slopes = [ndimage.correlate1d(h1, [-0.5, 0, 0.5], axis, mode="reflect") for axis in (0, 1)]
    np.testing.assert_allclose(maps["edge"], np.hypot(*slopes), atol=1e-3)
    white = maps["whiteness"].astype(float)
    variance = ndimage.uniform_filter(white**2, 5) - ndimage.uniform_filter(white, 5) ** 2
    roughness = np.sqrt(np.maximum(variance, 0) + 1e-4) - 0.01
    np.testing.assert_allclose(maps["roughness"], roughness, atol=1e-4)


def test_relative_maps_do_not_see_a_stronger_stain() -> None:
    rng = np.random.default_rng(1)
    h = ndimage.gaussian_filter(rng.uniform(0.2, 0.6, (256, 256)), 1)
    e = np.full((256, 256), 0.2)
    weak, strong = (stain_maps(paint(f * h, e))["haematoxylin_relative"] for f in (1.0, 1.5))
    assert abs(np.median(weak)) < 0.01
    assert weak.std() == pytest.approx(1, abs=0.1)
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.99
    assert abs(weak - strong).mean() < 0.1


def test_nucleus_map_peaks_on_the_nucleus() -> None:
    rows, cols = np.indices((256, 256))
    h = np.where((rows - 100) ** 2 + (cols - 40) ** 2 <= 9, 0.9, 0.1)
    nucleus = stain_maps(paint(h, np.full(h.shape, 0.2)))["nucleus"]
    assert np.unravel_index(nucleus.argmax(), nucleus.shape) == (100, 40)


def test_surroundings_are_the_window_moments_of_the_reflected_patch() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.normal(3, 1, (2, 256, 256)).astype(np.float32)
    pixels[1] += np.linspace(0, 4, 256, dtype=np.float32)
    found = surroundings(pixels, WINDOWS_UM)
    padded = np.pad(pixels.astype(float), ((0, 0), (64, 64), (64, 64)), mode="symmetric")
    for n, window in enumerate(WINDOWS_UM):
        for i, j in ((0, 0), (15, 3), (7, 8), (15, 15)):
            r, c = 64 + 16 * i + 8 - window // 2, 64 + 16 * j + 8 - window // 2
            crop = padded[:, r : r + window, c : c + window]
            np.testing.assert_allclose(found[2 * n][i, j], crop.mean((1, 2)), atol=1e-5)
            np.testing.assert_allclose(found[2 * n + 1][i, j], crop.std((1, 2)), atol=1e-5)


def test_surroundings_sit_in_their_named_channels() -> None:
    image = tissue()
    tokens = StainEncoder().encode(image[None]).tokens[0]
    mean, std = surroundings(stain_maps(image)["edge"][None], (64,))
    typical, spread = SCALING["edge"]
    got = tokens[..., BY_NAME["edge_mean_64um"].slice]
    np.testing.assert_allclose(got * spread + typical, mean, atol=1e-5)
    np.testing.assert_allclose(tokens[..., BY_NAME["edge_std_64um"].slice] * spread, std, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_tokens_turn_with_the_image(k: int, flip: bool) -> None:
    encoder, image = StainEncoder(), tissue(3)
    before = encoder.encode(image[None]).tokens[0]
    turned = np.rot90(np.fliplr(image) if flip else image, k)
    after = encoder.encode(turned[None]).tokens[0]
    order = dihedral_channels(encoder.layout, encoder.dim, k, flip)
    assert order is not None
    expected = np.rot90(np.fliplr(before) if flip else before, k)[..., order]
    np.testing.assert_allclose(after, expected, atol=1e-4)
    if k or flip:  # the test can tell a wrong order
        assert abs(after - np.rot90(np.fliplr(before) if flip else before, k)).max() > 0.1


def test_dihedral_channels_from_json_and_outside_the_blocks() -> None:
    layout = json.loads(json.dumps([[1, 2]]))
    order = dihedral_channels(layout, 6, k=1, flip=False)
    assert order is not None
    # [[1, 2], [3, 4]] turned counter-clockwise is [[2, 4], [1, 3]]; channels 0 and 5 stay.
    np.testing.assert_array_equal(order, [0, 2, 4, 1, 3, 5])
    np.testing.assert_array_equal(dihedral_channels(layout, 6, 0, True), [0, 2, 1, 4, 3, 5])
    assert dihedral_channels([], 6, 1, True) is None


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_flat_patches_are_finite_and_flat(grey: int) -> None:
    tokens = StainEncoder().encode(np.full((1, 256, 256, 3), grey, np.uint8)).tokens
    assert np.isfinite(tokens).all()
    np.testing.assert_allclose(tokens, np.broadcast_to(tokens[:, :1, :1], tokens.shape), atol=1e-4)
    for name in ("haematoxylin_relative", "edge_std_128um"):
        np.testing.assert_allclose(tokens[..., BY_NAME[name].slice], 0, atol=1e-4)


def test_a_dark_square_changes_its_own_token_most() -> None:
    encoder, image = StainEncoder(), tissue()
    marked = image.copy()
    marked[3 * 16 : 4 * 16, 11 * 16 : 12 * 16] = (60, 40, 110)
    a, b = (encoder.encode(x[None]).tokens[0] for x in (image, marked))
    change = np.abs(a - b).sum(-1)
    assert np.unravel_index(change.argmax(), change.shape) == (3, 11)


def test_encode_is_deterministic_and_independent_of_the_batch() -> None:
    encoder = load_encoder("stain")
    batch = np.stack([tissue(4), tissue(5)])
    out = encoder.encode(batch)
    assert out.tokens.shape == (2, 16, 16, DIM)
    assert out.tokens.dtype == out.cls.dtype == np.float32
    again = encoder.encode(batch[1:])
    np.testing.assert_array_equal(out.tokens[1:], again.tokens)
    np.testing.assert_allclose(out.cls, out.tokens.mean((1, 2)), rtol=1e-6)
    assert abs(out.tokens).max() < 200  # float16 has room, and channels are of order one
    assert encoder.encode(batch[:0]).tokens.shape == (0, 16, 16, DIM)


def test_threads_do_not_change_the_tokens() -> None:
    threads = cv2.getNumThreads()
    try:
        results = []
        for n in (1, 4):
            cv2.setNumThreads(n)
            results.append(StainEncoder().encode(tissue()[None]).tokens)
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(*results)


def test_refusals() -> None:
    encoder = StainEncoder()
    with pytest.raises(ValueError, match=r"expected images uint8 \(B, 256, 256, 3\); got float32"):
        encoder.encode(np.zeros((1, 256, 256, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got uint8"):
        encoder.encode(np.zeros((1, 224, 224, 3), np.uint8))
    with pytest.raises(ConfigError, match="stain encoder has none"):
        load_encoder("stain", weights="x.safetensors")


def test_sub_cells_are_row_major() -> None:
    rows, cols = np.indices((256, 256))
    cells = sub_cells((rows * 1000 + cols).astype(np.float32), 4)
    # Sub-cell (2, 3) of token (1, 5): rows 24–27, columns 92–95.
    assert cells[1, 5, 2 * 4 + 3] == pytest.approx(25.5 * 1000 + 93.5)
