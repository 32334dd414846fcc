"""Prediction on an H&E image in memory, for notebooks; ``vst predict`` is for whole slides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from virchow_st.models.encoders import load_encoder
from virchow_st.predict.image import (
    OVERVIEW_LEVEL,
    TrainedRun,
    check_tissue,
    grid_shape,
    on_cells,
    open_encoder,
    picture_factor,
    predict_patches,
)
from virchow_st.predict.lattice import lay_over
from virchow_st.predict.stitch import Stitcher
from virchow_st.run.panel import Panel
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.slide.image import SlideImage
from virchow_st.slide.mpp import check_mpp
from virchow_st.slide.tissue import find_tissue
from virchow_st.types import BIN_UM, CELL_BINS, BoolArray, Float32Array, UInt8Array

OVERLAP_UM = 32
"""Overlap of neighbouring patches, the default of ``vst predict``; 0 would show seams."""
MIN_TISSUE = 0.0
"""Lower than in ``vst predict``, because images in notebooks are often cut through tissue."""
# The encoder stays loaded because notebooks predict one image after another.
_load_encoder = lru_cache(maxsize=1)(load_encoder)


@dataclass(frozen=True, eq=False)
class ImageRates:
    """Rates on an image, on a grid of 2 µm bins that begins at the image's top left corner.

    Attributes:
        panel: the genes.
        rates: (G, R, C) float32, expected UMIs per 2 µm bin; NaN outside patches and in
            bins left out, whose rates would be impossible.
        tissue_mask: (R, C) bool, True = tissue. Glass inside a patch has rates as well.
        image: (2R, 2C, 3) uint8, the image at 1 µm/px, white beyond its edge.
    """

    panel: Panel
    rates: Float32Array
    tissue_mask: BoolArray
    image: UInt8Array

    def __getitem__(self, gene: str) -> Float32Array:
        """(R, C) rates of a gene by symbol or id, NaN outside tissue."""
        rate = self.rates[self.panel.index(gene)]
        return np.where(self.tissue_mask, rate, np.float32(np.nan))

    def __repr__(self) -> str:
        n_genes, rows, cols = self.rates.shape
        return f"ImageRates({n_genes} genes, {rows}×{cols} bins of {BIN_UM} µm)"


def predict_array(
    run: TrainedRun,
    panel: Panel,
    pixels: UInt8Array,
    mpp: float,
    *,
    weights: str = "",
    device: str = "auto",
    min_tissue: float = MIN_TISSUE,
    progress: Progress = SILENT,
) -> ImageRates:
    """Predict the rates on an image in memory, as ``vst predict`` does, without writing files.

    Args:
        run: the trained run.
        panel: its genes.
        pixels: (H, W, 3) uint8 RGB.
        mpp: µm per pixel.
        weights: the encoder's weights file, instead of the hub.
        device: where the encoder runs.
        min_tissue: smallest share of tissue in a patch that is predicted; a patch without tissue
            never is.
        progress: receives notes, warnings and step counts.

    Raises:
        ValueError: the array is not an RGB image.
        SlideError: the pixels are too coarse to show nuclei, there is no tissue, or the
            picture cannot be H&E.
        ConfigError: the encoder's weights cannot be loaded, or differ from the run's; or the
            run's rates are NaN, infinite, or impossible in more than 1 % of the bins.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"image: expected uint8 (H, W, 3) RGB; got {pixels.dtype} {pixels.shape}")
    mpp = check_mpp("image", mpp)
    image = SlideImage.of_array(pixels)
    encoder = open_encoder(run, weights, device, _load_encoder)
    factor = picture_factor(image, mpp) << OVERVIEW_LEVEL
    overview, _, scale = image.read_region(0, 0, image.width, image.height, factor)
    shape = grid_shape(image, mpp)
    cells = on_cells(find_tissue(overview, scale * mpp).mask, scale * mpp, shape)
    patches = lay_over(cells, min_tissue, OVERLAP_UM // BIN_UM)
    check_tissue(image, mpp, patches, cells, "image")
    rates = np.full((len(panel), *shape), np.nan, np.float32)

    def write(row0: int, col0: int, block: Float32Array, _: BoolArray) -> None:
        rates[:, row0 : row0 + block.shape[1], col0 : col0 + block.shape[2]] = block

    stitcher = Stitcher(patches, OVERLAP_UM // BIN_UM, shape, write)
    predict_patches([run], encoder, image, mpp, patches, stitcher, progress)
    mask = cells.repeat(CELL_BINS, axis=0).repeat(CELL_BINS, axis=1)
    return ImageRates(panel, rates, mask, _at_1um(pixels, mpp, shape))


def _at_1um(pixels: UInt8Array, mpp: float, shape: tuple[int, int]) -> UInt8Array:
    """The image at 1 µm/px on a grid of ``shape`` bins, with whole pixels at its far edges."""
    sides = [max(1, round(n * mpp)) for n in pixels.shape[:2]]
    small = cv2.resize(pixels, (sides[1], sides[0]), interpolation=cv2.INTER_AREA)
    canvas = np.full((BIN_UM * shape[0], BIN_UM * shape[1], 3), 255, np.uint8)
    canvas[: sides[0], : sides[1]] = small
    return canvas
