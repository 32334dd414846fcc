"""Blocks of patches that are drawn together, and the patches that a null is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from virchow_st.evaluation.blocks import NOBODY, cut_blocks, shifted_places, shuffled_places
from virchow_st.store.format import PatchInfo


def lattice(*places: tuple[int, int], row0: int = 0, col0: int = 0) -> list[PatchInfo]:
    corners = np.zeros((4, 2))
    return [PatchInfo(row0 + 128 * r, col0 + 128 * c, corners, 1.0, 0) for r, c in places]


def rectangle(rows: int, cols: int) -> list[PatchInfo]:
    return lattice(*((r, c) for r in range(rows) for c in range(cols)))


# --- nulls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 21, 570])
def test_shuffling_lays_every_patch_on_another(n: int) -> None:
    places = shuffled_places(n)
    assert sorted(places) == list(range(n))
    assert (places != np.arange(n)).all()


def test_a_single_patch_has_no_other() -> None:
    assert shuffled_places(1).tolist() == [NOBODY]
    assert shifted_places(lattice((3, 5))).tolist() == [NOBODY]


@pytest.mark.parametrize(("rows", "cols"), [(4, 6), (5, 5), (1, 8), (7, 1), (2, 2), (1, 2)])
def test_a_full_rectangle_shifts_by_half_and_leaves_nobody_out(rows: int, cols: int) -> None:
    places = shifted_places(rectangle(rows, cols))
    grid = np.arange(rows * cols).reshape(rows, cols)
    by_half = [
        np.roll(grid, (down, right), (0, 1)).ravel().tolist()
        for down in (rows // 2, -(rows // 2))
        for right in (cols // 2, -(cols // 2))
    ]
    assert places.tolist() in by_half


def test_a_shift_keeps_neighbours_together() -> None:
    """On a ragged slide, every pair of patches with partners lies as its partners do."""
    rng = np.random.default_rng(3)
    taken = [(r, c) for r in range(9) for c in range(11) if rng.random() < 0.6]
    places = shifted_places(lattice(*taken, row0=57, col0=1300))
    rows, cols = (np.ptp([p[i] for p in taken]) + 1 for i in (0, 1))
    steps = {
        ((taken[at][0] - r) % rows, (taken[at][1] - c) % cols)
        for (r, c), at in zip(taken, places, strict=True)
        if at != NOBODY
    }
    ((down, right),) = steps
    assert min(down, rows - down) >= rows / 4 or min(right, cols - right) >= cols / 4
    assert (places == NOBODY).any()
    assert (places != NOBODY).mean() > 0.4


def test_a_shift_takes_the_way_that_pairs_most() -> None:
    """Two strips a third of the slide apart: half the slide would pair nothing."""
    taken = [(r, c) for r in (0, 1, 4, 5, 8, 9) for c in range(2)]
    places = shifted_places(lattice(*taken))
    assert (places != NOBODY).all()


# --- blocks ---------------------------------------------------------------------------------------


def test_blocks_are_squares_of_two_by_two_patches() -> None:
    blocks = cut_blocks([rectangle(6, 7)])
    assert (blocks.um, blocks.n_blocks) == (512, 12)
    of_patch = blocks.of_patch[0].reshape(6, 7)
    for block in range(12):
        row, col = np.nonzero(of_patch == block)
        assert len(row) <= 4
        assert np.ptp(row) <= 1
        assert np.ptp(col) <= 1
    assert sorted(np.unique(of_patch)) == list(range(12))


def test_a_small_slide_is_cut_into_single_patches() -> None:
    blocks = cut_blocks([rectangle(3, 3)])
    assert (blocks.um, blocks.n_blocks) == (256, 9)
    assert blocks.of_patch[0].tolist() == list(range(9))
    assert cut_blocks([rectangle(1, 1)]).n_blocks == 1


def test_no_block_lies_on_two_slides() -> None:
    blocks = cut_blocks([rectangle(4, 4), rectangle(4, 5)])
    assert (blocks.um, blocks.n_blocks) == (512, 10)
    assert set(blocks.of_patch[0]) == set(range(4))
    assert set(blocks.of_patch[1]) == set(range(4, 10))
