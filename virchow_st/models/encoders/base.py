"""What every encoder gives, and how its tokens turn with the image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.kernels.orientation import turn
from virchow_st.types import Array, Int64Array, UInt8Array


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of patches.

    Attributes:
        tokens: (B, T, T, D), row-major: ``tokens[:, i, j]`` describes the square in row ``i``
            (counted downwards) and column ``j`` of the patch; float32, or float16 where they have
            been rounded already, as the store keeps them.
        cls: (B, D), one vector for the whole patch; the same dtype.
    """

    tokens: Array
    cls: Array


class Encoder(ABC):
    """A frozen map from the image of a patch to a T × T grid of tokens.

    Attributes:
        name: what ``--encoder`` called it.
        dim: length D of a token.
        grid: tokens along a side, T. A patch of 256 µm and T = 16 make tokens of 16 µm.
        image_px: side of the square patch image that `encode` expects, px.
        weights_hash: 16 hexadecimal digits of xxHash64 over the parameters, or a version.
        licence: what may be done with the tokens; empty where nothing restricts them.
        precision: of the arithmetic, as torch calls it.
        batch: patches to encode at once: as many as keep the device busy, or as fit its memory.
        layout: blocks ``(start, side)`` of channels that are themselves a small image: channels
            ``start … start + side²``, row-major sub-cells of the token. Channels in no block do
            not depend on orientation. Empty for a ViT.
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
        """Encode RGB images (B, image_px, image_px, 3).

        Raises:
            ValueError: another shape or dtype.
            MemoryError: too many for the device's memory; fewer may do.
        """

    def launch(self, images: UInt8Array) -> Callable[[], Tokens]:
        """Begin to encode; what comes back waits for the tokens when it is called.

        On a GPU the next batch can so be begun before the last is waited for. Raises as `encode`.
        """
        tokens = self.encode(images)
        return lambda: tokens

    def dihedral_permutation(self, k: int, flip: bool) -> Int64Array | None:
        """Order of the channels after a flip and quarter turns; see `dihedral_channels`."""
        return dihedral_channels(self.layout, self.dim, k, flip)

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
    """Order of a token's channels after the image is flipped and turned.

    The image changes by ``np.rot90(np.fliplr(image), k)`` (left-right flip first where ``flip``;
    then ``k`` counter-clockwise quarter turns on the (row, col) axes). The grid of tokens changes
    in the same way, and each token's channels by the returned order::

        after = np.rot90(np.fliplr(before), k)[..., dihedral_channels(layout, dim, k, flip=True)]

    Args:
        layout: blocks ``(start, side)``, as in `Encoder.layout` (lists, as JSON gives them, do).
        dim: length of a token.
        k: quarter turns, any integer.
        flip: whether the image is flipped left to right before it turns.

    Returns:
        (dim,) int64, or None where no channel moves because the layout is empty.
    """
    if not layout:
        return None
    order = np.arange(dim, dtype=np.int64)
    for start, side in layout:
        cells = order[start : start + side * side].reshape(side, side).copy()
        turned = turn(cells, k % 4 + 4 * flip)
        order[start : start + side * side] = turned.ravel()
    return order
