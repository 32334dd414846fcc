"""Patches and shifted windows with their neighbours, against one array of the whole slide."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tiny_store import make_records, write_records

from virchow_st.store.context import has_window, window, with_margin
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


def cut(
    whole: np.ndarray, row0: int, col0: int, side: int, n: int, shift: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """A window with its margin; where the slide has nothing, the edge of what it is cut from."""
    row, col = np.meshgrid(*(np.arange(-n, side + n) + at for at in (row0, col0)), indexing="ij")
    patch = len(whole) // 3  # cells per side
    is_there = (row >= 0) & (row < len(whole)) & (col >= 0) & (col < len(whole))
    is_there &= (row // patch != MISSING // COLUMNS) | (col // patch != MISSING % COLUMNS)
    if shift[0] == 0:
        row = np.where(is_there, row, row.clip(row0, row0 + side - 1))
    if shift[1] == 0:
        col = np.where(is_there, col, col.clip(col0, col0 + side - 1))
    return whole[row, col]


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
            at = patch.row0 * side // 128, patch.col0 * side // 128
            np.testing.assert_array_equal(found, cut(whole, *at, side, n))


@pytest.mark.parametrize("cells", [0, 1, 3])
def test_windows_lie_half_on_neighbours(
    slide: tuple[Store, np.ndarray, np.ndarray], cells: int
) -> None:
    """Every window between patches that are there; there is none over the missing one."""
    store, tokens, image = slide
    n_windows = 0
    for patch in store:
        for shift in product((-1, 0, 1), repeat=2):
            steps = [(0,) if half == 0 else (0, half) for half in shift]
            on = [(patch.row0 + 128 * r, patch.col0 + 128 * c) for r, c in product(*steps)]
            assert has_window(patch, shift) == all(place in store.places for place in on)
            if not has_window(patch, shift):
                with pytest.raises(ValueError, match="has no neighbours"):
                    window(patch, shift, lambda p: p.tokens, cells)
                continue
            n_windows += shift != (0, 0)
            for read, whole, side, n in (
                (lambda p: p.tokens, tokens, 16, cells),
                (lambda p: p.image, image, 256, 16 * cells),
            ):
                at = (
                    (place + 64 * half) * side // 128
                    for place, half in zip((patch.row0, patch.col0), shift, strict=True)
                )
                found = window(patch, shift, read, n)
                np.testing.assert_array_equal(found, cut(whole, *at, side, n, shift))
    assert n_windows == 16, "two on each of the eight pairs of patches around the missing one"
