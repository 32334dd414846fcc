"""Built-in stain encoder: stain concentrations and their texture, without weights or torch.

It keeps structure at 2 µm that a ViT token of 16 µm averages out. A token has three parts:

1. fine maps (haematoxylin, eosin, whiteness) as 8 × 8 sub-cells of 2 µm, one per bin;
2. texture maps as 4 × 4 sub-cells of 4 µm;
3. surroundings: mean and standard deviation of some maps over 32, 64 and 128 µm.

`CHANNELS` lists all blocks of channels, and docs/encoders.md explains each map.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from virchow_st.models.encoders.base import Encoder, Tokens
from virchow_st.types import BoolArray, Float32Array, Float64Array, UInt8Array

VERSION = "stain/1"  # to be raised with any change below that changes the tokens
IMAGE_PX = 256  # 1 µm/px
GRID = 16
TOKEN_PX = IMAGE_PX // GRID

FINE = ("haematoxylin", "eosin", "whiteness")
TEXTURE = (
    "residual",
    "haematoxylin_relative",
    "eosin_relative",
    "chromatin",
    "nucleus",
    "fibre",
    "edge",
    "roughness",
)
SURROUND = ("haematoxylin", "eosin", "whiteness", "residual", "nucleus", "edge")
WINDOWS_UM = (32, 64, 128)
FINE_SIDE, TEXTURE_SIDE = 8, 4  # sub-cells along a side of a token

# Typical value and spread of each map, rounded, measured on public H&E sections of breast tumours
# (Andersson et al. 2021), so that channels are of order one. They are part of the definition.
SCALING: dict[str, tuple[float, float]] = {
    "haematoxylin": (0.4, 0.35),
    "eosin": (0.08, 0.075),
    "whiteness": (0.5, 0.2),
    "residual": (0.025, 0.04),
    "haematoxylin_relative": (0.0, 1.0),
    "eosin_relative": (0.0, 1.0),
    "chromatin": (0.0, 0.07),
    "nucleus": (0.03, 0.06),
    "fibre": (0.0, 0.03),
    "edge": (0.07, 0.07),
    "roughness": (0.06, 0.05),
}

_OPTICAL_DENSITY = -np.log10((np.arange(256) + 1.0) / 256.0)
OD_MAX = 2.0  # darker pixels are ink, folds or pen marks, not stronger stain
_OD_TABLE = np.minimum(_OPTICAL_DENSITY, OD_MAX).astype(np.float32)
_TISSUE_OD = 0.1  # mean optical density over the three colours above which a pixel is tissue
_MIN_TISSUE_PX = 256
_MIN_SPREAD = 0.03  # avoids amplifying noise in a patch of uniform colour
_RELATIVE_MAX = 5.0


def _stains() -> Float64Array:
    h = np.array([0.6511, 0.7012, 0.2905])
    e = np.array([0.2159, 0.8012, 0.5581])
    stains = np.stack([h, e, np.cross(h, e)])
    return np.asarray(stains / np.linalg.norm(stains, axis=1, keepdims=True))


STAINS = _stains()
"""(3, 3) float64: densities of red, green and blue of one unit of haematoxylin, eosin, the rest.

As in Ruifrok & Johnston (2001), the third direction is orthogonal to both stains. The vectors are
QuPath's defaults for H&E. With Ruifrok & Johnston's eosin vector, a third of the tissue in the
public sections used for `SCALING` had a negative eosin concentration; with this vector an eighth
has.
"""
UNMIX = np.linalg.inv(STAINS)
"""(3, 3) float64, from a pixel's densities, as a row, to its concentrations."""
_MEAN_OF_COLOURS = np.full((1, 3), 1 / 3)


@dataclass(frozen=True)
class Channels:
    """A block of a token's channels.

    Attributes:
        name: Name of the map, with a suffix such as ``_mean_32um`` or ``_std_32um`` for
            surroundings.
        start: Index of the first channel.
        side: Sub-cells along a side. The block has ``side²`` channels, row-major within the token:
            channel ``start + i * side + j`` is the sub-cell in row ``i``, column ``j``.
    """

    name: str
    start: int
    side: int

    @property
    def slice(self) -> slice:
        """Slice of the block's channels in a token."""
        return slice(self.start, self.start + self.side**2)


def _layout() -> tuple[Channels, ...]:
    sides = [(name, FINE_SIDE) for name in FINE] + [(name, TEXTURE_SIDE) for name in TEXTURE]
    sides += [
        (f"{name}_{statistic}_{window}um", 1)
        for window in WINDOWS_UM
        for statistic in ("mean", "std")
        for name in SURROUND
    ]
    starts = np.cumsum([0] + [side**2 for _, side in sides])
    return tuple(Channels(n, int(at), s) for (n, s), at in zip(sides, starts, strict=False))


CHANNELS = _layout()
DIM = CHANNELS[-1].slice.stop


class StainEncoder(Encoder):
    """Encoder of patch images of 256 × 256 px at 1 µm/px to tokens of 16 µm.

    It is deterministic and runs on the CPU. The class vector is the mean of the tokens.
    """

    name = "stain"
    dim = DIM
    grid = GRID
    image_px = IMAGE_PX
    weights_hash = VERSION
    licence = ""
    layout = tuple((c.start, c.side) for c in CHANNELS if c.side > 1)

    def encode(self, images: UInt8Array) -> Tokens:
        """Encode RGB images (B, 256, 256, 3) uint8."""
        self._check_images(images)
        tokens = np.empty((len(images), GRID, GRID, DIM), np.float32)
        cls = np.empty((len(images), DIM), np.float32)
        for image, out, mean in zip(images, tokens, cls, strict=True):
            _encode_one(image, out)
            np.mean(out, axis=(0, 1), out=mean)
        return Tokens(tokens, cls)


def _encode_one(image: UInt8Array, out: Float32Array) -> None:
    maps = {name: _scaled(name, pixels) for name, pixels in stain_maps(image).items()}
    parts = [sub_cells(maps[name], FINE_SIDE) for name in FINE]
    parts += [sub_cells(maps[name], TEXTURE_SIDE) for name in TEXTURE]
    stack = np.stack([maps[name] for name in SURROUND])
    parts += surroundings(stack, WINDOWS_UM)
    np.concatenate(parts, axis=-1, out=out)


def _scaled(name: str, pixels: Float32Array) -> Float32Array:
    typical, spread = SCALING[name]
    return (pixels - np.float32(typical)) * np.float32(1 / spread)


def haematoxylin(image: UInt8Array) -> Float32Array:
    """Haematoxylin concentration (optical density), (H, W) float32, of an RGB image (H, W, 3).

    Example:
        A white pixel has none, a blue-violet one has much:

        >>> haematoxylin(np.array([[[255, 255, 255], [80, 60, 140]]], np.uint8)).round(1)
        array([[0. , 0.7]], dtype=float32)
    """
    return cv2.transform(_OD_TABLE[image], UNMIX.T[:1])


def stain_maps(image: UInt8Array) -> dict[str, Float32Array]:
    """Maps from which the channels are computed, before scaling: name → (256, 256) float32.

    The maps are isotropic, so a rotated image gives rotated maps. Borders are reflected.

    Args:
        image: (256, 256, 3) uint8 RGB, 1 µm/px.
    """
    image = np.ascontiguousarray(image)
    density = _OD_TABLE[image]  # (256, 256, 3)
    h, e, residual = cv2.split(cv2.transform(density, UNMIX.T))
    tissue = cv2.transform(density, _MEAN_OF_COLOURS) > _TISSUE_OD
    h1, h2, h4 = (_blur(h, sigma) for sigma in (1, 2, 4))
    e1, e4 = _blur(e, 1), _blur(e, 4)
    darkest = np.minimum(np.minimum(image[..., 0], image[..., 1]), image[..., 2])
    white = darkest.astype(np.float32) / np.float32(255)
    return {
        "haematoxylin": h,
        "eosin": e,
        "whiteness": white,
        "residual": residual,
        "haematoxylin_relative": _relative(h, tissue),
        "eosin_relative": _relative(e, tissue),
        "chromatin": h1 - h2,
        "nucleus": np.maximum(h2 - h4, 0),
        "fibre": e1 - e4,
        "edge": _gradient_magnitude(h1),
        "roughness": _local_std(white),
    }


def sub_cells(pixels: Float32Array, side: int) -> Float32Array:
    """Mean of a (256, 256) map in each sub-cell of each token: (16, 16, side²), row-major."""
    n = GRID * side
    cells = cv2.resize(pixels, (n, n), interpolation=cv2.INTER_AREA)  # integer factor: exact means
    cells = cells.reshape(GRID, side, GRID, side).swapaxes(1, 2)
    return cells.reshape(GRID, GRID, side * side)


_CELL_PX = TOKEN_PX // 2  # windows are centred on tokens, so their edges lie at half tokens


def surroundings(maps: Float32Array, windows_um: tuple[int, ...]) -> list[Float32Array]:
    """Mean and standard deviation of maps (C, 256, 256) in square windows around each token.

    A window is centred on its token; the map is reflected at the border of the patch. Returns mean
    and standard deviation for each window in turn, (16, 16, C) each.
    """
    mean, variance = _cell_moments(maps)
    parts = []
    for window in windows_um:
        A = _window_weights(window)  # (16, 32)
        window_mean = A @ mean @ A.T
        # Law of total variance: mean variance within the cells plus variance of the cells' means.
        between = A @ np.square(mean) @ A.T - np.square(window_mean)
        window_std = np.sqrt(A @ variance @ A.T + np.maximum(between, 0))
        parts += [_channels_last(window_mean), _channels_last(window_std)]
    return parts


def _cell_moments(maps: Float32Array) -> tuple[Float64Array, Float64Array]:
    """Mean and variance of maps (C, 256, 256) in cells of half a token: (C, 32, 32) each."""
    n = IMAGE_PX // _CELL_PX
    size = (n, n)
    means, variances = np.empty((2, len(maps), n, n))
    for pixels, mean, variance in zip(maps, means, variances, strict=True):
        coarse = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        spread = pixels - coarse.repeat(_CELL_PX, 0).repeat(_CELL_PX, 1)  # exactly 0 where flat
        mean[:] = coarse
        variance[:] = cv2.resize(spread * spread, size, interpolation=cv2.INTER_AREA)
    return means, variances


def _window_weights(window_um: int) -> Float64Array:
    """Share of each half-token cell in each token's window, along one axis: (16, 32)."""
    n, half = 2 * GRID, window_um // _CELL_PX // 2
    weights = np.zeros((GRID, n))
    for token in range(GRID):
        for cell in range(2 * token + 1 - half, 2 * token + 1 + half):
            inside = -1 - cell if cell < 0 else min(cell, 2 * n - 1 - cell)
            weights[token, inside] += 1 / (2 * half)
    return weights


def _channels_last(windows: Float64Array) -> Float32Array:
    return np.moveaxis(windows, 0, -1).astype(np.float32)


def _blur(pixels: Float32Array, sigma: float) -> Float32Array:
    return cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def _gradient_magnitude(pixels: Float32Array) -> Float32Array:
    """Magnitude of the gradient per µm, by central differences."""
    padded = cv2.copyMakeBorder(pixels, 1, 1, 1, 1, cv2.BORDER_REFLECT)
    down = padded[2:, 1:-1] - padded[:-2, 1:-1]
    right = padded[1:-1, 2:] - padded[1:-1, :-2]
    # Not cv2.magnitude: its last bit depends on the memory alignment of the array, but a resumed
    # extraction has to give the same bytes.
    return np.sqrt(down * down + right * right) * np.float32(0.5)


_STD_FLOOR = 0.01  # keeps the square root smooth where the image is flat


def _local_std(pixels: Float32Array) -> Float32Array:
    """Standard deviation over 5 × 5 px, softened near zero."""
    mean = cv2.blur(pixels, (5, 5), borderType=cv2.BORDER_REFLECT)
    square = cv2.sqrBoxFilter(pixels, cv2.CV_32F, (5, 5), borderType=cv2.BORDER_REFLECT)
    variance = np.maximum(square - mean * mean, 0)
    return np.sqrt(variance + np.float32(_STD_FLOOR**2)) - np.float32(_STD_FLOOR)


def _relative(pixels: Float32Array, tissue: BoolArray) -> Float32Array:
    """Concentration relative to the patch: minus the median over tissue, divided by the spread.

    This is more comparable between slides of different stain intensity than the concentration
    itself. The spread is the interquartile range divided by 1.349, which is 1 σ of a normal
    distribution. A patch with hardly any tissue gets zeros.
    """
    values = pixels[tissue]
    if len(values) < _MIN_TISSUE_PX:
        return np.zeros_like(pixels)
    low, median, high = np.percentile(values, (25, 50, 75))
    spread = max((high - low) / 1.349, _MIN_SPREAD)
    relative = (pixels - np.float32(median)) * np.float32(1 / spread)
    return np.clip(relative, -_RELATIVE_MAX, _RELATIVE_MAX)
