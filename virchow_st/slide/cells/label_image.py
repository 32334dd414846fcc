"""Cells from a label image: TIFF or Zarr, of whole numbers, at full resolution or coarser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from virchow_st.errors import SlideError
from virchow_st.slide.cells.assign import from_labels
from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.mpp import ome_place, tiff_places
from virchow_st.slide.ome import UM_PER_UNIT, ome_images
from virchow_st.slide.space_ranger import reading
from virchow_st.types import BLOCK_BINS, Array

_FITS = 0.01  # largest relative difference between the image's size and the slide's
_LEAST_ON_IMAGE = 0.95  # share of the tissue that a label image must show


@dataclass(frozen=True, eq=False)
class LabelImage:
    """An open label image.

    Attributes:
        path: of the file.
        pixels: (H, W) whole numbers, read by slices; 0 = none.
        mpp: µm per pixel by its metadata; 0 where it does not say.
    """

    path: Path
    pixels: Any
    mpp: float


def read_label_image(path: Path, lattice: Lattice, mpp: float = 0.0) -> CellMap:
    """Give each bin the label of the pixel that its centre lies in, block by block.

    The image covers the same area as the full-resolution slide, from the same corner. Its µm per
    pixel are the given ones, else those of its metadata, else it is taken to be at full resolution,
    in which case it must show the tissue.

    Args:
        path: TIFF, OME-TIFF, or Zarr array or OME-Zarr image.
        lattice: of the slide.
        mpp: µm per pixel; 0 to find out.

    Raises:
        SlideError: it cannot be read, holds no whole numbers, or its size does not fit the slide.
    """
    with opened(path) as image:
        scale = _scale(image, lattice, mpp)
        labels, values = _sampled(image, lattice, scale)
    if not len(values):
        raise SlideError(
            f"{path}: expected labels above 0 on {lattice.name}; found none at its bins; give the "
            "label image of this slide"
        )
    return from_labels(labels, lattice, tuple(map(str, values.tolist())))


@contextmanager
def opened(path: Path) -> Iterator[LabelImage]:
    """Open a label image for reading by slices.

    Raises:
        SlideError: it cannot be read, or is not (H, W) whole numbers.
    """
    if path.is_dir():
        with reading(path, "a label image as Zarr"):
            array, mpp = _zarr_array(zarr.open(str(path), mode="r"))
        yield _checked(path, array, mpp)
        return
    with reading(path, "a label image as TIFF"):
        tiff = tifffile.TiffFile(path)
    with tiff:
        with reading(path, "a label image as TIFF"):
            level = tiff.series[0].levels[0]
            flat = level.keyframe.is_memmappable and len(level.pages) == 1
            array = (
                np.squeeze(level.pages[0].asarray(out="memmap"))
                if flat
                else zarr.open(level.aszarr(), mode="r")
            )
            images = ome_images(tiff.ome_metadata) if tiff.ome_metadata else []
            places = (
                *ome_place(images[0] if images else None),
                *tiff_places(tiff.pages.first.tags, None),
            )
        yield _checked(path, array, next((of.mpp for of in places if of.mpp), 0.0))


def _zarr_array(found: Any) -> tuple[Any, float]:
    """The finest array, and its µm per pixel where OME-Zarr says it."""
    if isinstance(found, zarr.Array):
        return found, 0.0
    attributes = dict(found.attrs)
    (scales,) = attributes.get("ome", attributes)["multiscales"]
    first = scales["datasets"][0]
    last_axis = scales["axes"][-1]
    unit = UM_PER_UNIT.get(last_axis.get("unit", "")) if isinstance(last_axis, dict) else None
    sides = [
        step["scale"][-1]
        for of in (first, scales)
        for step in of.get("coordinateTransformations", ())
        if step["type"] == "scale"
    ]
    return found[first["path"]], float(np.prod(sides)) * unit if unit and sides else 0.0


def _checked(path: Path, array: Any, mpp: float) -> LabelImage:
    shape = tuple(n for n in array.shape if n != 1)
    if len(shape) != 2 or np.dtype(array.dtype).kind not in "iu":
        raise SlideError(
            f"{path}: expected a label image, one whole number per pixel; found {array.dtype} "
            f"{tuple(array.shape)}; give the labels, not a picture of them"
        )
    return LabelImage(path, array, mpp)


def _scale(image: LabelImage, lattice: Lattice, mpp: float) -> float:
    """Pixels of the image per full-resolution pixel."""
    height, width = _size(image)
    if mpp or image.mpp:
        scale = lattice.mpp / (mpp or image.mpp)
        how = f"{mpp or image.mpp:.4g} µm per pixel, {'as given' if mpp else 'by its metadata'}"
    elif lattice.size_px is not None:
        scale = width / lattice.size_px[0]
        how = f"the slide's {lattice.size_px[0]} × {lattice.size_px[1]} px"
    else:
        scale, how = 1.0, "full resolution, as it does not say its µm per pixel"
    remedy = (
        "give its µm per pixel, in its metadata or with --mpp of vst cells, or the label image of "
        "this slide"
    )
    if lattice.size_px is not None:
        expected = [scale * n for n in lattice.size_px]
        if any(
            abs(a - b) > max(2, _FITS * b) for a, b in zip((width, height), expected, strict=True)
        ):
            raise SlideError(
                f"{image.path}: expected {expected[0]:.0f} × {expected[1]:.0f} px by {how}; found "
                f"{width} × {height}; {remedy}"
            )
    row, col = np.nonzero(lattice.tissue)
    step = max(1, len(row) // 10_000)
    xy = scale * lattice.to_px(np.stack([col[::step], row[::step]], axis=1).astype(np.float64))
    shown = ((xy >= 0) & (xy < [width, height])).all(axis=1).mean()
    if shown < _LEAST_ON_IMAGE:
        raise SlideError(
            f"{image.path}: expected the tissue of {lattice.name} on it, by {how}; its "
            f"{width} × {height} px hold {shown:.0%}; {remedy}"
        )
    return scale


def _size(image: LabelImage) -> tuple[int, int]:
    height, width = (n for n in image.pixels.shape if n != 1)
    return height, width


def _sampled(image: LabelImage, lattice: Lattice, scale: float) -> tuple[Array, Array]:
    """Labels on the lattice numbered from 1, and the image's values in that order."""
    height, width = _size(image)
    found = np.zeros(lattice.shape, np.int64)
    rows, cols = lattice.shape
    for top in range(0, rows, BLOCK_BINS):
        for left in range(0, cols, BLOCK_BINS):
            row, col = np.mgrid[
                top : min(top + BLOCK_BINS, rows), left : min(left + BLOCK_BINS, cols)
            ]
            centres = np.stack([col.ravel(), row.ravel()], axis=1).astype(np.float64)
            x, y = np.floor(scale * lattice.to_px(centres)).astype(np.int64).T
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            if not inside.any():
                continue
            x, y = x[inside], y[inside]
            x0, y0 = int(x.min()), int(y.min())
            with reading(image.path, "a label image"):
                region = _region(
                    image.pixels, slice(y0, int(y.max()) + 1), slice(x0, int(x.max()) + 1)
                )
            values = np.zeros(row.size, np.int64)
            values[inside] = region[y - y0, x - x0]
            found[row, col] = values.reshape(row.shape)
    if found.min() < 0:
        raise SlideError(
            f"{image.path}: expected labels of 0 or more; found {found.min()}; write it anew with "
            "whole numbers from 0 on"
        )
    values, number = np.unique(found, return_inverse=True)
    labels = number.reshape(found.shape).astype(np.int32)
    return (labels, values[1:]) if values[0] == 0 else (labels + 1, values)


def _region(pixels: Any, rows: slice, cols: slice) -> Array:
    """A rectangle of an array that may have further axes of one."""
    wanted = iter((rows, cols))
    index = tuple(0 if n == 1 else next(wanted) for n in pixels.shape)
    return np.asarray(pixels[index]).astype(np.int64)
