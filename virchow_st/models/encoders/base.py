"""Interface of encoders, and the effect of image rotations and flips on tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.kernels.orientation import turn
from virchow_st.types import Array, Int64Array, UInt8Array


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch of patches.

    Attributes:
        tokens: (B, T, T, D), row-major: ``tokens[:, i, j]`` describes the square in row ``i``
            (counted from the top) and column ``j`` of the patch; float32, or float16 (the precision
            of the store) if the encoder has already rounded them.
        cls: (B, D), one vector per patch, in the same dtype.
    """

    tokens: Array
    cls: Array


class Encoder(ABC):
    """A frozen map from the image of a patch to a T × T grid of tokens.

    Attributes:
        name: Name of the encoder, as given to ``--encoder``.
        dim: Number of channels of a token, D.
        grid: Number of tokens along a side, T. With T = 16, a patch of 256 µm has tokens of 16 µm.
        image_px: Side of the square patch image that `encode` expects, px.
        weights_hash: xxHash64 of the parameters as 16 hexadecimal digits, or a version.
        licence: Terms of use of the tokens; empty if they are not restricted.
        precision: Floating point type of the arithmetic, as torch names it.
        batch: Number of patches to encode at once: enough to keep the device busy, limited by its
            memory.
        layout: Blocks ``(start, side)`` of channels that form a small image of the token: channels
            ``start … start + side²`` are its sub-cells in row-major order. Channels in no block do
            not depend on the orientation of the image. Empty for a ViT.
    """

    name: str
    dim: int
    grid: int = 16
    image_px: int
    weights_hash: str
    licence: str = ""
    precision: str = "float32"
    batch: int = 16
    layout: Sequence[tuple[int, int]] = ()

    @abstractmethod
    def encode(self, images: UInt8Array) -> Tokens:
        """Encode RGB images (B, image_px, image_px, 3) uint8.

        Raises:
            ValueError: The images have another shape or dtype.
            MemoryError: The batch is too large for the memory of the device.
        """

    def launch(self, images: UInt8Array) -> Callable[[], Tokens]:
        """Start to encode and return a function that waits for the tokens and returns them.

        On a GPU the next batch can be started before the previous one has finished. The same errors
        are raised as in `encode`.
        """
        tokens = self.encode(images)
        return lambda: tokens

    def _check_images(self, images: UInt8Array) -> None:
        side = self.image_px
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"{self.name}: expected images uint8 (B, {side}, {side}, 3); "
                f"got {images.dtype} {images.shape}"
            )


def dihedral_channels(
    layout: Sequence[Sequence[int]], dim: int, k: int, flip: bool
) -> Int64Array | None:
    """Order of a token's channels after the image is flipped and rotated.

    The image changes by ``np.rot90(np.fliplr(image), k)``: first a left-right flip if ``flip``,
    then ``k`` counter-clockwise quarter turns of the (row, col) axes. The grid of tokens changes in
    the same way, and the channels of every token are permuted by the returned order::

        after = np.rot90(np.fliplr(before), k)[..., dihedral_channels(layout, dim, k, flip=True)]

    Args:
        layout: Blocks ``(start, side)`` as in `Encoder.layout`; lists, as read from JSON, are
            accepted.
        dim: Number of channels of a token.
        k: Number of quarter turns, any integer.
        flip: Whether the image is flipped left to right before it is rotated.

    Returns:
        (dim,) int64 order, or None if the layout is empty and no channel moves.

    Example:
        Channels 0 to 3 are a 2 × 2 image; channel 4 does not depend on the orientation:

        >>> dihedral_channels([(0, 2)], dim=5, k=1, flip=False)
        array([1, 3, 0, 2, 4])
    """
    if not layout:
        return None
    order = np.arange(dim, dtype=np.int64)
    for start, side in layout:
        cells = order[start : start + side * side].reshape(side, side).copy()
        turned = turn(cells, k % 4 + 4 * flip)
        order[start : start + side * side] = turned.ravel()
    return order
