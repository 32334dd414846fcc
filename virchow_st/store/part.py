"""A store of which some bins are hidden, so that their counts play no part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.store.format import Kind
from virchow_st.store.reader import Store
from virchow_st.types import PATCH_BINS, BoolArray


class StorePart(Store):
    """A store whose hidden bins count as bins beside the tissue.

    Tokens, images and the records themselves are those of the store; training leaves out what
    `Patch.tissue_mask` leaves out.

    Args:
        path: folder of the store.
        hidden: (R, C) bool, True for a hidden bin; bins beyond it are not hidden.
        corner: array_row and array_col of its first bin, those of the store's first patch or less.

    Example:
        >>> part = StorePart("P1.vst", hidden, corner=(0, 0))  # doctest: +SKIP
        >>> part[0].tissue_mask[hidden[:128, :128]].any()  # doctest: +SKIP
        False
    """

    def __init__(self, path: Path | str, hidden: BoolArray, corner: tuple[int, int]) -> None:
        super().__init__(path)
        self._hidden, self._corner = hidden, corner

    def unpack(self, index: int, kind: Kind, unpack: Callable[[memoryview], Any]) -> Any:
        """As `Store.unpack`, with the hidden bins taken out of the tissue mask."""
        value = super().unpack(index, kind, unpack)
        if kind is not Kind.TISSUE_MASK:
            return value
        info = self[index].info
        row, col = info.row0 - self._corner[0], info.col0 - self._corner[1]
        window = self._hidden[row : row + PATCH_BINS, col : col + PATCH_BINS]
        mask = np.array(value)
        mask[: window.shape[0], : window.shape[1]] &= ~window
        return mask

    def __reduce__(self) -> tuple[type[Store], tuple[Any, ...]]:
        """Pickle the path and the hidden bins: another process opens and checks the file itself."""
        return StorePart, (self._folder, self._hidden, self._corner)
