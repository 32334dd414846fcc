"""The segmenter ``nuclei``: dark blobs of haematoxylin, without weights.

It is the classical recipe: haematoxylin by the stain vectors of Ruifrok and Johnston (2001), Otsu's
threshold over the slide, and a watershed on the distance from the edge, which parts nuclei that
touch. It knows no texture and no shape beyond roundness, and parts crowded nuclei badly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from virchow_st.slide.cells.segmenter import TILE_MPP, Segmenter
from virchow_st.types import Array, Float32Array, UInt8Array

_BLUR_PX = 0.25 / TILE_MPP  # of 0.25 µm: more joins neighbours
_APART_PX = round(2.5 / TILE_MPP)  # between the middles of two nuclei
_LEAST_PX = 12.0 / TILE_MPP**2  # of 12 µm²: smaller pieces are debris


class Nuclei(Segmenter):
    """Nuclei by haematoxylin; see above."""

    threshold: float | None = None

    def prepare(self, images: Sequence[UInt8Array]) -> None:
        """Take Otsu's threshold of the haematoxylin over some tiles."""
        values = np.concatenate([_haematoxylin(image).ravel()[::7] for image in images])
        if values.max() > values.min():
            self.threshold = float(threshold_otsu(values))

    def segment(self, image: UInt8Array) -> Array:
        """See `Segmenter.segment`."""
        stain = _haematoxylin(image)
        if self.threshold is None:
            self.prepare([image])
        if self.threshold is None:
            return np.zeros(stain.shape, np.int32)
        dark = ndimage.binary_fill_holes(stain > self.threshold)
        distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(dark), 1.0)
        peaks = peak_local_max(distance, min_distance=_APART_PX, labels=dark.astype(np.int32))
        seeds = np.zeros(stain.shape, np.int32)
        seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        labels: Array = watershed(-distance, seeds, mask=dark)
        small = np.bincount(labels.ravel()) < _LEAST_PX
        labels[small[labels]] = 0
        return labels


def _haematoxylin(image: UInt8Array) -> Float32Array:
    """(H, W) float32 amount of haematoxylin, smoothed."""
    return ndimage.gaussian_filter(rgb2hed(image)[..., 0].astype(np.float32), _BLUR_PX)
