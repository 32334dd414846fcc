"""Finds out whether two stores were extracted from the same slide, even with different options.

The bytes of a store change if Space Ranger runs again in another version or with another alignment,
and with the options of the extraction. The position of a barcode on the array and its number of
UMIs hardly change. The counts of two stores of one slide therefore agree bin by bin, including
their sampling noise, whereas those of two slides agree only as far as their tissue does. Equal
fingerprints of the input files are checked first; otherwise the counts decide.

Two sections of one tissue block count as two slides.
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

_COMPARED_PATCHES = 6  # at most, per pair of stores; usually one is enough
_ENOUGH_UMIS = 2000  # UMIs of each store in the compared bins, after which comparing stops
_LEAST_UMIS = 100  # with fewer, the counts do not decide
# Smallest correlation of the counts of two stores of one slide, after the tissue's structure has
# been removed. Two stores of one slide reach 1, or about 0.7 if one has half of the reads; two
# slides reach 0 ± 0.02.
_SAME = 0.4
_NEIGHBOURHOOD_BINS = 9  # side of the square whose mean is removed as structure


def check_different_slides(stores: Sequence[Store]) -> None:
    """Refuse a slide that is given twice, because it could be in training and test data at once.

    Raises:
        ConfigError: two stores are of the same slide.
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
    """Compares stores pair by pair and caches the patches it has read."""

    def __init__(self) -> None:
        self._totals: dict[tuple[int, int], _Totals] = {}

    def why_same(self, a: Store, b: Store) -> str:
        """The reason why two stores must be of one slide; empty if they are of two."""
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
    """Whether both stores were made from files of the same fingerprint; it may be missing."""
    prints = [_fingerprint(store.manifest["job"], name) for store in (a, b)]
    return prints[0] is not None and prints[0] == prints[1]


def _fingerprint(job: Any, name: str) -> str | None:
    source = job["inputs"].get(name)
    value = source.get("fingerprint") if isinstance(source, dict) else None
    return value if isinstance(value, str) else None


def _overlap_on_image(a: Store, b: Store) -> bool:
    """Whether patches of two stores made from the same image show the same pixels.

    A scan may show two capture areas, whose stores then have different parts of the same image.
    """
    boxes = []
    for store in (a, b):
        corners = np.array([info.corners_px for info in store.patch_table]).reshape(-1, 4, 2)
        boxes.append((corners.min(1), corners.max(1)))
    (low_a, high_a), (low_b, high_b) = boxes
    overlap = np.minimum(high_a[:, None], high_b) - np.maximum(low_a[:, None], low_b)
    least = 0.25 * (high_a - low_a).prod(1)  # bounding boxes of rotated neighbours overlap a little
    shared: BoolArray = (overlap > 0).all(2) & (overlap.prod(2) > least[:, None])
    return bool(shared.any())


def _overlapping(a: Sequence[PatchInfo], b: Sequence[PatchInfo]) -> list[tuple[int, int]]:
    """Pairs of patches that share bins of the array, those with the most shared UMIs first."""
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
    """Total UMIs per bin of a patch.

    Attributes:
        umis: (128, 128) float64 UMIs of all genes.
        tissue: (128, 128) bool.
        origin: (2,) int64 row0 and col0.
    """

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
    """Sums over the bins that two patches share.

    Attributes:
        products: (3,) float64 Σx², Σy² and Σxy of the counts x and y without structure.
        n_umis: (2,) float64 UMIs of each patch.
        n_bins: number of bins.
    """

    products: Float64Array
    n_umis: Float64Array
    n_bins: int


def _compare(a: _Totals, b: _Totals) -> _Found:
    """Compare counts without structure, in the bins that are tissue in both patches."""
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
    """The part of the counts that neither the neighbourhood nor rows and columns explain.

    The square root stabilises the variance. From it are subtracted the mean of the neighbourhood,
    and then the means of rows and columns, whose efficiencies different slides may share.

    Returns:
        Array of the same shape, 0 outside tissue.
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
