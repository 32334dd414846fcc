"""Joint histograms of predicted rates and observed counts per gene, the input of rank scores.

Ranks are known only after every bin has been seen, and a slide has millions of bins. Rates and
counts are therefore rounded, and the number of times that each pair of rounded values occurs is
counted. The rank scores of the rounded values follow exactly from these numbers, in one pass over
the patches and in memory that does not grow with their number.

Rates are taken as float32 and keep 9 significant bits: 256 values per octave, rounded towards zero.
Rates of magnitude below 2⁻²⁰ UMIs all become 0; those of magnitude 2²⁰ and above all become one
value per sign. Counts keep 6 significant bits: they are exact below 64, with 32 values per octave
from there. The rounded values are numbered in increasing order; the number of a rate is its *key*,
that of a count its *class*.

The pairs of one gene fall into few octaves and classes, so the histogram is stored in pages of 256
keys. A page is allocated when the first pair falls into it; the pages of a gene form a linked list.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Int64Array

_BITS = 8  # bits of a rate's significand that are kept, not counting the leading 1
KEYS_PER_PAGE = 2**_BITS
"""Number of keys per page, and per octave of rates."""
OCTAVES = 20
"""Rates of magnitude 2⁻²⁰ to 2²⁰ UMIs are resolved; smaller and larger ones share a key."""
EXACT_COUNTS = 64
"""Every count below this has its own class; from here on an octave has half as many classes."""
_TOP_KEY = 2 * OCTAVES * KEYS_PER_PAGE
_OFFSET = _TOP_KEY + KEYS_PER_PAGE - 1  # makes every key positive, and key 1 the start of a page
_PAGES_PER_CLASS = 2 * (_TOP_KEY // KEYS_PER_PAGE) + 1
_N_CLASSES = EXACT_COUNTS + 17 * (EXACT_COUNTS // 2)  # up to 2²³, more than 64 uint16 bins hold
_MOST_BINS = 2**32 - 1


class JointHistogram:
    """Joint histogram of rounded rate and rounded count for each of G genes.

    Example:
        >>> import numpy as np
        >>> histogram = JointHistogram(n_genes=1)
        >>> rate, counts = np.array([[0.5, 0.5, 2.0]]), np.array([[0, 0, 3]])
        >>> histogram.update(rate, counts, mask=np.array([True, True, True]))
        >>> keys, classes, times = histogram.cells(0)
        >>> sorted(zip(classes.tolist(), times.tolist()))  # two bins of count 0, one of count 3
        [(0, 2), (3, 1)]
    """

    def __init__(self, n_genes: int) -> None:
        self.n_bins = 0
        self._first = np.full(n_genes, -1, np.int32)  # first page of each gene, -1 for none
        self._n_pages = 0
        self._pages = np.zeros((max(2 * n_genes, 1), KEYS_PER_PAGE), np.uint32)
        self._links = np.zeros((len(self._pages), 2), np.int32)  # per page: its address; next page

    @property
    def nbytes(self) -> int:
        """Memory used, in bytes: about 1 KB per page."""
        return self._pages.nbytes + self._links.nbytes + self._first.nbytes

    def update(self, x: Array, y: Array, mask: BoolArray) -> None:
        """Add the pairs of one patch.

        Args:
            x: (G, N) real, predicted UMIs per bin, finite where the mask is True.
            y: (G, N) observed UMIs per bin, whole numbers of at least 0 where the mask is True.
            mask: (N,) bool; bins where it is False are ignored.

        Raises:
            OverflowError: More than 2³² − 1 bins in total, the limit of a uint32 counter.
        """
        at = np.flatnonzero(mask)
        if self.n_bins + at.size > _MOST_BINS:
            raise OverflowError(f"expected at most {_MOST_BINS} bins in a joint histogram")
        self._pages, self._links, self._n_pages = _count(
            x, y, at, self._first, self._pages, self._links, self._n_pages
        )
        self.n_bins += at.size

    def cells(self, gene: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Return the pairs that occur for one gene, in no particular order.

        Returns:
            (n,) int64 keys of the rates, (n,) int64 classes of the counts, and (n,) int64 number
            of bins with that pair.
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
    """Key of a rate, from the bits of its float32 value: signed and increasing, 0 for rate 0."""
    size = bits & 0x7FFFFFFF
    key = (size >> (23 - _BITS)) - ((127 - OCTAVES) << _BITS) + 1
    key = min(max(key, 0), _TOP_KEY)
    return -key if bits < 0 else key


@njit(cache=True, nogil=True)
def _count_class(k: int) -> int:
    """Class of a count: the index of its rounded value in increasing order."""
    octave = 0
    while k >= EXACT_COUNTS:
        k >>= 1
        octave += 1
    return min(k + octave * (EXACT_COUNTS // 2), _N_CLASSES - 1)


@njit(cache=True, nogil=True)
def _count(
    x: Array, y: Array, at: Int64Array, first: Array, pages: Array, links: Array, n_pages: int
) -> tuple[Array, Array, int]:
    """Add the pairs of the bins ``at``; returns pages and links, enlarged if they were full."""
    page_of = np.full(_N_CLASSES * _PAGES_PER_CLASS, -1, np.int32)  # pages of the current gene
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
        while done < cells.size:  # the next cell lies in a page that is not allocated yet
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
    """Count ``cells`` (n,) from ``start`` to the first whose page is missing; returns its index.

    A cell is the flat index (class · pages per class + page) · keys per page + key.
    """
    for i in range(start, cells.size):
        page = page_of[cells[i] // KEYS_PER_PAGE]
        if page < 0:
            return i
        pages[page, cells[i] % KEYS_PER_PAGE] += np.uint32(1)
    return int(cells.size)


@njit(cache=True, nogil=True)
def _grown(rows: Array) -> Array:
    """Copy of an array with half as many rows again; the new rows are 0."""
    n = len(rows)
    out = np.zeros((n + n // 2 + 1, rows.shape[1]), rows.dtype)
    out[:n] = rows
    return out
