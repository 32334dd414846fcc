"""The steps that all predictions on an image share: its grid, its encoder, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import load_encoder
from virchow_st.models.encoders.base import Encoder
from virchow_st.predict.stitch import Stitcher
from virchow_st.runtime.prefetch import ahead
from virchow_st.runtime.progress import Progress
from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable, render_patch
from virchow_st.slide.stain_check import check_patches
from virchow_st.store.format import pack_image, unpack_image
from virchow_st.types import (
    BIN_UM,
    CELL_BINS,
    PATCH_BINS,
    PATCH_UM,
    STORED_IMAGE_PX,
    Array,
    BoolArray,
    Float32Array,
    UInt8Array,
)

OVERVIEW_LEVEL = 3
"""Where tissue is looked for: 4 to 10 µm/px, so many halvings above the picture's finest level."""
_FINEST_UM = 1.05  # not 1: a scanner's 40x is 0.25 µm/px within a few per cent
_BATCH_PATCHES = 16


class TrainedRun(Protocol):
    """What prediction asks of a run; `virchow_st.predict.load.Run` is one."""

    @property
    def path(self) -> Path:
        """The run directory."""

    @property
    def state(self) -> dict[str, Any]:
        """Of the checkpoint: ``encoder``, ``grid`` and ``dim`` of the tokens."""

    @property
    def wants_image(self) -> bool:
        """Whether `rates` takes the image."""

    def rates(self, tokens: Array, image: UInt8Array | None = None) -> Float32Array:
        """(B, T, T, D) tokens, and (B, 256, 256, 3) images if wanted, to (B, G, 128, 128)."""


def picture_factor(image: SlideImage, mpp: float) -> int:
    """Pixels a side that make one of the picture's: whole, so that averages are of whole pixels.

    As many as make 1.05 µm or less (mpp 0.25 → 4, so 1 µm/px; mpp 0.274 → 3, so 0.82).
    """
    wanted = max(1.0, _FINEST_UM / mpp)
    step = image.level_factor(wanted)
    return step * int(wanted / step)


def scaling(mpp: float) -> Homography:
    """Bins to px where bin (0, 0) lies in the image's corner: no turn, no mirror."""
    pitch = BIN_UM / mpp
    return Homography(np.array([[pitch, 0, pitch / 2], [0, pitch, pitch / 2], [0, 0, 1]]))


def grid_shape(image: SlideImage, mpp: float, multiple: int = CELL_BINS) -> tuple[int, int]:
    """Rows and columns of the 2 µm grid: the whole image, up to a multiple of so many bins."""
    side = BIN_UM * multiple
    rows, cols = (
        max(1, int(np.ceil(size * mpp / side - 1e-9))) * multiple
        for size in (image.height, image.width)
    )
    return rows, cols


def on_cells(mask: BoolArray, um_per_px: float, shape: tuple[int, int]) -> BoolArray:
    """The tissue mask on cells of 8 µm over a grid of ``shape`` bins: the pixel at their centre."""
    side = BIN_UM * CELL_BINS
    row, col = (
        ((np.arange(bins // CELL_BINS) + 0.5) * side / um_per_px).astype(int) for bins in shape
    )
    inside = np.outer(row < mask.shape[0], col < mask.shape[1])
    row, col = np.minimum(row, mask.shape[0] - 1), np.minimum(col, mask.shape[1] - 1)
    return mask[np.ix_(row, col)] & inside


def check_tissue(
    image: SlideImage, mpp: float, patches: PatchTable, cells: BoolArray, name: object
) -> None:
    """Refuse a slide whose tissue can be no H&E, before it is encoded.

    Args:
        image, mpp: the slide and its µm per pixel.
        patches: those to predict.
        cells: (R, C) bool, tissue on cells of 8 µm.
        name: of the slide, for the error.

    Raises:
        SlideError: white, of one colour or stain, or no bright-field picture.
    """
    side = PATCH_BINS // CELL_BINS
    padded = np.pad(cells, (0, side))  # the last patches may reach over the grid

    def tissue_of(row0: int, col0: int) -> BoolArray:
        row, col = row0 // CELL_BINS, col0 // CELL_BINS
        of_patch = padded[row : row + side, col : col + side]
        return of_patch.repeat(CELL_BINS, axis=0).repeat(CELL_BINS, axis=1)

    check_patches(image, scaling(mpp), patches, tissue_of).raise_for(name)


def open_encoder(
    run: TrainedRun,
    weights: str,
    device: str,
    load: Callable[..., Encoder] = load_encoder,
) -> Encoder:
    """The encoder of the run's stores, or an error: no other would make the same tokens.

    Args:
        run: whose tokens are wanted.
        weights: a local file instead of the hub; empty for the hub.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        load: `load_encoder`, or what keeps an encoder that it loaded.

    Raises:
        ConfigError: the weights cannot be had, or are others than the run's.
    """
    wanted, grid = run.state["encoder"], run.state["grid"]
    encoder = load(wanted["name"], weights=weights, device=device, token_um=PATCH_UM // grid)
    if (encoder.weights_hash, encoder.grid, encoder.dim) != (
        wanted["weights"], grid, run.state["dim"],
    ):  # fmt: skip
        raise ConfigError(
            f"{weights or encoder.name}: expected the weights of {named(wanted)}, on whose "
            f"tokens {run.path} was trained; got {encoder.weights_hash}; give those with --weights"
        )
    return encoder


def named(encoder: dict[str, str]) -> str:
    """Name and weights of a run's encoder, for messages."""
    return f"{encoder['name']} {encoder['weights']}"


def predict_patches(
    runs: Sequence[TrainedRun],
    encoder: Encoder,
    image: SlideImage,
    mpp: float,
    patches: PatchTable,
    stitcher: Stitcher,
    progress: Progress,
) -> None:
    """Render, encode and decode every patch, and stitch the rates (runs × genes, 128, 128).

    Batch by batch; one is rendered while another is encoded and decoded.
    """
    homography = scaling(mpp)
    wants_image = any(run.wants_image for run in runs)
    sizes = (encoder.image_px, STORED_IMAGE_PX)[: 1 + wants_image]

    def render(batch: range) -> list[UInt8Array]:
        rendered = [
            render_patch(image, homography, int(patches.row0[i]), int(patches.col0[i]), sizes)
            for i in batch
        ]
        return [np.stack([images[k][0] for images in rendered]) for k in range(len(sizes))]

    n = len(patches)
    size = min(_BATCH_PATCHES, encoder.batch)  # that of a GPU with little memory is small
    batches = [range(s, min(s + size, n)) for s in range(0, n, size)]
    with ThreadPoolExecutor(1) as renderer:  # one thread, as an image handle belongs to one
        for batch, images in ahead(renderer, batches, render):
            # As a store keeps them, so that the decoder sees what it was trained on.
            tokens = encoder.encode(images[0]).tokens.astype(np.float16)
            stored = None
            if wants_image:
                stored = np.stack([unpack_image(memoryview(pack_image(i))) for i in images[1]])
            rates = np.concatenate(
                [run.rates(tokens, stored if run.wants_image else None) for run in runs], axis=1
            )
            for i, of_patch in zip(batch, rates, strict=True):
                stitcher.add(int(patches.row0[i]), int(patches.col0[i]), of_patch)
            progress.step(batch.stop, n, "patches")
