"""Images of patches, read and warped by threads some way ahead of who takes them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import cv2

from virchow_st.runtime.devices import core_count
from virchow_st.runtime.distributed import Processes
from virchow_st.runtime.prefetch import ahead
from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable, bin_validity, render_patch
from virchow_st.types import STORED_IMAGE_PX, BoolArray, UInt8Array

_MOST_THREADS = 16  # more would wait for each other: Python itself runs a tenth of the time


@dataclass(frozen=True)
class PatchImages:
    """A patch as the store and the encoder see it.

    Attributes:
        stored: (256, 256, 3) uint8 RGB, 1 µm/px.
        encoded: (S, S, 3) uint8 RGB, of the encoder's size.
        validity_mask: (128, 128) bool, which bins lie wholly on the slide image.
    """

    stored: UInt8Array
    encoded: UInt8Array
    validity_mask: BoolArray


def render_ahead(
    image: SlideImage,
    homography: Homography,
    patches: PatchTable,
    image_px: int,
    *,
    first: int = 0,
    n_ahead: int = 32,
) -> Iterator[PatchImages]:
    """Render patches in their order; close the generator to end the threads early.

    Args:
        image: the slide image; all threads read from it.
        homography: bins to its full-resolution px.
        patches: where they lie.
        image_px: side of the encoder's images, px.
        first: index of the first wanted.
        n_ahead: patches that may be finished or under way before they are taken; about 0.5 MB each.

    Raises:
        SlideError: the image file is damaged.
    """

    def render(index: int) -> PatchImages:
        row0, col0 = int(patches.row0[index]), int(patches.col0[index])
        (stored, on_image), (encoded, _) = render_patch(
            image, homography, row0, col0, (STORED_IMAGE_PX, image_px)
        )
        return PatchImages(stored, encoded, bin_validity(on_image))

    with _opencv_alone(), ThreadPoolExecutor(thread_count(), "render") as pool:
        try:
            for _, rendered in ahead(pool, range(first, len(patches)), render, n_ahead):
                yield rendered
        finally:
            pool.shutdown(cancel_futures=True)


def thread_count() -> int:
    """Threads that render: a core each, of those that this process and its ranks may use."""
    cores = core_count() // Processes.here().local_size
    return max(1, min(_MOST_THREADS, cores))


@contextmanager
def _opencv_alone() -> Iterator[None]:
    """OpenCV without threads of its own, which would contend with ours for the same cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
