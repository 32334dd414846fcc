"""Tokens of half the side: a patch is encoded as 2 × 2 images, each independently."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from virchow_st.models.encoders.base import Encoder, Tokens
from virchow_st.types import UInt8Array


class Quartered(Encoder):
    """Encodes each quarter of a patch at the image size of a whole patch.

    The grid has twice as many tokens along a side. Each token sees twice the resolution, but no
    context beyond its own quarter. ``cls`` is the mean over the four quarters.

    Args:
        encoder: Encoder of whole patches.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.whole = encoder
        self.name, self.dim, self.layout = encoder.name, encoder.dim, encoder.layout
        self.weights_hash, self.licence = encoder.weights_hash, encoder.licence
        self.precision, self.batch = encoder.precision, max(1, encoder.batch // 4)
        self.grid, self.image_px = 2 * encoder.grid, 2 * encoder.image_px

    def encode(self, images: UInt8Array) -> Tokens:
        """Encode RGB images (B, image_px, image_px, 3) uint8."""
        return self.launch(images)()

    def launch(self, images: UInt8Array) -> Callable[[], Tokens]:
        """Start to encode; see `Encoder.launch`."""
        self._check_images(images)
        n, side = len(images), self.whole.image_px
        quarters = images.reshape(n, 2, side, 2, side, 3).swapaxes(2, 3)
        waited_for = self.whole.launch(quarters.reshape(4 * n, side, side, 3))

        def join() -> Tokens:
            actual = waited_for()
            T, D = self.whole.grid, self.dim
            tokens = actual.tokens.reshape(n, 2, 2, T, T, D).swapaxes(2, 3)
            cls = actual.cls.reshape(n, 4, D).mean(axis=1, dtype=np.float32)
            return Tokens(tokens.reshape(n, 2 * T, 2 * T, D), cls.astype(actual.cls.dtype))

        return join
