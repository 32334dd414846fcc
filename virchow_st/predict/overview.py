"""The H&E image of the output: a pyramid from about 1 µm/px, in one pass over the file."""

from __future__ import annotations

from virchow_st.field.he_image import CHUNK_PX, Picture, add_picture
from virchow_st.field.ngff import Folder
from virchow_st.predict.image import OVERVIEW_LEVEL, picture_factor
from virchow_st.slide.image import SlideImage


def write_picture(folder: Folder, image: SlideImage, mpp: float) -> Picture:
    """Write ``images/he`` in bands, then each coarser level from the one before.

    Args:
        folder: the Zarr folder to write to.
        image: the slide.
        mpp: µm per pixel of the slide.

    Raises:
        SlideError: the image file is damaged.
    """
    factor = picture_factor(image, mpp)
    width, height = -(-image.width // factor), -(-image.height // factor)
    picture = add_picture(folder, height, width, factor * mpp, OVERVIEW_LEVEL + 1)
    for top in range(0, height, CHUNK_PX):
        rows = min(CHUNK_PX, height - top)
        rgb, _, _ = image.read_region(0, top * factor, image.width, rows * factor, factor)
        picture.write(top, rgb)
    picture.fill_coarser()
    return picture
