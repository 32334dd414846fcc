"""Finds the records of an LMDB file without trusting any number in it.

LMDB trusts its pages: one flipped bit in a branch or leaf page can end the process with SIGBUS, and
so can a file that is truncated while it is mapped. Therefore these pages (about one in 1,500 of a
store) are read here first, with plain reads, and every number in them is checked. The result is a
list of offsets and sizes, with which readers work without LMDB.

The layout is that of LMDB's data version 1 (liblmdb 0.9, ``struct MDB_page``, ``MDB_meta`` and
``MDB_node`` in mdb.c), on a little-endian machine.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from virchow_st.errors import StoreError

_PAGE = struct.Struct("<QHHHH")  # page number, pad, flags, end of node pointers, start of nodes
_META = struct.Struct("<IIQQ")  # magic, data version, address, map size
_TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf, overflow pages, entries, root
_META_END = struct.Struct("<QQ")  # last page, transaction
_NODE = struct.Struct("<HHHH")  # data size (low, high) or page (low, middle), flags or high, key
_PAGE_NUMBER = struct.Struct("<Q")

_MAGIC, _DATA_VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _META_PAGE = 0x01, 0x02, 0x08
_INTEGER_KEYS = 0x08  # set for the tree of free pages
_ELSEWHERE = 0x01  # the node's data is stored on overflow pages
_NO_ROOT = 2**64 - 1
_MAX_DEPTH = 32
_TREES_AT = _PAGE.size + _META.size
_PAGE_SIZES = frozenset(1 << bits for bits in range(9, 16))  # sizes that liblmdb can be built for


class Place(NamedTuple):
    """Key of a record, and offset and size of its value in the file, in bytes."""

    key: bytes
    offset: int
    size: int


@dataclass(frozen=True)
class _Tree:
    root: int
    depth: int
    entries: int
    pages: int  # branch and leaf pages


@dataclass(frozen=True)
class _Meta:
    transaction: int
    last_page: int
    free: _Tree
    main: _Tree


class _DamagedError(Exception):
    """The pages are damaged; the message describes how."""


def find_records(fd: int, path: Path) -> dict[bytes, Place]:
    """Find every record of an open ``data.mdb``.

    It takes one read per branch and leaf page, and memory for these and for the result; the values
    of the records are not read.

    Args:
        fd: descriptor of the file.
        path: its path, for the message.

    Returns:
        Key → place in the file, in key order. Every place lies within the file.

    Raises:
        StoreError: the file is truncated or its pages are damaged.
    """
    try:
        return {place.key: place for place in _Walk(fd).main()}
    except (_DamagedError, OSError) as e:
        raise StoreError(
            f"{path}: damaged or incomplete ({e}); copy the store again or extract it again"
        ) from None


def check_for_writing(path: Path) -> None:
    """Refuse an unfinished ``data.mdb`` that would crash LMDB or make it overwrite records.

    Raises:
        StoreError: the file is truncated, or its pages or its list of free pages are damaged.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            _Walk(fd).free()
        finally:
            os.close(fd)
    except (_DamagedError, OSError) as e:
        raise StoreError(
            f"{path}: damaged ({e}); delete the folder and run its `vst extract` again"
        ) from None


def clear_unused(path: Path) -> None:
    """Fill unused bytes with zeros, so that equal records give files of equal bytes.

    LMDB leaves old content in the unused parts of its pages, which depends on where a writer was
    stopped and resumed. These parts and all free pages are zeroed, and the file is truncated after
    its last page. Nothing that LMDB reads changes. The file must not be open in LMDB.

    Raises:
        StoreError: the file is damaged.
        OSError: the file cannot be written.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        walk = _Walk(fd)
        for start, end in walk.unused():
            if os.pread(fd, end - start, start).strip(b"\0"):
                os.pwrite(fd, bytes(end - start), start)
        os.ftruncate(fd, walk.n_bytes)
        os.fsync(fd)
    except _DamagedError as e:
        raise StoreError(f"{path}: damaged ({e}); delete the folder and extract again") from None
    finally:
        os.close(fd)


class _Walk:
    """Walks the trees of one file; a walk visits every page once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._page_size = self._read_page_size()
        metas = [self._meta(number) for number in (0, 1)]
        self._meta_now = max(metas, key=lambda meta: meta.transaction)  # the last commit
        self._end = self._meta_now.last_page + 1  # in pages
        if self._end * self._page_size > self._size:
            raise _DamagedError(f"expected {self._end * self._page_size} bytes, got {self._size}")
        self._taken = {0, 1}  # pages that are referenced

    def main(self) -> list[Place]:
        """Every record, after checking that keys increase and that no two share overflow pages."""
        places = self._tree(self._meta_now.main)
        own = [self._own_pages(place) for place in places if self._has_own_pages(place)]
        own += [(number, number + 1) for number in self._taken]
        if any(start < end for (_, end), (start, _) in pairwise(sorted(own))):
            raise _DamagedError("two records share a page")
        return places

    @property
    def n_bytes(self) -> int:
        """Size of the file up to the end of its last page."""
        return self._end * self._page_size

    def unused(self) -> Iterator[tuple[int, int]]:
        """Start and end of every range of bytes that neither a tree nor a record uses."""
        size = self._page_size
        places = [*self.main(), *self._tree(self._meta_now.free, order=_backwards)]
        own = sorted(self._own_pages(p) for p in places if self._has_own_pages(p))
        for number in (0, 1):
            yield number * size + _TREES_AT + 2 * _TREE.size + _META_END.size, (number + 1) * size
        for number in sorted(self._taken - {0, 1}):
            page = self._read(number * size, size)
            for start, end in _gaps(page):
                yield number * size + start, number * size + end
        for place in places:
            if self._has_own_pages(place):
                yield place.offset + place.size, self._own_pages(place)[1] * size
        kept = sorted([*own, *((number, number + 1) for number in self._taken)])
        for (_, end), (start, _) in pairwise([*kept, (self._end, self._end)]):
            if start > end:
                yield end * size, start * size

    def free(self) -> None:
        """Check the list of free pages: they must exist and must not be used by anything else."""
        taken = set[int]()
        for place in self.main():
            taken.update(range(*self._own_pages(place)))
        for place in self._tree(self._meta_now.free, order=_backwards):
            listed = self._read(place.offset, place.size)
            count = _PAGE_NUMBER.unpack_from(listed)[0] if place.size >= 8 else -1
            if len(place.key) != 8 or place.size != 8 * (count + 1):
                raise _DamagedError("the list of free pages has a wrong length")
            numbers = list(struct.unpack_from(f"<{count}Q", listed, 8))
            falling = all(a > b for a, b in pairwise(numbers))
            if not falling or any(n >= self._end for n in numbers):
                raise _DamagedError("the list of free pages is out of order")
            taken.update(range(*self._own_pages(place)))
            if not (taken | self._taken).isdisjoint(numbers):
                raise _DamagedError("a page in use is listed as free")
            taken.update(numbers)

    def _read_page_size(self) -> int:
        head = self._read(0, _TREES_AT + _TREE.size)
        size = int(_TREE.unpack_from(head, _TREES_AT)[0])
        if size not in _PAGE_SIZES:
            raise _DamagedError(f"not an LMDB file, or a page size of {size}")
        return size

    def _meta(self, number: int) -> _Meta:
        page = self._read(number * self._page_size, self._page_size)
        own_number, _, flags, _, _ = _PAGE.unpack_from(page)
        magic, version, _, _ = _META.unpack_from(page, _PAGE.size)
        if (own_number, flags, magic, version) != (number, _META_PAGE, _MAGIC, _DATA_VERSION):
            raise _DamagedError(
                f"page {number} is not a header of LMDB data version {_DATA_VERSION}"
            )
        trees = []
        for at, expected_flags in ((0, _INTEGER_KEYS), (1, 0)):
            pad, flags, depth, branch, leaf, _, entries, root = _TREE.unpack_from(
                page, _TREES_AT + at * _TREE.size
            )
            expected_pad = self._page_size if at == 0 else 0
            if (pad, flags) != (expected_pad, expected_flags) or depth > _MAX_DEPTH:
                raise _DamagedError(f"page {number}: its description of the trees is damaged")
            trees.append(_Tree(root, depth, entries, branch + leaf))
        last_page, transaction = _META_END.unpack_from(page, _TREES_AT + 2 * _TREE.size)
        return _Meta(transaction, last_page, *trees)

    def _tree(self, tree: _Tree, order: Callable[[bytes], bytes] = bytes) -> list[Place]:
        places: list[Place] = []
        before = len(self._taken)
        if (tree.root == _NO_ROOT) != (tree.depth == 0):
            raise _DamagedError("a tree without a root, or a root without a tree")
        if tree.depth:
            self._descend(tree.root, tree.depth, order, places)
        if len(places) != tree.entries or len(self._taken) - before != tree.pages:
            raise _DamagedError(f"expected {tree.entries} records, found {len(places)}")
        if any(order(a.key) >= order(b.key) for a, b in pairwise(places)):
            raise _DamagedError("records out of order")
        return places

    def _descend(
        self, number: int, depth: int, order: Callable[[bytes], bytes], places: list[Place]
    ) -> None:
        """Append the places below page ``number``; ``depth`` is 1 for a leaf page."""
        if number in self._taken:
            raise _DamagedError(f"page {number} is pointed to twice")
        start, page = self._page(number, _LEAF if depth == 1 else _BRANCH)
        self._taken.add(number)
        for i, node in enumerate(_nodes(page)):
            low, high, flags, key_size = _NODE.unpack_from(page, node)
            data = node + _NODE.size + key_size
            if data > len(page):
                raise _DamagedError(f"page {number}: a key reaches beyond it")
            key = page[node + _NODE.size : data]
            if depth > 1:
                first = len(places)
                self._descend(low | high << 16 | flags << 32, depth - 1, order, places)
                if i and not (
                    order(places[first - 1].key) < order(key) <= order(places[first].key)
                ):
                    raise _DamagedError(f"page {number}: leads to the wrong records")
                continue
            size = low | high << 16
            if flags == 0:
                place = Place(key, start + data, size)
                is_inside = data + size <= len(page)
            elif flags == _ELSEWHERE and data + _PAGE_NUMBER.size <= len(page):
                own = _PAGE_NUMBER.unpack_from(page, data)[0]
                place = Place(key, own * self._page_size + _PAGE.size, size)
                is_inside = own > 1 and place.offset + size <= self._end * self._page_size
            else:
                raise _DamagedError(f"page {number}: unknown flags {flags}")
            if not is_inside:
                raise _DamagedError(f"page {number}: a record reaches beyond its end or the file's")
            places.append(place)

    def _page(self, number: int, expected_flags: int) -> tuple[int, bytes]:
        """Offset and bytes of a branch or leaf page."""
        if not 1 < number < self._end:
            raise _DamagedError(f"page {number} of {self._end} is pointed to")
        start = number * self._page_size
        page = self._read(start, self._page_size)
        own_number, _, flags, lower, upper = _PAGE.unpack_from(page)
        if (own_number, flags) != (number, expected_flags):
            raise _DamagedError(f"page {number} is not what is pointed to")
        if not _PAGE.size < lower <= upper <= self._page_size or lower % 2:
            raise _DamagedError(f"page {number}: its header is damaged")
        return start, page

    def _has_own_pages(self, place: Place) -> bool:
        return place.offset % self._page_size == _PAGE.size

    def _own_pages(self, place: Place) -> tuple[int, int]:
        """First overflow page of a value and the one after its last; empty for one in a leaf."""
        if not self._has_own_pages(place):
            return 0, 0
        end = place.offset + place.size
        return place.offset // self._page_size, -(-end // self._page_size)

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise _DamagedError(f"expected at least {offset + size} bytes, got {self._size}")
        return data


def _backwards(key: bytes) -> bytes:
    """Sort key of the tree of free pages, whose keys are little-endian u64 transaction numbers."""
    return key[::-1]


def _nodes(page: bytes) -> tuple[int, ...]:
    """Offsets of a page's nodes, after checking that their headers lie within the page."""
    number, _, _, lower, upper = _PAGE.unpack_from(page)
    nodes = struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", page, _PAGE.size)
    if any(not upper <= node <= len(page) - _NODE.size for node in nodes):
        raise _DamagedError(f"page {number}: a node lies outside it")
    return nodes


def _gaps(page: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the unused ranges of bytes in a branch or leaf page."""
    _, _, flags, lower, _ = _PAGE.unpack_from(page)
    held = [(0, lower)]
    for node in _nodes(page):
        low, high, node_flags, key_size = _NODE.unpack_from(page, node)
        if flags == _BRANCH:
            data = 0
        else:
            data = _PAGE_NUMBER.size if node_flags == _ELSEWHERE else low | high << 16
        held.append((node, node + _NODE.size + key_size + data))
    held.sort()
    for (_, end), (start, _) in pairwise([*held, (len(page), len(page))]):
        if start > end:
            yield end, start
