"""The interface of programs that find cells in H&E."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from virchow_st.types import Array, UInt8Array

TILE_PX, TILE_MPP = 512, 0.5
"""Side of the images that a segmenter sees, and their µm per pixel."""


class Segmenter(ABC):
    """Finds cells or nuclei in H&E, tile by tile."""

    def prepare(self, images: Sequence[UInt8Array]) -> None:  # noqa: B027
        """See some tiles of the slide's tissue before the first is segmented.

        Args:
            images: up to 16 tiles, as `segment` takes them.
        """

    @abstractmethod
    def segment(self, image: UInt8Array) -> Array:
        """Find cells or nuclei in one tile.

        Args:
            image: (512, 512, 3) uint8 RGB at 0.5 µm/px, white off the slide image.

        Returns:
            (512, 512) whole numbers, 0 = none; each cell has a number of its own.
        """
