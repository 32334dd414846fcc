"""Read a finished store: by index, from any process, without locks; every checksum compared."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import xxhash
from scipy import sparse

from virchow_st.errors import StoreError
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind, PatchInfo, SparseCounts
from virchow_st.store.manifest import DATA, read_manifest
from virchow_st.types import PATCH_POSITIONS, Array, BoolArray, Int64Array, UInt8Array

# An LMDB environment must be opened once in a process and never carried across a fork; so
# environments live here, by the device and inode of their file, and a `Store` holds only its path.
# By path would not do: folders are moved, and deleted and written anew.
_environments: dict[tuple[int, int], lmdb.Environment] = {}
_opening = threading.Lock()


def _start_afresh() -> None:
    """In a forked child: give up the parent's environments, and a lock it may have held."""
    global _opening
    _opening = threading.Lock()
    for environment in _environments.values():
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_start_afresh)


@dataclass(frozen=True)
class Genes:
    """The genes of a store, in the order of its counts.

    Attributes:
        ids: gene ids, unique.
        symbols: gene symbols; they may repeat.
        totals: (G,) int64 UMIs over all patches.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    totals: Int64Array

    def __len__(self) -> int:
        return len(self.ids)


class Store:
    """A finished store; ``store[i]`` is a `Patch`. Picklable, and usable after a fork.

    Args:
        path: folder of the store.

    Raises:
        StoreError: not there, unfinished, foreign or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)
        genes = self.manifest["genes"]
        self.genes = Genes(
            tuple(genes["id"]), tuple(genes["symbol"]), np.asarray(genes["total"], np.int64)
        )
        self._folder = self.path.resolve()  # stays the same when the working directory changes
        self._file = _file_identity(self._folder / DATA)
        n_records = self._environment().stat()["entries"]
        if n_records != len(self) * len(Kind):
            raise StoreError(
                f"{self.path}: expected {len(self) * len(Kind)} records, found {n_records}; "
                f"the copy is not whole, extract or copy it again"
            )

    def __len__(self) -> int:
        return int(self.manifest["n_patches"])

    def __getitem__(self, index: int) -> Patch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index} of a store of {len(self)}")
        return Patch(self, index % len(self))

    def __iter__(self) -> Iterator[Patch]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {self.patient}, {len(self)} patches)"

    @property
    def patient(self) -> str:
        """Patient the slide is of."""
        return str(self.manifest["patient"])

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """(T, T, D)."""
        grid = self.manifest["grid"]
        return grid, grid, self.manifest["dim"]

    @cached_property
    def patch_table(self) -> list[PatchInfo]:
        """Where every patch lies; read once."""
        return [patch.info for patch in self]

    def record(self, index: int, kind: Kind) -> memoryview:
        """Payload of one record, copied out of the map, its checksum compared."""
        record_key = fmt.key(index, kind)
        try:
            with self._environment().begin() as txn:
                value = txn.get(record_key)
        except lmdb.Error as e:
            raise StoreError(f"{self.path}: patch {index}, {kind.name}: {e}") from None
        if value is None:
            raise StoreError(f"{self.path}: patch {index} has no {kind.name} record")
        return fmt.unseal(record_key, memoryview(value))

    def unpack(self, index: int, kind: Kind, unpack: Callable[[memoryview], Any]) -> Any:
        """One record through its unpacker; errors name the store and the patch."""
        try:
            return unpack(self.record(index, kind))
        except StoreError as e:
            raise StoreError(f"{self.path}: patch {index}: {e}; see `vst verify`") from None

    def _environment(self) -> lmdb.Environment:
        if self._file not in _environments:
            with _opening:
                if self._file not in _environments:
                    _environments[self._file] = _open_environment(self._folder)
        return _environments[self._file]


def _file_identity(data: Path) -> tuple[int, int]:
    try:
        file = data.stat()
    except OSError as e:
        raise StoreError(
            f"{data}: cannot be opened ({e.strerror}); copy or extract it again"
        ) from None
    return file.st_dev, file.st_ino


def _open_environment(path: Path) -> lmdb.Environment:
    data = path / DATA
    try:
        size = data.stat().st_size
        environment = lmdb.open(str(path), readonly=True, lock=False, readahead=True, max_dbs=0)
    except (lmdb.Error, OSError) as e:
        raise StoreError(f"{data}: cannot be opened ({e}); copy or extract it again") from None
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < expected:  # reading past the end of a mapped file would kill the process
        environment.close()
        raise StoreError(
            f"{data}: expected at least {expected} bytes, got {size}; the copy is not whole, "
            f"copy or extract it again"
        )
    return environment


@dataclass(frozen=True)
class Patch:
    """One patch of a store; each property reads its record anew."""

    store: Store
    index: int

    @property
    def info(self) -> PatchInfo:
        """Place, corners, tissue fraction and total UMIs."""
        return self._unpack(Kind.PATCH, fmt.unpack_patch)

    @property
    def row0(self) -> int:
        """array_row of the first bin."""
        return self.info.row0

    @property
    def col0(self) -> int:
        """array_col of the first bin."""
        return self.info.col0

    @property
    def tissue_mask(self) -> BoolArray:
        """(128, 128) bool, True where Space Ranger found tissue."""
        return self._unpack(Kind.TISSUE_MASK, fmt.unpack_mask)

    @property
    def validity_mask(self) -> BoolArray:
        """(128, 128) bool, True where the bin lies wholly inside the slide image."""
        return self._unpack(Kind.VALIDITY_MASK, fmt.unpack_mask)

    @property
    def image(self) -> UInt8Array:
        """(256, 256, 3) uint8 RGB, 1 µm/px, in bin orientation."""
        return self._unpack(Kind.IMAGE, fmt.unpack_image)

    @property
    def tokens(self) -> Array:
        """(T, T, D) float16."""
        shape = self.store.token_shape
        return self._unpack(Kind.TOKENS, lambda payload: fmt.unpack_tokens(payload, shape))

    @property
    def cls(self) -> Array:
        """(D,) float16, the class token."""
        shape = self.store.token_shape[2:]
        return self._unpack(Kind.CLASS_TOKEN, lambda payload: fmt.unpack_tokens(payload, shape))

    @property
    def sparse_counts(self) -> SparseCounts:
        """Non-zero counts of every gene, as they lie in the record."""
        n_genes = len(self.store.genes)
        return self._unpack(Kind.COUNTS, lambda payload: fmt.unpack_counts(payload, n_genes))

    def counts(self, panel: Sequence[int] | Int64Array | None = None) -> sparse.csr_array:
        """UMIs as a sparse (G, 128·128) uint32 matrix.

        Args:
            panel: gene indices in the wanted order; all genes of the store when None.
        """
        stored = self.sparse_counts
        n_genes = len(self.store.genes)
        sizes = np.zeros(n_genes, np.int64)
        sizes[stored.genes] = np.diff(stored.indptr)
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        columns = stored.positions.astype(np.int32)
        matrix = sparse.csr_array(
            (stored.counts, columns, indptr), shape=(n_genes, PATCH_POSITIONS)
        )
        return matrix if panel is None else matrix[np.asarray(panel, np.int64)]

    def _unpack(self, kind: Kind, unpack: Callable[[memoryview], Any]) -> Any:
        return self.store.unpack(self.index, kind, unpack)


def open_store(path: Path | str) -> Store:
    """Open a finished store; see `Store`."""
    return Store(path)


def verify(store: Store, on_patch: Callable[[int, int], None] | None = None) -> list[str]:
    """Compare and unpack every record; returns a line for each that is damaged."""
    faults: list[str] = []
    hasher = xxhash.xxh64()
    n_genes, shape = len(store.genes), store.token_shape
    unpackers: dict[Kind, Callable[[memoryview], Any]] = {
        Kind.PATCH: fmt.unpack_patch,
        Kind.TISSUE_MASK: fmt.unpack_mask,
        Kind.VALIDITY_MASK: fmt.unpack_mask,
        Kind.COUNTS: lambda payload: fmt.unpack_counts(payload, n_genes),
        Kind.IMAGE: fmt.unpack_image,
        Kind.CLASS_TOKEN: lambda payload: fmt.unpack_tokens(payload, shape[2:]),
        Kind.TOKENS: lambda payload: fmt.unpack_tokens(payload, shape),
    }
    for index in range(len(store)):
        for kind, unpack in unpackers.items():
            try:
                payload = store.record(index, kind)
                unpack(payload)
            except StoreError as e:
                faults.append(f"patch {index}, {kind.name}: {e}")
            else:
                hasher.update(fmt.digest(fmt.key(index, kind), payload).to_bytes(8, "little"))
        if on_patch:
            on_patch(index + 1, len(store))
    if not faults and hasher.hexdigest() != store.manifest["records_xxh64"]:
        faults.append("the records are not those the manifest was written for")
    return faults
