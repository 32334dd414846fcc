"""Renders the images of patches on several threads, ahead of their use."""

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
from virchow_st.slide.restain import Restain
from virchow_st.types import STORED_IMAGE_PX, BoolArray, UInt8Array

_MOST_THREADS = 16  # a tenth of the time holds Python's lock, so more threads would only wait


@dataclass(frozen=True)
class PatchImages:
    """The images of a patch for the store and for the encoder.

    Attributes:
        stored: (256, 256, 3) uint8 RGB, 1 µm/px.
        encoded: (S, S, 3) uint8 RGB at the encoder's input size S.
        validity_mask: (128, 128) bool, True for bins that lie wholly on the slide image.
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
    restain: Restain | None = None,
) -> Iterator[PatchImages]:
    """Render patches in order, on threads; closing the generator ends the threads early.

    Args:
        image: the slide image, from which all threads read.
        homography: from bins to the image's full-resolution px.
        patches: the patches.
        image_px: side of the encoder's images, px.
        first: index of the patch to start with.
        n_ahead: number of patches that may be rendered before they are used; about 0.5 MB each.
        restain: changes the strength of the stains; None to leave them.

    Yields:
        The images of each patch.

    Raises:
        SlideError: the image file is damaged.
    """

    def render(index: int) -> PatchImages:
        row0, col0 = int(patches.row0[index]), int(patches.col0[index])
        (stored, on_image), (encoded, _) = render_patch(
            image, homography, row0, col0, (STORED_IMAGE_PX, image_px)
        )
        if restain is not None:
            stored, encoded = restain(stored), restain(encoded)
        return PatchImages(stored, encoded, bin_validity(on_image))

    with _opencv_alone(), ThreadPoolExecutor(thread_count(), "render") as pool:
        try:
            for _, rendered in ahead(pool, range(first, len(patches)), render, n_ahead):
                yield rendered
        finally:
            pool.shutdown(cancel_futures=True)


def thread_count() -> int:
    """Number of rendering threads: one per core available to this rank."""
    cores = core_count() // Processes.here().local_size
    return max(1, min(_MOST_THREADS, cores))


@contextmanager
def _opencv_alone() -> Iterator[None]:
    """Keep OpenCV to one thread per call, as calls already run on all cores in parallel."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
