"""Pyramids with damaged or empty tiles in reduced levels: a finer level is read, with a warning."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from he_picture import he_picture
from tiny_slide import halves

from virchow_st.slide.foreign import CONVERT
from virchow_st.slide.image import SlideImage

APERIO = "Aperio Image Library v11.2.1\r\n1024x1024 |AppMag = 20|MPP = 0.5"
TILE = 128


@pytest.fixture(scope="module")
def he() -> np.ndarray:
    return cv2.GaussianBlur(he_picture(1024, 1024), (0, 0), 2)


def write(path: Path, he: np.ndarray, spoil: dict[int, str], where: int = 2) -> Path:
    """A pyramid as Aperio writes it; a tile of some reduced levels is left out or blank."""

    def tiles(level: np.ndarray, fault: str | None):
        for at, (y, x) in enumerate(
            (y, x) for y in range(0, len(level), TILE) for x in range(0, len(level), TILE)
        ):
            tile = np.ascontiguousarray(level[y : y + TILE, x : x + TILE])
            if at == where and fault == "empty":
                yield None
            elif at == where and fault == "blank":
                yield np.zeros_like(tile)
            else:
                yield tile

    how = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    how |= {"compressionargs": {"level": 95}, "dtype": np.uint8}
    with tifffile.TiffWriter(path) as tiff:
        for n, factor in enumerate((1, 2, 4)):
            level = he if factor == 1 else halves(he, factor)
            more = {"description": APERIO} if n == 0 else {}
            tiff.write(tiles(level, spoil.get(n)), shape=level.shape, **how, **more)
            if n == 0:  # Aperio puts a thumbnail in strips next
                tiff.write(halves(he, 8), photometric="rgb", compression="jpeg", metadata=None)
    return path


@pytest.mark.parametrize("fault", ["empty", "blank"])
@pytest.mark.parametrize(("spoiled", "kept"), [((1,), [1, 4]), ((2,), [1, 2]), ((1, 2), [1])])
def test_the_finest_whole_level_is_used(
    he: np.ndarray, tmp_path: Path, fault: str, spoiled: tuple[int, ...], kept: list[int]
) -> None:
    path = write(tmp_path / "a.svs", he, dict.fromkeys(spoiled, fault))
    with SlideImage.open(path) as image:
        assert image.level_factors() == kept
        assert len(image.choice.warnings) == len(spoiled)
        expected = {"empty": "tiles without bytes", "blank": "blank tiles"}[fault]
        assert all(expected in warning for warning in image.choice.warnings)
        rgb, there, scale = image.read_region(0, 0, 1024, 1024, 4.0)
    assert scale == 4
    assert there.all()
    assert np.abs(rgb.astype(int) - halves(he, 4)).mean() < 4


def test_whole_pyramids_keep_all_levels(he: np.ndarray, tmp_path: Path) -> None:
    with SlideImage.open(write(tmp_path / "a.svs", he, {})) as image:
        assert image.level_factors() == [1, 2, 4]
        assert not image.choice.warnings


def test_what_was_not_scanned_is_empty_in_every_level(he: np.ndarray, tmp_path: Path) -> None:
    """Tiles that the finest level lacks too are no damage."""

    def tiles(level: np.ndarray, hole: int):
        for y in range(0, len(level), TILE):
            for x in range(0, len(level), TILE):
                inside = y >= hole and x >= hole
                yield None if inside else np.ascontiguousarray(level[y : y + TILE, x : x + TILE])

    how = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "jpeg", "dtype": np.uint8}
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for factor in (1, 2, 4):
            level = he if factor == 1 else halves(he, factor)
            tiff.write(
                tiles(level, 512 // factor), shape=level.shape, subfiletype=int(factor > 1), **how
            )
    with SlideImage.open(tmp_path / "a.tif") as image:
        assert image.level_factors() == [1, 2, 4]
        assert not image.choice.warnings
        _, there, _ = image.read_region(0, 0, 1024, 1024, 4.0)
    assert not there[128:, 128:].any()
    assert there[:128].all()


def test_a_tile_that_cannot_be_decoded_is_read_from_a_finer_level(
    he: np.ndarray, tmp_path: Path
) -> None:
    """Where it is alone; elsewhere the reduced level is used, in any order of reading."""
    path = write(tmp_path / "a.svs", he, {})
    with tifffile.TiffFile(path) as tiff:
        page = tiff.series[0].levels[2].pages[0]
        at, n = page.dataoffsets[1], page.databytecounts[1]
    content = bytearray(path.read_bytes())
    content[at : at + n] = os.urandom(n)
    path.write_bytes(content)
    with SlideImage.open(path) as image:
        if image.level_factors() == [1, 2, 4]:
            whole = image.read_region(0, 0, 1024, 1024, 4.0)[0]
            again = image.read_region(0, 0, 1024, 1024, 4.0)[0]
            np.testing.assert_array_equal(whole, again)
            (warning,) = image.read_warnings()
        else:  # it was among the tiles that opening looks at
            whole = image.read_region(0, 0, 1024, 1024, 4.0)[0]
            (warning,) = image.choice.warnings
    assert "reduced level of 256×256 px is damaged" in warning
    assert np.abs(whole.astype(int) - halves(he, 4)).mean() < 4


@pytest.mark.parametrize("kind", ["8 bit", "16 bit", "ImageJ", "OME", "orientation"])
def test_the_conversion_that_messages_recommend(he: np.ndarray, tmp_path: Path, kind: str) -> None:
    if shutil.which("vips") is None:
        pytest.skip("libvips (the command vips) is not installed")
    path, out = tmp_path / "in.tif", tmp_path / "out.tif"
    pixels = he.astype(np.uint16) * 257 if kind == "16 bit" else he
    how = {"photometric": "rgb", "rowsperstrip": 64}
    if kind == "ImageJ":
        how = {"imagej": True, "resolution": (2.0, 2.0), "metadata": {"unit": "um"}}
    elif kind == "OME":
        how |= {
            "ome": True,
            "metadata": {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
        }
    elif kind == "orientation":
        how |= {"extratags": [(274, "H", 1, 3, True)]}
    tifffile.imwrite(path, pixels, **how)
    command = CONVERT.replace("IMAGE", str(path)).replace("OUT.tif", str(out)).split()
    subprocess.run(command, check=True, capture_output=True)
    with SlideImage.open(out) as image:
        assert len(image.level_factors()) >= 3
        rgb, _, _ = image.read_region(0, 0, 1024, 1024)
        assert image.choice.orientation == (3 if kind == "orientation" else 1)
        sound = [place.mpp for place in image.choice.mpp_places if place.mpp]
        assert sound == ([pytest.approx(0.5)] if kind == "OME" else [])
    assert np.abs(rgb.astype(int) - he).mean() < 4
