"""µm per pixel, from every place in a file that may hold it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from virchow_st.errors import SlideError
from virchow_st.slide.image import SlideImage
from virchow_st.slide.mpp import MppPlace, describe_mpp, mpp_warning, slide_mpp

PIXELS = np.full((300, 300, 3), 200, np.uint8)
TILED = {"photometric": "rgb", "tile": (128, 128)}


def told(path: Path) -> tuple[float, str]:
    with SlideImage.open(path) as image:
        places = image.choice.mpp_places
        return slide_mpp(path, places), describe_mpp(places)


@pytest.mark.parametrize(
    ("size", "unit"),
    [
        (0.25, "µm"),
        (0.25, None),
        (250.0, "nm"),
        (2.5e-4, "mm"),
        (2500.0, "Å"),
        (0.25 / 25.4, "thou"),
    ],
)
def test_ome_xml_in_any_unit(tmp_path: Path, size: float, unit: str | None) -> None:
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    if unit:
        metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    path = tmp_path / "a.ome.tif"
    # The resolution of a printer beside it counts as none.
    tifffile.imwrite(
        path, PIXELS, metadata=metadata, resolution=(72, 72), resolutionunit=2, **TILED
    )
    assert told(path) == (pytest.approx(0.25), "by OME-XML")


def test_ome_xml_of_the_image_that_is_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        for pixels, um in ((PIXELS[:60, :60], 8.0), (PIXELS, 0.5)):
            size = {"PhysicalSizeX": um, "PhysicalSizeY": um}
            tiff.write(pixels, metadata={"axes": "YXS", **size}, **TILED)
    assert told(tmp_path / "a.ome.tif")[0] == pytest.approx(0.5)


@pytest.mark.parametrize("unit", ["um", "\\u00B5m", "micron", "µm"])
def test_imagej(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "a.tif"
    metadata = {"unit": unit.encode("ascii", "ignore").decode() if unit == "µm" else unit}
    if unit == "µm":
        metadata = {"unit": "um"}
    per_unit = (1 / 0.25, 1 / 0.25)
    tifffile.imwrite(path, PIXELS, imagej=True, resolution=per_unit, metadata=metadata)
    assert told(path) == (pytest.approx(0.25, rel=1e-4), "by ImageJ")


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(("unit", "per_unit"), [("CENTIMETER", 20_000), ("INCH", 50_800)])
def test_the_tiffs_resolution(tmp_path: Path, tiled: bool, unit: str, per_unit: int) -> None:
    path = tmp_path / "a.tif"
    how = {"tile": (64, 64)} if tiled else {"rowsperstrip": 16}
    tifffile.imwrite(
        path, PIXELS, photometric="rgb", resolution=(per_unit, per_unit), resolutionunit=unit, **how
    )
    assert told(path)[0] == pytest.approx(0.5)


def test_aperios_description_where_openslide_does_not_read_it(tmp_path: Path) -> None:
    made = "Aperio Image Library v11.2.1\r\n300x300 |AppMag = 40|MPP = 0.2525"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", description=made, metadata=None)
    assert told(path) == (pytest.approx(0.2525), "by Aperio's description")


def test_a_pngs_resolution(tmp_path: Path) -> None:
    from PIL import Image

    path, per_inch = tmp_path / "a.png", 25_400 / 0.5
    Image.fromarray(PIXELS).save(path, dpi=(per_inch, per_inch))
    assert told(path)[0] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("x", "y"),
    [(0, 0), (-0.25, -0.25), (353, 353), (float("nan"), 0.25), (0.25, 0.5), (1e-4, 1e-4)],
)
def test_nonsense_is_refused_and_shown(x: float, y: float) -> None:
    place = MppPlace("OME-XML", x, y)
    assert place.mpp is None
    with pytest.raises(SlideError, match=r"OME-XML: .*--mpp"):
        slide_mpp("a.tif", (place,))
    assert slide_mpp("a.tif", (place,), 0.25) == 0.25


def test_a_disagreement_is_told() -> None:
    places = (MppPlace("OME-XML", 0.25, 0.25), MppPlace("the TIFF's resolution", 0.5, 0.5))
    assert "OME-XML gives 0.25 µm per pixel, the TIFF's resolution 0.5" in str(mpp_warning(places))
    assert "--mpp gives 0.5" in str(mpp_warning(places[:1], 0.5))
    assert mpp_warning(places[:1], 0.252) is None
    assert mpp_warning(()) is None


@pytest.mark.parametrize("how", ["tif without", "tif at 72 dpi", "png", "jpg"])
def test_an_image_that_says_none(tmp_path: Path, how: str) -> None:
    path = tmp_path / f"a.{how[:3]}"
    if path.suffix == ".tif":
        more = {"resolution": (72, 72), "resolutionunit": "INCH"} if "72" in how else {}
        tifffile.imwrite(path, PIXELS, **TILED, **more)
    else:
        cv2.imwrite(str(path), PIXELS)
    with pytest.raises(SlideError, match=r"expected µm per pixel in the file.*--mpp") as caught:
        told(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("mpp", [0.01, 1.5, 40])
def test_a_resolution_no_microscope_has(mpp: float) -> None:
    with pytest.raises(SlideError, match=f"got {mpp:g}"):
        slide_mpp("a.tif", (), mpp)
