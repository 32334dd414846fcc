"""Nuclei as connected dark pixels of the red channel, in which haematoxylin is dark."""

import numpy as np
from scipy import ndimage

from virchow_st import Segmenter


class Blobs(Segmenter):
    """Connected pixels darker than the threshold."""

    def __init__(self):
        self.threshold = 128.0

    def prepare(self, images):
        """Put the threshold between the darkest pixels and the middle of the slide's."""
        red = np.stack(images)[..., 0]
        self.threshold = 0.5 * (float(np.percentile(red, 2)) + float(np.median(red)))

    def segment(self, image):
        """Label the dark pixels, without pieces below 12 µm²."""
        red = ndimage.gaussian_filter(image[..., 0].astype(np.float32), 0.5)
        labels, _ = ndimage.label(red < self.threshold)
        small = np.bincount(labels.ravel()) < 48
        labels[small[labels]] = 0
        return labels
