"""A patch with its neighbours around it, against one array of the whole slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_store import make_records, write_records

from virchow_st.store.context import with_margin
from virchow_st.store.reader import Store

COLUMNS, MISSING = 3, 4  # of nine patches, three a row, the one in the middle of all is not there


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, np.ndarray, np.ndarray]:
    """A store without its middle patch; tokens and image of the whole slide."""
    records = make_records(9, columns=COLUMNS)
    path: Path = tmp_path_factory.mktemp("stores") / "A.vst"
    store = write_records(path, [r for i, r in enumerate(records) if i != MISSING], 6)
    tokens = np.zeros((48, 48, 8), np.float16)
    image = np.zeros((768, 768, 3), np.uint8)
    for patch in store:  # as stored: images are compressed
        row, col = patch.row0 // 8, patch.col0 // 8
        tokens[row : row + 16, col : col + 16] = patch.tokens
        image[16 * row : 16 * row + 256, 16 * col : 16 * col + 256] = patch.image
    return store, tokens, image


@pytest.mark.parametrize("cells", [0, 1, 3])
def test_margin_is_the_neighbours(slide: tuple[Store, np.ndarray, np.ndarray], cells: int) -> None:
    """Where a patch lies; elsewhere the edge of the patch itself."""
    store, tokens, image = slide
    for patch in store:
        for read, whole, side, n in (
            (lambda p: p.tokens, tokens, 16, cells),
            (lambda p: p.image, image, 256, 16 * cells),
        ):
            found = with_margin(patch, read, n)
            assert found.shape[:2] == (side + 2 * n, side + 2 * n)
            row0, col0 = patch.row0 * side // 128, patch.col0 * side // 128
            own_row, own_col = (np.arange(-n, side + n) + at for at in (row0, col0))
            row, col = np.meshgrid(own_row, own_col, indexing="ij")
            is_there = (row >= 0) & (row < 3 * side) & (col >= 0) & (col < 3 * side)
            is_there &= (row // side != MISSING // COLUMNS) | (col // side != MISSING % COLUMNS)
            row = np.where(is_there, row, row.clip(row0, row0 + side - 1))
            col = np.where(is_there, col, col.clip(col0, col0 + side - 1))
            expected = whole[row, col]
            np.testing.assert_array_equal(found, expected)
