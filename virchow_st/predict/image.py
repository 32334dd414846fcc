"""The steps that all predictions on an image share: grid, encoder, and the loop over patches."""

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
from virchow_st.run.rates import check_left_out, left_out_warning
from virchow_st.runtime.prefetch import ahead
from virchow_st.runtime.progress import Progress
from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable, render_patch
from virchow_st.slide.restain import Restain
from virchow_st.slide.stain_check import check_patches
from virchow_st.store.format import as_stored
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
"""Pyramid level on which tissue is found, 4 to 10 µm/px; level 0 is the finest."""
_FINEST_UM = 1.05  # not 1: 40x scans have 0.25 µm/px within a few per cent
_BATCH_PATCHES = 16
_DECODED_MAPS = 800  # of one patch and gene, 64 KiB each: a batch of 16 patches of 50 genes


def decoded_together(n_genes: int) -> int:
    """Patches to decode at once, so that their rates take about 50 MB with many genes too.

    >>> decoded_together(50), decoded_together(200), decoded_together(5000)
    (16, 4, 1)
    """
    return max(1, _DECODED_MAPS // n_genes)


class TrainedRun(Protocol):
    """The part of a run that prediction uses; implemented by `virchow_st.predict.load.Run`."""

    @property
    def path(self) -> Path:
        """The run directory."""

    @property
    def state(self) -> dict[str, Any]:
        """``encoder``, ``grid`` and ``dim`` of the tokens, from the checkpoint."""

    @property
    def n_genes(self) -> int:
        """Genes that `rates` predicts, G."""

    @property
    def wants_image(self) -> bool:
        """Whether `rates` takes the image."""

    def rates(self, tokens: Array, image: UInt8Array | None = None) -> Float32Array:
        """(B, T, T, D) tokens, and (B, 256, 256, 3) images if wanted, to (B, G, 128, 128).

        NaN for every gene in bins that are left out.
        """


class Vectors(Protocol):
    """Where a vector per patch is kept; implemented by `virchow_st.predict.features`."""

    def has(self, batch: range) -> bool:
        """Whether a batch of patches is finished."""

    def add(self, batch: range, vectors: Array) -> None:
        """Keep the vectors (B, D) of a batch."""


def picture_factor(image: SlideImage, mpp: float) -> int:
    """Image pixels per side that are averaged to one pixel of the written H&E image.

    The largest multiple of a pyramid level's factor whose pixels span at most 1.05 µm (mpp 0.25
    → 4, which gives 1 µm/px; mpp 0.274 → 3, which gives 0.82 µm/px).
    """
    wanted = max(1.0, _FINEST_UM / mpp)
    step = image.level_factor(wanted)
    return step * int(wanted / step)


def scaling(mpp: float) -> Homography:
    """Homography from bins to px whose bin (0, 0) lies in the corner of the image: a scaling.

    >>> x, y = scaling(0.5).to_px(np.array([0.0]), np.array([2.0]))  # column 0, row 2
    >>> float(x[0]), float(y[0])  # the centre of the bin; a bin is 4 px wide
    (2.0, 10.0)
    """
    pitch = BIN_UM / mpp
    return Homography(np.array([[pitch, 0, pitch / 2], [0, pitch, pitch / 2], [0, 0, 1]]))


def grid_shape(image: SlideImage, mpp: float, multiple: int = CELL_BINS) -> tuple[int, int]:
    """Rows and columns of the 2 µm grid that covers the image, rounded up to ``multiple`` bins."""
    side = BIN_UM * multiple
    rows, cols = (
        max(1, int(np.ceil(size * mpp / side - 1e-9))) * multiple
        for size in (image.height, image.width)
    )
    return rows, cols


def on_cells(mask: BoolArray, um_per_px: float, shape: tuple[int, int]) -> BoolArray:
    """The tissue mask on 8 µm cells of a grid of ``shape`` bins, read at the cells' centres."""
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
    check_patches(image, scaling(mpp), patches, tissue_on(cells)).raise_for(name)


def tissue_on(cells: BoolArray) -> Callable[[int, int], BoolArray]:
    """Function from a patch's first row and column to its (128, 128) tissue mask.

    Args:
        cells: (R, C) bool, tissue on cells of 8 µm.
    """
    side = PATCH_BINS // CELL_BINS
    padded = np.pad(cells, (0, side))  # the last patches may reach over the grid

    def tissue_of(row0: int, col0: int) -> BoolArray:
        row, col = row0 // CELL_BINS, col0 // CELL_BINS
        of_patch = padded[row : row + side, col : col + side]
        return of_patch.repeat(CELL_BINS, axis=0).repeat(CELL_BINS, axis=1)

    return tissue_of


def open_encoder(
    run: TrainedRun,
    weights: str,
    device: str,
    load: Callable[..., Encoder] = load_encoder,
) -> Encoder:
    """Load the encoder of the run's stores; another encoder is an error, as its tokens differ.

    Args:
        run: the run that defines the encoder.
        weights: a local file; empty to load from the hub.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        load: `load_encoder`, or a cached version of it.

    Raises:
        ConfigError: the weights cannot be loaded, or differ from the run's.
    """
    wanted, grid = run.state["encoder"], run.state["grid"]
    encoder = load(wanted["name"], weights=weights, device=device, token_um=PATCH_UM // grid)
    if (encoder.weights_hash, encoder.grid, encoder.dim) != (
        wanted["weights"], grid, run.state["dim"],
    ):  # fmt: skip
        raise ConfigError(
            f"{weights or encoder.name}: expected the weights of {named(wanted)}, on whose "
            f"tokens {run.path} was trained; got {encoder.weights_hash}; give the run's "
            "weights with --weights"
        )
    return encoder


def named(encoder: dict[str, str]) -> str:
    """Name and weights of a run's encoder, for messages."""
    return f"{encoder['name']} {encoder['weights']}"


def _as_it_is(image: UInt8Array) -> UInt8Array:
    return image


def predict_patches(
    runs: Sequence[TrainedRun],
    encoder: Encoder,
    image: SlideImage,
    mpp: float,
    patches: PatchTable,
    stitcher: Stitcher,
    progress: Progress,
    features: Vectors | None = None,
    restain: Restain | None = None,
) -> None:
    """Render, encode and decode every patch, and stitch the rates (runs × genes, 128, 128).

    One batch is rendered while another is encoded and decoded. With many genes a batch is decoded
    in parts, because its rates would take more memory than all else.

    Args:
        runs, encoder, image, mpp, patches: what is predicted.
        stitcher: receives the rates; patches that it does not need are left out.
        progress: receives the number of finished patches.
        features: receives the class token of every patch; None if nobody wants it.
        restain: changes the strength of the stains before encoding; None to leave them.

    Raises:
        ConfigError: a rate is NaN or infinite, or more bins have impossible rates than
            `check_left_out` takes; fewer are left out, with one warning.
    """
    source = ", ".join(str(run.path) for run in runs)
    homography = scaling(mpp)
    wants_image = any(run.wants_image for run in runs)
    sizes = (encoder.image_px, STORED_IMAGE_PX)[: 1 + wants_image]

    def render(batch: range) -> list[UInt8Array]:
        rendered = [
            render_patch(image, homography, int(patches.row0[i]), int(patches.col0[i]), sizes)
            for i in batch
        ]
        stain = restain or _as_it_is
        return [np.stack([stain(images[k][0]) for images in rendered]) for k in range(len(sizes))]

    n = len(patches)
    size = min(_BATCH_PATCHES, encoder.batch)  # small on a GPU with little memory
    together = decoded_together(runs[0].n_genes)  # several runs are of one panel

    def is_needed(batch: range) -> bool:
        return any(stitcher.needs(int(patches.row0[i]), int(patches.col0[i])) for i in batch)

    # Whole batches, also where a part of one is finished: a patch of another batch might differ in
    # its last bits.
    batches = [
        batch
        for batch in (range(s, min(s + size, n)) for s in range(0, n, size))
        if is_needed(batch) or not (features is None or features.has(batch))
    ]
    with ThreadPoolExecutor(1) as renderer:  # one thread: an image handle belongs to one thread
        for batch, images in ahead(renderer, batches, render):
            # Rounded as in a store, so that the decoder gets inputs like those of its training.
            encoded = encoder.encode(images[0])
            if features is not None:  # before the maps, so that finished maps have their vectors
                features.add(batch, encoded.cls)
            if not is_needed(batch):
                continue
            tokens = encoded.tokens.astype(np.float16)
            del encoded
            stored = [as_stored(i) for px in images[1:] for i in px]
            for start in range(0, len(batch), together):
                part = slice(start, start + together)
                image_px = np.stack(stored[part]) if stored else None
                by_run = [
                    run.rates(tokens[part], image_px if run.wants_image else None) for run in runs
                ]
                for i, *of_patch in zip(batch[part], *by_run, strict=True):
                    rates = of_patch[0] if len(runs) == 1 else np.concatenate(of_patch)
                    stitcher.add(int(patches.row0[i]), int(patches.col0[i]), rates)
                del by_run, of_patch, rates  # before the next are made
            check_left_out(stitcher.n_left_out, stitcher.n_bins, source)
            progress.step(batch.stop, n, "patches")
    if stitcher.n_left_out:
        progress.warn(left_out_warning(stitcher.n_left_out, stitcher.n_bins, source))
