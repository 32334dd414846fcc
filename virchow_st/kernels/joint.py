"""Joint histograms of predicted rates and counts, a gene at a time: what rank figures need.

Ranks are known only once every bin has been seen, and a slide has millions of them. So rates and
counts are rounded, and how often each pair of rounded values occurs is counted: the rank figures of
the rounded values follow exactly, in one pass, in memory that does not grow with the patches.

Rates, taken as float32, keep 9 significant bits: 256 values an octave, rounded towards zero. Below
2⁻²⁰ UMIs in size they are one value, 0; from 2²⁰ on another, with either sign. Counts keep 6 bits:
exact below 64, then 32 values an octave. Both are numbered in their order.

A gene's pairs lie in few octaves and classes, so the histogram is kept in pages of 256 keys, made
when first met and chained gene by gene.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Int64Array

_BITS = 8  # of a rate's significand that are kept, besides the first, which is always 1
KEYS_PER_PAGE = 2**_BITS
"""Keys in a page, and in an octave of rates."""
OCTAVES = 20
"""Rates between 2⁻²⁰ and 2²⁰ UMIs in size have keys of their own."""
EXACT_COUNTS = 64
"""Counts below this are a class each; above, half as many classes an octave."""
_TOP_KEY = 2 * OCTAVES * KEYS_PER_PAGE
_OFFSET = _TOP_KEY + KEYS_PER_PAGE - 1  # makes every key positive, and key 1 the first of a page
_PAGES_PER_CLASS = 2 * (_TOP_KEY // KEYS_PER_PAGE) + 1
_N_CLASSES = EXACT_COUNTS + 17 * (EXACT_COUNTS // 2)  # to 2²³, more than 64 bins of uint16 hold
_MOST_BINS = 2**32 - 1


class JointHistogram:
    """How often each pair of rounded rate and rounded count occurs, for each of G genes."""

    def __init__(self, n_genes: int) -> None:
        self.n_bins = 0
        self._first = np.full(n_genes, -1, np.int32)  # a gene's first page
        self._n_pages = 0
        self._pages = np.zeros((max(2 * n_genes, 1), KEYS_PER_PAGE), np.uint32)
        self._links = np.zeros((len(self._pages), 2), np.int32)  # which page it is; the next one

    @property
    def nbytes(self) -> int:
        """Memory held, bytes: about 1 KB for each page."""
        return self._pages.nbytes + self._links.nbytes + self._first.nbytes

    def update(self, x: Array, y: Array, mask: BoolArray) -> None:
        """Count the pairs of one patch.

        Args:
            x: (G, N) real, expected UMIs per bin, finite where the mask is True.
            y: (G, N) UMIs per bin, whole numbers of at least 0 where the mask is True.
            mask: (N,) bool; bins where it is False are not counted.

        Raises:
            OverflowError: more than 2³² − 1 bins in all, which a page cannot count.
        """
        at = np.flatnonzero(mask)
        if self.n_bins + at.size > _MOST_BINS:
            raise OverflowError(f"expected at most {_MOST_BINS} bins in a joint histogram")
        self._pages, self._links, self._n_pages = _count(
            x, y, at, self._first, self._pages, self._links, self._n_pages
        )
        self.n_bins += at.size

    def cells(self, gene: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """The pairs of one gene that occur.

        Returns:
            (n,) int64 keys of the rates; (n,) int64 classes of the counts; (n,) int64 how often.
            In no particular order.
        """
        pages = []
        page = int(self._first[gene])
        while page >= 0:
            pages.append(page)
            page = int(self._links[page, 1])
        row, slot = np.nonzero(self._pages[pages])
        which = self._links[pages, 0].astype(np.int64)[row]
        keys = which % _PAGES_PER_CLASS * KEYS_PER_PAGE + slot - _OFFSET
        times = self._pages[pages][row, slot].astype(np.int64)
        return keys, which // _PAGES_PER_CLASS, times


@njit(cache=True, nogil=True)
def _rate_key(bits: int) -> int:
    """Number of the rounded rate in its order, 0 for rate 0, from the bits of a float32."""
    size = bits & 0x7FFFFFFF
    key = (size >> (23 - _BITS)) - ((127 - OCTAVES) << _BITS) + 1
    key = min(max(key, 0), _TOP_KEY)
    return -key if bits < 0 else key


@njit(cache=True, nogil=True)
def _count_class(k: int) -> int:
    """Number of the rounded count in its order."""
    octave = 0
    while k >= EXACT_COUNTS:
        k >>= 1
        octave += 1
    return min(k + octave * (EXACT_COUNTS // 2), _N_CLASSES - 1)


@njit(cache=True, nogil=True)
def _count(
    x: Array, y: Array, at: Int64Array, first: Array, pages: Array, links: Array, n_pages: int
) -> tuple[Array, Array, int]:
    """Count pairs at the bins ``at``; returns pages and links, larger ones where they were full."""
    page_of = np.full(_N_CLASSES * _PAGES_PER_CLASS, -1, np.int32)  # of the gene at hand
    rates, cells = np.empty(at.size, np.float32), np.empty(at.size, np.int32)
    bits = rates.view(np.int32)
    for g in range(len(x)):
        page = first[g]
        while page >= 0:
            page_of[links[page, 0]] = page
            page = links[page, 1]
        for i in range(at.size):
            rates[i] = x[g, at[i]]
        for i in range(at.size):
            of_class = _count_class(np.int64(y[g, at[i]])) * _PAGES_PER_CLASS * KEYS_PER_PAGE
            cells[i] = of_class + _rate_key(bits[i]) + _OFFSET
        done = _tally(cells, 0, page_of, pages)
        while done < cells.size:  # the next cell lies in a page that is yet to be made
            if n_pages == len(pages):
                pages, links = _grown(pages), _grown(links)
            which = cells[done] // KEYS_PER_PAGE
            page_of[which] = n_pages
            links[n_pages, 0], links[n_pages, 1] = which, first[g]
            first[g] = n_pages
            n_pages += 1
            done = _tally(cells, done, page_of, pages)
        page = first[g]
        while page >= 0:
            page_of[links[page, 0]] = -1
            page = links[page, 1]
    return pages, links, n_pages


@njit(cache=True, nogil=True)
def _tally(cells: Array, start: int, page_of: Array, pages: Array) -> int:
    """Count ``cells`` (n,) from ``start`` up to the first whose page is missing; returns its place.

    A cell is (class · pages of a class + page) · keys in a page + key, page and key from 0.
    """
    for i in range(start, cells.size):
        page = page_of[cells[i] // KEYS_PER_PAGE]
        if page < 0:
            return i
        pages[page, cells[i] % KEYS_PER_PAGE] += np.uint32(1)
    return int(cells.size)


@njit(cache=True, nogil=True)
def _grown(rows: Array) -> Array:
    """A copy with half as many rows again, the new ones 0."""
    n = len(rows)
    out = np.zeros((n + n // 2 + 1, rows.shape[1]), rows.dtype)
    out[:n] = rows
    return out
