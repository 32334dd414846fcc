"""Tells whether two stores were extracted from the same slide, whatever they were extracted with.

Bytes change when a slide is downloaded again, when Space Ranger runs again in another version or
with another alignment, and with the options of the extraction. What stays is which barcode lies
where on the array and how many UMIs it caught: the counts of two stores of one slide agree bin for
bin, while those of two slides agree no better than their tissue does, because each has its own
sampling noise. So the counts decide, after the fingerprints that tell at once.

Two sections of one block are two slides by every one of these signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import Store
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, BoolArray, Float64Array, Int64Array

_COMPARED_PATCHES = 6  # at most, of each pair of stores; mostly one is enough
_ENOUGH_UMIS = 2000  # in the bins compared, of either store
_LEAST_UMIS = 100
# Correlation of what is left of the counts of two stores when the tissue's structure is taken out.
# Two stores of a slide reach 1, and about 0.7 where one has half of the other's reads; two slides
# reach 0 ± 0.02.
_SAME = 0.4
_NEIGHBOURHOOD_BINS = 9  # side of the square whose mean counts as structure


def check_different_slides(stores: Sequence[Store]) -> None:
    """Refuse a slide that is given twice: it would be in two parts of a split at once.

    Raises:
        ConfigError: two stores are of one slide.
    """
    compared = _Comparison()
    for i, store in enumerate(stores):
        for other in stores[:i]:
            if reason := compared.why_same(other, store):
                patients = sorted({store.patient, other.patient})
                twice = f" under two names, {' and '.join(patients)}" if len(patients) > 1 else ""
                raise ConfigError(
                    f"{store.path}: holds the same slide as {other.path}{twice} ({reason}); "
                    f"give it once"
                )


# Pairs of finished stores, by the hashes of their records, that were found to be different slides.
_KNOWN_DIFFERENT: set[frozenset[str]] = set()


class _Comparison:
    """Compares stores pair by pair and keeps what it has read of them."""

    def __init__(self) -> None:
        self._totals: dict[tuple[int, int], _Totals] = {}

    def why_same(self, a: Store, b: Store) -> str:
        """Why two stores are of one slide; empty where they are of two."""
        hashes = frozenset(str(store.manifest["records_xxh64"]) for store in (a, b))
        if len(hashes) == 1:
            return "the records are the same"
        if hashes in _KNOWN_DIFFERENT:
            return ""
        if _same_input(a, b, "matrix"):
            return "both were made from one count matrix"
        if _same_input(a, b, "image") and _overlap_on_image(a, b):
            return "both show the same part of one image"
        if reason := self._agreement(a, b):
            return reason
        _KNOWN_DIFFERENT.add(hashes)
        return ""

    def _agreement(self, a: Store, b: Store) -> str:
        sums, n_umis, n_bins = np.zeros(3), np.zeros(2), 0
        for at_a, at_b in _overlapping(a.patch_table, b.patch_table)[:_COMPARED_PATCHES]:
            found = _compare(self._of(a, at_a), self._of(b, at_b))
            sums += found.products
            n_umis += found.n_umis
            n_bins += found.n_bins
            if n_umis.min() >= _ENOUGH_UMIS:
                break
        xx, yy, xy = sums
        if n_umis.min() < _LEAST_UMIS or min(xx, yy) <= 0:
            return ""
        r = xy / np.sqrt(xx * yy)
        return f"the counts of {n_bins:,} bins agree, r {r:.2f}" if r > _SAME else ""

    def _of(self, store: Store, index: int) -> _Totals:
        key = id(store), index
        if key not in self._totals:
            self._totals[key] = _Totals.of(store, index)
        return self._totals[key]


def _same_input(a: Store, b: Store, name: str) -> bool:
    """Whether both stores were made from files of one fingerprint; stores of old may have none."""
    prints = [_fingerprint(store.manifest["job"], name) for store in (a, b)]
    return prints[0] is not None and prints[0] == prints[1]


def _fingerprint(job: Any, name: str) -> str | None:
    source = job["inputs"].get(name)
    value = source.get("fingerprint") if isinstance(source, dict) else None
    return value if isinstance(value, str) else None


def _overlap_on_image(a: Store, b: Store) -> bool:
    """Whether patches of the two lie on the same pixels of their one image.

    A scan may show two capture areas with a slide each: the image is then one, its parts are two.
    """
    boxes = []
    for store in (a, b):
        corners = np.array([info.corners_px for info in store.patch_table]).reshape(-1, 4, 2)
        boxes.append((corners.min(1), corners.max(1)))
    (low_a, high_a), (low_b, high_b) = boxes
    overlap = np.minimum(high_a[:, None], high_b) - np.maximum(low_a[:, None], low_b)
    least = 0.25 * (high_a - low_a).prod(1)  # boxes of neighbours touch where they lie aslant
    shared: BoolArray = (overlap > 0).all(2) & (overlap.prod(2) > least[:, None])
    return bool(shared.any())


def _overlapping(a: Sequence[PatchInfo], b: Sequence[PatchInfo]) -> list[tuple[int, int]]:
    """Pairs of patches that share bins of the array, those with most UMIs in common first."""
    place_of_b = {(info.row0 // PATCH_BINS, info.col0 // PATCH_BINS): j for j, info in enumerate(b)}
    pairs = []
    for i, info in enumerate(a):
        row, col = info.row0 // PATCH_BINS, info.col0 // PATCH_BINS
        for cell in ((row + dr, col + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)):
            if (j := place_of_b.get(cell)) is None:
                continue
            sides = (
                PATCH_BINS - abs(info.row0 - b[j].row0),
                PATCH_BINS - abs(info.col0 - b[j].col0),
            )
            if min(sides) > 0:
                umis = min(info.total_umi, b[j].total_umi) * sides[0] * sides[1]
                pairs.append((umis, i, j))
    return [(i, j) for umis, i, j in sorted(pairs, reverse=True) if umis]


@dataclass(frozen=True)
class _Totals:
    """UMIs of all genes in a patch: (128, 128) float64, its tissue, and its first bin."""

    umis: Float64Array
    tissue: BoolArray
    origin: Int64Array

    @classmethod
    def of(cls, store: Store, index: int) -> _Totals:
        patch = store[index]
        counts = patch.sparse_counts
        umis = np.bincount(counts.positions, counts.counts, PATCH_POSITIONS).astype(np.float64)
        info = store.patch_table[index]
        origin = np.array([info.row0, info.col0], np.int64)
        return cls(umis.reshape(PATCH_BINS, PATCH_BINS), patch.tissue_mask, origin)


@dataclass(frozen=True)
class _Found:
    """Sums over the bins two patches share: products xx, yy, xy; UMIs of either; bins."""

    products: Float64Array
    n_umis: Float64Array
    n_bins: int


def _compare(a: _Totals, b: _Totals) -> _Found:
    """Compare counts bin by bin where both patches have tissue, without the tissue's structure."""
    start = np.maximum(a.origin, b.origin)
    stop = np.minimum(a.origin, b.origin) + PATCH_BINS
    (rows_a, cols_a), (rows_b, cols_b) = (
        [slice(*span) for span in zip(start - one.origin, stop - one.origin, strict=True)]
        for one in (a, b)
    )
    tissue = a.tissue[rows_a, cols_a] & b.tissue[rows_b, cols_b]
    x, y = a.umis[rows_a, cols_a] * tissue, b.umis[rows_b, cols_b] * tissue
    rest_x, rest_y = _without_structure(x, tissue), _without_structure(y, tissue)
    products = np.array([(rest_x**2).sum(), (rest_y**2).sum(), (rest_x * rest_y).sum()])
    return _Found(products, np.array([x.sum(), y.sum()]), int(tissue.sum()))


def _without_structure(umis: Float64Array, tissue: BoolArray) -> Float64Array:
    """What neighbours do not tell of a bin's counts, and rows and columns do not either.

    Square roots, whose noise is the same wherever counts are many or few, less the mean of the
    neighbourhood; then less the means of rows and columns, whose efficiencies all slides of a kind
    may share. 0 outside tissue.
    """
    inside = tissue.astype(np.float64)
    side = (_NEIGHBOURHOOD_BINS, _NEIGHBOURHOOD_BINS)
    root = np.sqrt(umis) * inside
    total = cv2.boxFilter(root, -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT)
    n = cv2.boxFilter(inside, -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT)
    rest = (root - total / np.maximum(n, 1)) * inside
    for axis in (0, 1):
        mean = rest.sum(axis, keepdims=True) / np.maximum(inside.sum(axis, keepdims=True), 1)
        rest = (rest - mean) * inside
    return np.asarray(rest, np.float64)
