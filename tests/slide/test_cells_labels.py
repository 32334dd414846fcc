"""Label images, and shapes and labels of SpatialData folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
import zarr
from cell_files import (
    brute_labels,
    make_lattice,
    named_labels,
    star_cells,
    to_px,
)

from virchow_st.errors import ConfigError, SlideError
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells


def label_picture(lattice: Lattice, labels: np.ndarray, scale: float) -> np.ndarray:
    """The labels as pixels of an image whose pixels are ``1 / scale`` full-resolution ones."""
    height, width = (round(scale * n) for n in (1200, 2400))
    y, x = np.indices((height, width))
    px = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], 1) / scale
    col, row = np.rint(lattice.to_bins(px)).astype(int).T
    inside = (row >= 0) & (row < labels.shape[0]) & (col >= 0) & (col < labels.shape[1])
    image = np.zeros(height * width, np.uint32)
    image[inside] = labels[row[inside], col[inside]]
    return image.reshape(height, width)


@pytest.mark.parametrize("name", ["mirrored", "turned"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_label_images_in_every_form(tmp_path: Path, name: str, scale: float) -> None:
    lattice = make_lattice(name)
    labels = 3 * brute_labels(lattice, star_cells(lattice, 30))
    image = label_picture(lattice, labels, scale)
    mpp = 0.0 if scale == 1 else lattice.mpp / scale
    plain, tiled, ome = (tmp_path / f"{n}.tif" for n in ("plain", "tiled", "x.ome"))
    tifffile.imwrite(plain, image)
    tifffile.imwrite(tiled, image[None], tile=(256, 256), compression="zlib")
    size = {"PhysicalSizeX": lattice.mpp / scale, "PhysicalSizeY": lattice.mpp / scale}
    tifffile.imwrite(ome, image, metadata={"axes": "YX", **size}, compression="lzw")
    zarr.save(str(tmp_path / "l.zarr"), image)
    sources = {plain: mpp, tiled: mpp, ome: 0.0, tmp_path / "l.zarr": mpp}
    for path, given in sources.items():
        cells = read_cells(path, lattice, mpp=given)
        numbers = np.array([0, *map(int, cells.ids)])
        np.testing.assert_array_equal(numbers[cells.labels], labels)


def test_label_images_that_do_not_fit(tmp_path: Path) -> None:
    lattice = make_lattice()
    image = label_picture(lattice, brute_labels(lattice, star_cells(lattice, 30)), 0.25)
    path = tmp_path / "l.tif"
    tifffile.imwrite(path, image)
    with pytest.raises(SlideError, match=r"600 × 300 px hold \d+%; give its µm per pixel"):
        read_cells(path, lattice)
    sized = Lattice("S", lattice.homography, 8, 16, lattice.tissue, (2400, 1200))
    np.testing.assert_array_equal(  # its size says what it is
        read_cells(path, sized).labels, read_cells(path, lattice, mpp=lattice.mpp * 4).labels
    )
    with pytest.raises(SlideError, match="expected 1200 × 600 px by .* as given; found 600 × 300"):
        read_cells(path, sized, mpp=lattice.mpp * 2)
    tifffile.imwrite(path, np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(SlideError, match="one whole number per pixel; found uint8"):
        read_cells(path, lattice)
    tifffile.imwrite(path, np.zeros((1200, 2400), np.uint8))
    with pytest.raises(SlideError, match="labels above 0 on S; found none"):
        read_cells(path, lattice)


WRITES_SHAPES = """
import sys, geopandas, shapely
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity, Scale

shapes = list(shapely.from_geojson(open(sys.argv[1]).read()).geoms)
names = [f"c{i}" for i in range(len(shapes))]
frame = geopandas.GeoDataFrame({"class": "T"}, geometry=shapes, index=names)
frames = {"s_downscaled_hires": Identity(), "s": Scale([2.0, 2.0], ("x", "y"))}
element = ShapesModel.parse(frame, transformations=frames)
SpatialData(shapes={"cells": element}).write(sys.argv[2] + "/s.zarr")
SpatialData(shapes={"a": element, "b": element}).write(sys.argv[2] + "/two.zarr")
"""


def test_shapes_of_a_spatialdata_folder(tmp_path: Path) -> None:
    pytest.importorskip("spatialdata")
    lattice = make_lattice()
    shapes = star_cells(lattice, 30)
    half = shapely.transform(to_px(lattice, shapes), lambda xy: xy / 2)
    geojson = tmp_path / "half.json"
    geojson.write_text(shapely.to_geojson(shapely.GeometryCollection(list(half))))
    script = [sys.executable, "-W", "ignore", "-c", WRITES_SHAPES, str(geojson), str(tmp_path)]
    subprocess.run(script, check=True)
    for place in tmp_path / "s.zarr", tmp_path / "s.zarr" / "shapes" / "cells":
        cells = read_cells(place, lattice)
        np.testing.assert_array_equal(named_labels(cells), brute_labels(lattice, shapes))
        assert set(cells.classes) == {"T"}
    with pytest.raises(SlideError, match="found shapes/a, shapes/b; give one of them"):
        read_cells(tmp_path / "two.zarr", lattice)
    with pytest.raises(ConfigError, match="holds one kind of outline; leave out --nuclei"):
        read_cells(tmp_path / "s.zarr", lattice, want="nuclei")
