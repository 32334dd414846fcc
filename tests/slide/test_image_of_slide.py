"""Whether an image can be the one that a slide's positions refer to."""

import numpy as np
import pytest
import tifffile
from tiny_slide import TinySlide, draw_markers, write_image
from visium_folder import assert_one_line, shared, square

from virchow_st.errors import SlideError
from virchow_st.slide.image import SlideImage
from virchow_st.slide.visium_hd import VisiumHDSlide

IMAGES = {"C2": "tissue_image.btf", "C5": "tissue_image.tif"}


@pytest.mark.parametrize("name", ["C2", "C5"])
def test_shared_images_fit_only_their_slide(name):
    slide = VisiumHDSlide.open(shared("slides", name))
    with SlideImage.open(shared("slides", name, IMAGES[name])) as image:
        slide.check_image(image)
    other = {"C2": "C5", "C5": "C2"}[name]
    with SlideImage.open(shared("slides", other, IMAGES[other])) as image:
        with pytest.raises(SlideError, match=r"expected about .*tissue_hires_image.png") as e:
            slide.check_image(image)
        assert_one_line(e)
    with pytest.raises(SlideError, match="not cytassist_image"):
        SlideImage.open(slide.folder / "spatial" / "cytassist_image.tiff")
    with SlideImage.open(slide.folder / "spatial" / "tissue_lowres_image.png") as image:  # noqa: SIM117
        with pytest.raises(SlideError, match="as small as a CytAssist"):
            slide.check_image(image)


def test_check_image(tmp_path):
    truth = TinySlide(scalefactors={"bin_size_um": 2.0, "tissue_hires_scalef": 0.25})
    outs = truth.write(tmp_path / "outs")
    drawn = draw_markers(truth.homography, truth.image_size, [(70, 70)])
    slide = VisiumHDSlide.open(outs)

    def check(pixels):
        path = tmp_path / "image.tif"
        tifffile.imwrite(path, pixels, photometric="rgb")
        with SlideImage.open(path) as image:
            slide.check_image(image)

    check(drawn)  # without the hires image: do the bins lie on it?
    with pytest.raises(SlideError, match="tissue bins to lie on the image"):
        check(drawn[:200, :200])
    write_image(square(outs) / "spatial" / "tissue_hires_image.tif", drawn[::4, ::4], "png")
    slide = VisiumHDSlide.open(outs)
    check(drawn)
    check(drawn[:-5])  # within 1 %
    with pytest.raises(SlideError, match="rotated by 90°"):
        check(np.rot90(drawn))
    with pytest.raises(SlideError, match=r"size of .*tissue_hires_image\.png"):
        check(drawn[:, :-20])


def test_tissue_beside_an_image_of_the_right_size_is_refused(tmp_path):
    """It was extracted, as patches without a pixel of the slide."""
    truth = TinySlide(scalefactors={"bin_size_um": 2.0, "tissue_hires_scalef": 0.25})
    image_size = truth.image_size
    beside = np.array([[1.0, 0, 5000], [0, 1, 5000], [0, 0, 1]])
    truth.homography = type(truth.homography)(beside @ truth.homography.matrix)
    outs = truth.write(tmp_path / "outs")
    pixels = draw_markers(truth.homography, image_size, [])
    write_image(square(outs) / "spatial" / "tissue_hires_image.tif", pixels[::4, ::4], "png")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels, photometric="rgb")
    with SlideImage.open(path) as image, pytest.raises(SlideError, match="on the image; 0% do"):
        VisiumHDSlide.open(outs).check_image(image)


def test_coarse_scan_is_refused(tmp_path):
    truth = TinySlide(rows=140, cols=140)
    matrix = truth.homography.matrix.copy()
    matrix[:2] /= 4  # 1.3 µm/px
    truth.homography = type(truth.homography)(matrix)
    outs = truth.write(tmp_path / "outs")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.zeros((300, 300, 3), np.uint8), photometric="rgb")
    with SlideImage.open(path) as image, pytest.raises(SlideError, match="or finer") as e:
        VisiumHDSlide.open(outs).check_image(image)
    assert_one_line(e)
