"""Predictions of a store's patches, blended over windows that are shifted by half a patch.

A decoder sees one window at a time, so that the maps of two windows side by side do not quite meet.
Each pair of the eight orientations is therefore decoded on windows of its own: the patches
themselves, and windows half a patch to the right, below, and both, which are put together from the
tokens and pixels of the patches that they lie on. A window's weight falls towards its border, and
every border lies in the middle of other windows. A bin is decoded eight times, as it would be
without shifts, and no bin is only ever near a border.

Shape suffixes: B patches, T tokens per side, D token channels, K maps, R = 128 bins per side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

import numpy as np

from virchow_st.store.context import Shift, has_window, window
from virchow_st.store.reader import Patch
from virchow_st.types import PATCH_BINS, PATCH_UM, Array, Float32Array, UInt8Array

RAMP_BINS = 8
"""Bins at a window's border over which its weight falls to 0: the 16 µm that a margin has."""

_HALF = PATCH_BINS // 2
_KEPT_PATCHES = 128  # whose tokens and images are kept in memory, at most 1 MB each

Decode = Callable[[Array, UInt8Array | None, Sequence[int]], Float32Array]
"""Tokens (B, T, T, D), images, and orientations to the mean of their maps (B, K, 128, 128)."""


@dataclass(frozen=True)
class Lattice:
    """Windows side by side, and the orientations in which they are decoded.

    Attributes:
        offset: From the lattice of the patches, in half patches down and to the right, 0 or 1.
        orientations: Of 0 to 7.
    """

    offset: Shift
    orientations: tuple[int, ...]


SHIFTED = (
    Lattice((0, 0), (0, 2)),
    Lattice((0, 1), (1, 3)),
    Lattice((1, 0), (4, 6)),
    Lattice((1, 1), (5, 7)),
)
"""Two orientations, half a turn apart, for each of the four lattices."""

Key = tuple[int, int, tuple[int, ...]]
"""First bin (row, col) of a window, and its orientations."""


@dataclass(frozen=True)
class _Part:
    """A rectangle of a patch that one window lies on.

    Attributes:
        key: Of the window.
        patch, shift: Where it is cut from.
        here, there: The rectangle's bins in the patch, and in the window.
    """

    key: Key
    patch: Patch
    shift: Shift
    here: tuple[slice, slice]
    there: tuple[slice, slice]


def blended(
    patches: Sequence[Patch],
    decode: Decode,
    lattices: Sequence[Lattice] = SHIFTED,
    *,
    margin_um: int,
    wants_image: bool,
    batch: int,
) -> Iterator[Float32Array]:
    """Maps of patches of one store, one after another.

    A patch has the same maps whichever patches are asked for with it. Where a window would need
    a patch that the store lacks, the patch itself is decoded in the window's orientations.

    Args:
        patches: Patches in any order. In the order of a store, the windows of about two rows of
            patches are in memory at once.
        decode: Decodes a batch of windows.
        lattices: `SHIFTED`, or one without offset for the patches alone.
        margin_um: Margin of the decoder, µm.
        wants_image: Whether the decoder reads the image.
        batch: Windows to decode at once.

    Returns:
        An iterator over (K, 128, 128) float32.
    """
    waiting = Counter(part.key for patch in patches for part in _all_parts(patch, lattices))
    decoded: dict[Key, Float32Array] = {}
    read_tokens = lru_cache(_KEPT_PATCHES)(_tokens)
    read_image = lru_cache(_KEPT_PATCHES)(_image)

    def decode_some(parts: Sequence[_Part], orientations: tuple[int, ...]) -> None:
        n_tokens = margin_um * parts[0].patch.store.token_shape[0] // PATCH_UM
        tokens = np.stack([window(p.patch, p.shift, read_tokens, n_tokens) for p in parts])
        image = None
        if wants_image:
            image = np.stack([window(p.patch, p.shift, read_image, margin_um) for p in parts])
        for part, maps in zip(parts, decode(tokens, image, orientations), strict=True):
            decoded[part.key] = maps

    for start in range(0, len(patches), batch):
        some = patches[start : start + batch]
        for lattice in lattices:
            parts = {p.key: p for patch in some for p in _parts(patch, lattice)}
            new = [part for key, part in parts.items() if key not in decoded]
            for first in range(0, len(new), batch):
                decode_some(new[first : first + batch], lattice.orientations)
        for patch in some:
            yield _blend(patch, lattices, decoded)
            for part in _all_parts(patch, lattices):
                waiting[part.key] -= 1
                if not waiting[part.key]:
                    del decoded[part.key]


def _tokens(patch: Patch) -> Array:
    return patch.tokens


def _image(patch: Patch) -> UInt8Array:
    return patch.image


def _all_parts(patch: Patch, lattices: Sequence[Lattice]) -> Iterator[_Part]:
    return (part for lattice in lattices for part in _parts(patch, lattice))


def _parts(patch: Patch, lattice: Lattice) -> list[_Part]:
    """The parts of a patch and the windows of a lattice that lie on them."""
    info, found = patch.store.patch_table[patch.index], []
    rows, cols = ((0,) if half == 0 else (-1, 1) for half in lattice.offset)
    for shift in product(rows, cols):
        here = _halves(shift)
        if has_window(patch, shift):
            row, col = info.row0 + _HALF * shift[0], info.col0 + _HALF * shift[1]
            there = _halves((-shift[0], -shift[1]))
        else:
            row, col, shift, there = info.row0, info.col0, (0, 0), here
        found.append(_Part((row, col, lattice.orientations), patch, shift, here, there))
    return found


def _halves(shift: Shift) -> tuple[slice, slice]:
    """The bins of a patch that lie in a shifted window."""
    row, col = (
        slice(None) if half == 0 else slice(0, _HALF) if half < 0 else slice(_HALF, None)
        for half in shift
    )
    return row, col


def _blend(
    patch: Patch, lattices: Sequence[Lattice], decoded: Mapping[Key, Float32Array]
) -> Float32Array:
    """Weighted mean of the lattices' maps of a patch, always summed in the same order."""
    if len(lattices) == 1:
        return decoded[next(_all_parts(patch, lattices)).key]
    total: Float32Array | None = None
    weights = np.zeros((PATCH_BINS, PATCH_BINS), np.float32)
    for lattice in lattices:
        parts = _parts(patch, lattice)
        weight = own = window_weight()
        if any(part.shift != (0, 0) for part in parts):
            weight = np.roll(own, [_HALF * half for half in lattice.offset], (0, 1))
        for part in parts:
            at = weight[part.here]
            if part.shift == (0, 0) and weight is not own:
                at = at * own[part.here]  # the patch in place of a window that is missing
            maps = decoded[part.key]
            if total is None:
                total = np.zeros_like(maps)
            total[:, *part.here] += at * maps[:, *part.there]
            weights[part.here] += at
    assert total is not None
    total /= weights
    return total


@cache
def window_weight() -> Float32Array:
    """Weight of the bins of a window, (128, 128): a raised cosine over 16 µm at its border.

    Example:
        >>> print(window_weight()[64, :9].round(2))
        [0.01 0.08 0.22 0.4  0.6  0.78 0.92 0.99 1.  ]
    """
    ramp = np.sin(np.pi / 2 * (np.arange(RAMP_BINS) + 0.5) / RAMP_BINS) ** 2
    side = np.ones(PATCH_BINS)
    side[:RAMP_BINS] = ramp
    side[PATCH_BINS - RAMP_BINS :] = ramp[::-1]
    return np.outer(side, side).astype(np.float32)
