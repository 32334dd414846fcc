"""How image files are read: one right answer for each way in which files mislead readers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from he_picture import he_picture
from PIL import Image, ImageOps

from virchow_st.errors import SlideError
from virchow_st.slide.image import SlideImage

TILED = {"tile": (128, 128), "compression": "lzw"}
RGB = {**TILED, "photometric": "rgb"}


@pytest.fixture(scope="module")
def he() -> np.ndarray:
    return he_picture(400, 512)


def read(path: Path) -> tuple[np.ndarray, SlideImage]:
    with SlideImage.open(path) as image:
        return image.read_region(0, 0, image.width, image.height)[0], image


def refused(path: Path) -> str:
    with pytest.raises(SlideError) as e:
        SlideImage.open(path)
    line = str(e.value)
    assert line.startswith(f"{path}: expected")
    assert "\n" not in line
    return line


# --- formats whose own file is an index or a thumbnail --------------------------------------------


def test_the_thumbnail_of_a_mirax_slide_is_not_read(he: np.ndarray, tmp_path: Path) -> None:
    """With its folder OpenSlide knows it and says what is wrong; without, its name tells."""
    cv2.imwrite(str(tmp_path / "a.jpg"), he)
    path = (tmp_path / "a.jpg").rename(tmp_path / "a.mrxs")
    assert "copy the whole folder a beside it" in refused(path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Slidedat.ini").write_text("[GENERAL]\n")
    assert openslide.OpenSlide.detect_format(str(path)) == "mirax"
    assert "MIRAX" in refused(path)


@pytest.mark.parametrize("name", ["a.vsi", "a.czi", "a.ndpis", "a.ets", "a.isyntax", "a.dcm"])
def test_indices_are_refused_with_the_way_out(he: np.ndarray, tmp_path: Path, name: str) -> None:
    """Tiled, so that OpenSlide takes them for plain TIFFs."""
    path = tmp_path / name
    tifffile.imwrite(tmp_path / "a.tif", he, **RGB)
    (tmp_path / "a.tif").rename(path)
    line = refused(path)
    assert any(way in line for way in ("QuPath", "give ", "export it"))


def test_an_olympus_overview_under_another_name_is_known_by_its_folder(
    he: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a[1].tif"
    tifffile.imwrite(path, he, **RGB)
    np.testing.assert_array_equal(read(path)[0], he)
    (tmp_path / "_a[1]_" / "stack1").mkdir(parents=True)
    (tmp_path / "_a[1]_" / "stack1" / "frame_t.ets").write_bytes(b"\0")
    assert "Olympus" in refused(path)


def test_openslide_is_asked_before_the_first_bytes(he: np.ndarray, tmp_path: Path) -> None:
    """A Hamamatsu index is a text; its pixels are in a JPEG with restart markers."""
    restart = [cv2.IMWRITE_JPEG_RST_INTERVAL, 4, cv2.IMWRITE_JPEG_QUALITY, 95]
    restart += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    for name, picture in (("full", he), ("map", cv2.resize(he, (64, 50)))):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), picture[..., ::-1], restart)
    (tmp_path / "a.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\n"
        "ImageFile=full.jpg\nMapFile=map.jpg\nPhysicalWidth=256000\nPhysicalHeight=200000\n"
    )
    rgb, image = read(tmp_path / "a.vms")
    assert image.backend == "openslide"
    assert image.choice.format == "Hamamatsu"
    assert np.abs(rgb.astype(int) - he).mean() < 6
    assert image.choice.mpp_places[0].mpp == pytest.approx(0.5)
    (tmp_path / "full.jpg").unlink()
    assert "copy all files that it names" in refused(tmp_path / "a.vms")


def test_a_folder_without_dicom_files_is_refused(tmp_path: Path) -> None:
    assert "directory" in refused(tmp_path)
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(SlideError, match=r"a\.dcm: expected .*whole-slide series"):
        SlideImage.open(tmp_path)


# --- which image, which plane ---------------------------------------------------------------------


@pytest.mark.parametrize("slide_first", [False, True])
def test_the_largest_image_in_rgb_is_the_slide(
    he: np.ndarray, tmp_path: Path, slide_first: bool
) -> None:
    macro, path = np.full((100, 120, 3), 200, np.uint8), tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for name in ("slide", "macro") if slide_first else ("macro", "slide"):
            pixels = he if name == "slide" else macro
            tiff.write(pixels, metadata={"axes": "YXS", "Name": name}, **RGB)
    rgb, image = read(path)
    np.testing.assert_array_equal(rgb, he)
    assert (
        image.choice.series == f"image {1 if slide_first else 2} of 2 (slide), the largest in RGB"
    )
    assert not image.choice.warnings


def test_a_second_large_image_is_told_of(he: np.ndarray, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        for pixels in (he[:300], he):
            tiff.write(pixels, metadata={"axes": "YXS"}, **RGB)
    rgb, image = read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(rgb, he)
    assert "image 1 of the file, 512×300 px, is left out" in image.choice.warnings[0]


def test_a_fluorescence_scan_with_an_rgb_thumbnail_holds_no_slide(
    he: np.ndarray, tmp_path: Path
) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        tiff.write(he[::4, ::4], metadata={"axes": "YXS", "Name": "label"}, **RGB)
        planes = np.moveaxis(he, 2, 0).copy()
        names = {"axes": "CYX", "Channel": {"Name": ["DAPI", "CD3", "CK"]}}
        tiff.write(planes, metadata=names, photometric="minisblack", **TILED)
    assert "channels DAPI, CD3, CK" in refused(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("ome", [True, False])
def test_a_stack_is_read_at_one_plane(he: np.ndarray, tmp_path: Path, ome: bool) -> None:
    """The middle of a focal stack; the first of pages whose meaning is not known."""
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    stack = np.stack([255 - he, he, he // 2]) if ome else np.stack([he, 255 - he, he // 2])
    metadata = {"axes": "ZYXS"} if ome else None
    tifffile.imwrite(path, stack, metadata=metadata, **RGB)
    rgb, image = read(path)
    np.testing.assert_array_equal(rgb, he)
    assert image.choice.plane == f"plane {'Z 2' if ome else 'I 1'} of 3"
    assert "stack" in image.choice.warnings[0]


def test_channels_named_as_colours_are_read_in_their_order(he: np.ndarray, tmp_path: Path) -> None:
    """Blue first, and a fourth channel that is no colour."""
    planes = np.stack([he[..., 2], he[..., 0], he[..., 1], 255 - he[..., 0]])
    metadata = {"axes": "CYX", "Channel": {"Name": ["Blue", "red", "G", "mask"]}}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, planes, photometric="minisblack", metadata=metadata, **TILED)
    rgb, image = read(path)
    np.testing.assert_array_equal(rgb, he)
    assert image.choice.warnings == ("the channels mask are left out",)


@pytest.mark.parametrize("names", [["DAPI", "CD3", "CK"], None])
def test_channels_that_are_no_colours_are_refused(
    he: np.ndarray, tmp_path: Path, names: list[str] | None
) -> None:
    metadata = {"axes": "CYX"} | ({"Channel": {"Name": names}} if names else {})
    path = tmp_path / "a.ome.tif"
    planes = np.moveaxis(he, 2, 0).copy()
    tifffile.imwrite(path, planes, photometric="minisblack", metadata=metadata, **TILED)
    assert "3 channels in planes, not named R, G and B" in refused(path)


# --- samples, bits, colour ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unspecified", "unassalpha", "assocalpha"])
@pytest.mark.parametrize("value", [0, 1, 120, 200])
def test_a_fourth_sample_that_hides_everything_is_left_out(
    he: np.ndarray, tmp_path: Path, kind: str, value: int
) -> None:
    fourth = np.full(he.shape[:2], value, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([he, fourth]), extrasamples=[kind], **RGB)
    rgb, image = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(rgb, he)
    assert len(image.choice.warnings) == 1
    assert "fourth sample" in image.choice.warnings[0]
    assert "left out" in image.choice.describe()


@pytest.mark.parametrize("premultiplied", [False, True])
def test_transparency_drops_onto_white_either_way(
    he: np.ndarray, tmp_path: Path, premultiplied: bool
) -> None:
    alpha = np.full(he.shape[:2], 255, np.uint8)
    alpha[:100], alpha[100:200] = 0, 128
    stored = np.rint(he * (alpha[..., None] / 255)).astype(np.uint8) if premultiplied else he
    kind = "assocalpha" if premultiplied else "unassalpha"
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([stored, alpha]), extrasamples=[kind], **RGB)
    rgb, image = read(tmp_path / "a.tif")
    expected = 255 + (he - 255.0) * (alpha[..., None] / 255)
    assert np.abs(rgb - expected).max() < 1.1
    assert not image.choice.warnings
    with SlideImage.open(tmp_path / "a.tif") as image:
        there = image.read_region(0, 0, 512, 400)[1]
    np.testing.assert_array_equal(there, alpha > 0)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("how", ["tif", "big endian", "plain", "planes", "png"])
def test_deep_pixels_are_scaled_by_the_bits_they_use(
    he: np.ndarray, tmp_path: Path, bits: int, how: str
) -> None:
    he = he.copy()
    he[0, 0] = 255
    deep = np.rint(he / 255.0 * ((1 << bits) - 1)).astype(np.uint16)
    path = tmp_path / ("a.png" if how == "png" else "a.tif")
    if how == "png":
        cv2.imwrite(str(path), deep[..., ::-1])
    elif how == "plain":
        tifffile.imwrite(path, deep, photometric="rgb", byteorder=">")
    elif how == "planes":
        planes = np.moveaxis(deep, 2, 0).copy()
        tifffile.imwrite(path, planes, planarconfig="separate", **RGB)
    else:
        tifffile.imwrite(path, deep, byteorder=">" if how == "big endian" else "<", **RGB)
    rgb, image = read(path)
    np.testing.assert_array_equal(rgb, he)
    assert image.choice.bits == bits


def test_ycbcr_that_is_no_jpeg_is_not_read_as_rgb(he: np.ndarray, tmp_path: Path) -> None:
    ycbcr = cv2.cvtColor(he, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    how = {"photometric": "ycbcr", "subsampling": (1, 1), "compression": "deflate"}
    tifffile.imwrite(tmp_path / "strips.tif", ycbcr, rowsperstrip=64, **how)
    assert "YCbCr" in refused(tmp_path / "strips.tif")


def test_a_jpeg_whose_header_is_huge_is_one_line(tmp_path: Path) -> None:
    content = bytearray(cv2.imencode(".jpg", np.full((64, 64, 3), 200, np.uint8))[1].tobytes())
    at = content.find(b"\xff\xc0")
    content[at + 5 : at + 9] = (40_000).to_bytes(2, "big") * 2
    (tmp_path / "a.jpg").write_bytes(content)
    line = refused(tmp_path / "a.jpg")
    assert "40000×40000 px" in line
    assert "--Q 89" in line


# --- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("how", ["tif", "pyramid"])
def test_orientation_is_what_pillow_shows(
    he: np.ndarray, tmp_path: Path, tag: int, how: str
) -> None:
    """Levels are used where they lie exactly."""
    path, tags = tmp_path / "a.tif", [(274, "H", 1, tag, True)]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(he, extratags=tags, **RGB)
        if how == "pyramid":
            half = cv2.resize(he, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            tiff.write(half, subfiletype=1, **RGB)
    picture = Image.fromarray(he)
    picture.getexif()[274] = tag
    expected = np.asarray(ImageOps.exif_transpose(picture))
    with SlideImage.open(path) as image:
        assert image.choice.orientation == tag
        np.testing.assert_array_equal(image.read_region(0, 0, 512, 400)[0], he)
        seen = image.oriented()
        assert (seen.height, seen.width) == expected.shape[:2]
        np.testing.assert_array_equal(seen.read_region(0, 0, seen.width, seen.height)[0], expected)
        rgb, _, scale = seen.read_region(64, 32, 100, 60, 2.0)
        assert scale == 2
        means = expected[32:92, 64:164].reshape(30, 2, 50, 2, 3).mean(axis=(1, 3))
        assert np.abs(rgb - means).max() <= 1.01
