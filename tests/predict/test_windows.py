"""Predictions blended over shifted windows, against one weighted sum over the whole slide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from tiny_store import make_records, write_records

from virchow_st.predict.windows import SHIFTED, Decode, Lattice, blended, window_weight
from virchow_st.store.context import with_margin
from virchow_st.store.reader import Patch, Store
from virchow_st.types import Array, Float32Array

ROWS, COLUMNS = 4, 3
MISSING = (8, 10)  # the last patch lies alone, but for a corner


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    records = make_records(ROWS * COLUMNS, columns=COLUMNS, dim=2)
    kept = [record for i, record in enumerate(records) if i not in MISSING]
    return write_records(tmp_path_factory.mktemp("stores") / "A.vst", kept, 6)


def decoder(tokens: Array, image: Array | None, orientations: Sequence[int]) -> Float32Array:
    """Two maps that follow the tokens, the whole window and its margin, and err at its border."""
    assert image is None
    maps = tokens[:, 1:-1, 1:-1, 0].astype(np.float32).repeat(8, 1).repeat(8, 2)
    maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1] = 5, 6, 7, 8
    maps += tokens.astype(np.float32).mean((1, 2))[:, :1, None] + np.float32(sum(orientations))
    return np.stack([maps, 2 * maps], axis=1)


def predicted(
    patches: Sequence[Patch],
    decode: Decode = decoder,
    lattices: Sequence[Lattice] = SHIFTED,
    batch: int = 3,
) -> list[Float32Array]:
    fixed = {"margin_um": 16, "wants_image": False}
    return list(blended(patches, decode, lattices, batch=batch, **fixed))


def by_hand(store: Store) -> list[Float32Array]:
    """Maps of every patch, from the tokens of the whole slide in one array."""
    tokens = np.full((16 * ROWS + 2, 16 * COLUMNS + 2), np.nan)
    for (row, col), i in store.places.items():
        at = 1 + row // 8, 1 + col // 8
        tokens[at[0] : at[0] + 16, at[1] : at[1] + 16] = store[i].tokens[..., 0]

    def of_window(row: int, col: int, orientations: Sequence[int]) -> Float32Array | None:
        if min(row, col) < 0:
            return None
        seen = tokens[row // 8 : row // 8 + 18, col // 8 : col // 8 + 18]
        if seen.shape != (18, 18) or np.isnan(seen[1:-1, 1:-1]).any():
            return None
        ends = [(at % 128 == 0) * 1 for at in (row, col)]  # where the margin may be missing
        edge = seen[ends[0] : 18 - ends[0], ends[1] : 18 - ends[1]]
        edge = np.pad(edge, [(end, end) for end in ends], mode="edge")
        seen = np.where(np.isnan(seen), edge, seen)
        return decoder(seen[None, ..., None].astype(np.float16), None, orientations)[0]

    found = []
    own_weight = window_weight().astype(float)
    for row, col in store.places:
        total, weights = np.zeros((2, 128, 128)), np.zeros((128, 128))
        for lattice in SHIFTED:
            own = of_window(row, col, lattice.orientations)
            steps = [(-64, 64) if half else (0,) for half in lattice.offset]
            maps = {at: of_window(row + at[0], col + at[1], lattice.orientations)
                    for at in product(*steps)}  # fmt: skip
            for (down, right), values in maps.items():
                for y, x in product(range(0, 128, 64), repeat=2):
                    if not (0 <= y - down < 128 and 0 <= x - right < 128):
                        continue
                    here = slice(y, y + 64), slice(x, x + 64)
                    there = tuple(
                        slice(a - b, a - b + 64) for a, b in zip((y, x), (down, right), strict=True)
                    )
                    weight, part = own_weight[there], None if values is None else values[:, *there]
                    if part is None:
                        part = own[:, *here]
                        is_free = all(v is None for v in maps.values())
                        weight = own_weight[here] * (1 if is_free else weight)
                    total[:, *here] += weight * part
                    weights[here] += weight
        found.append(total / weights)
    return found


def test_it_is_the_weighted_sum_over_the_slide(store: Store) -> None:
    found, expected = predicted(list(store)), by_hand(store)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_patch_has_the_same_maps_however_it_is_asked_for(store: Store) -> None:
    patches = list(store)
    expected = predicted(patches)
    order = np.random.default_rng(0).permutation(len(patches)).tolist()
    for batch in (1, 2, 8):
        found = predicted([patches[i] for i in order], batch=batch)
        np.testing.assert_array_equal(found, [expected[i] for i in order])
    for patch in patches:
        np.testing.assert_array_equal(predicted([patch])[0], expected[patch.index])


def test_borders_of_patches_lie_inside_other_windows(store: Store) -> None:
    def errs(tokens: Array, image: Array | None, orientations: Sequence[int]) -> Float32Array:
        return decoder(0 * tokens, image, (0,))  # its error of 5 to 8 at a border and nothing else

    left, right = predicted([store[3], store[4]], errs)
    middle = slice(16, 48)
    assert left[0, middle, -1].max() < 0.1
    assert right[0, middle, 0].max() < 0.1
    assert left[0, middle, 63:65].max() < 0.1, "nor are there new borders"
    apart = predicted([store[3]], errs, [Lattice((0, 0), (0,))])[0]
    assert (apart[0, middle, -1] == 8).all()


def test_a_patch_alone_is_the_mean_over_its_orientations(store: Store) -> None:
    alone = store[len(store) - 1]
    tokens = with_margin(alone, lambda patch: patch.tokens, 1)[None]
    every = [decoder(tokens, None, lattice.orientations)[0] for lattice in SHIFTED]
    np.testing.assert_allclose(predicted([alone])[0], np.mean(every, axis=0), rtol=1e-5)


def test_every_window_is_decoded_once(store: Store) -> None:
    seen: list[tuple[bytes, tuple[int, ...]]] = []

    def counted(tokens: Array, image: Array | None, orientations: Sequence[int]) -> Float32Array:
        seen.extend((window.tobytes(), tuple(orientations)) for window in tokens)
        return decoder(tokens, image, orientations)

    predicted(list(store), counted, batch=2)
    assert len(set(seen)) == len(seen)
    assert sorted(o for lattice in SHIFTED for o in lattice.orientations) == list(range(8))
    pairs = {lattice.offset: lattice.orientations for lattice in SHIFTED}
    # Windows between patches that are there, and patches that lack one of theirs.
    n_windows = {offset: sum(pair == o for _, o in seen) for offset, pair in pairs.items()}
    assert n_windows == {(0, 0): 10, (0, 1): 5 + 8, (1, 0): 5 + 8, (1, 1): 3 + 10}
