"""Reads finished stores by patch index, from any process, without locks, checking checksums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from scipy import sparse

from virchow_st.errors import StoreError
from virchow_st.store import format as fmt
from virchow_st.store.datafile import DataFile
from virchow_st.store.format import Kind, PatchInfo, SparseCounts
from virchow_st.store.genes import find_genes
from virchow_st.store.manifest import DATA, read_manifest
from virchow_st.store.pages import Place
from virchow_st.store.patients import patient_name
from virchow_st.store.tokens import unpack_codes, unpack_tokens
from virchow_st.types import PATCH_POSITIONS, Array, BoolArray, Float32Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    from virchow_st.store.panel_reads import PanelCounts


@dataclass(frozen=True)
class Genes:
    """The genes of a store, in the order of its counts.

    Attributes:
        ids: gene ids, each occurring once.
        symbols: gene symbols; some may occur more than once.
        totals: (G,) int64 UMIs over all patches.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    totals: Int64Array

    def __len__(self) -> int:
        return len(self.ids)

    def indices(self, *names: str) -> Int64Array:
        """Indices of genes given by symbol or id, as `Patch.counts` takes them.

        Raises:
            ConfigError: the store has no gene of that name, or a symbol belongs to several genes.
        """
        return find_genes(names, self.ids, self.symbols, "store")


class Store:
    """A finished store; ``store[i]`` is a `Patch`. It can be pickled and used after a fork.

    Args:
        path: folder of the store.

    Attributes:
        path: folder of the store.
        manifest: content of ``store.json`` (docs/store-format.md).
        genes: the genes of the store.

    Raises:
        StoreError: the folder is missing, unfinished, not a store, or damaged.

    Example:
        >>> store = open_store("P1.vst")  # doctest: +SKIP
        >>> store[0].tokens.shape  # doctest: +SKIP
        (16, 16, 1280)
        >>> pigr = store.genes.indices("PIGR")  # doctest: +SKIP
        >>> store[0].dense_counts(pigr).shape  # doctest: +SKIP
        (1, 128, 128)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)
        genes = self.manifest["genes"]
        self.genes = Genes(
            tuple(genes["id"]), tuple(genes["symbol"]), np.asarray(genes["total"], np.int64)
        )
        self._folder = self.path.resolve()  # absolute, so that the working directory may change
        self._data = DataFile(self._folder / DATA)
        self._sound: set[bytes] = set()  # keys of records whose checksum has been compared
        n_records = len(self._data.places)
        if n_records != len(self) * len(Kind):
            raise StoreError(
                f"{self.path}: expected {len(self) * len(Kind)} records, found {n_records}; "
                f"the copy is incomplete, extract or copy it again"
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
        """Name of the slide's patient, normalised by `patient_name`."""
        return patient_name(self.manifest["patient"])

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """Shape of a patch's tokens, (T, T, D)."""
        grid = self.manifest["grid"]
        return grid, grid, self.manifest["dim"]

    @property
    def token_dtype(self) -> str:
        """Type in which the records hold tokens, ``float16`` or ``int8``."""
        return str(self.manifest["token_dtype"])

    @cached_property
    def patch_table(self) -> list[PatchInfo]:
        """Position, corners and totals of every patch; read once and cached."""
        return [patch.info for patch in self]

    @cached_property
    def places(self) -> dict[tuple[int, int], int]:
        """First bin (row0, col0) → index of the patch."""
        return {(info.row0, info.col0): i for i, info in enumerate(self.patch_table)}

    def record(self, index: int, kind: Kind) -> memoryview:
        """Copy of the payload of one record, after comparing its checksum.

        Raises:
            StoreError: the record is missing or damaged.
        """
        place = self._place(index, kind)
        return fmt.unseal(place.key, self._data.read(place))

    def value_bytes(self, index: int, kind: Kind) -> int:
        """Size of one record in bytes including its checksum; the record is not read."""
        return self._place(index, kind).size

    def _place(self, index: int, kind: Kind) -> Place:
        place = self._data.places.get(fmt.key(index, kind))
        if place is None:
            raise StoreError(f"{self.path}: patch {index} has no {kind.name} record")
        return place

    def unpack(self, index: int, kind: Kind, unpack: Callable[[memoryview], Any]) -> Any:
        """Apply an unpacker to one record.

        The unpacker gets a view into the mapped file, so that tokens are copied only once; its
        result must own its memory. The checksum is compared when this object reads the record for
        the first time, because a finished store does not change and training reads it many times.

        Raises:
            StoreError: the record is damaged; the message names the store and the patch.
        """
        try:
            place = self._place(index, kind)
            value = self._data.view(place)
            if place.key in self._sound:
                payload = fmt.payload_of(value)
            else:
                payload = fmt.unseal(place.key, value)
                self._sound.add(place.key)
            result = unpack(payload)
            payload.release()  # raises BufferError if the result is a view of the map
            return result
        except StoreError as e:
            raise StoreError(f"{self.path}: patch {index}: {e}; see `vst verify`") from None

    def __reduce__(self) -> tuple[type[Store], tuple[Any, ...]]:
        """Pickle the folder's path only: another process opens and checks the file itself."""
        return Store, (self._folder,)


@dataclass(frozen=True)
class Patch:
    """One patch of a store; every access to a property reads its record again.

    Attributes:
        store: the store.
        index: index of the patch in it.
    """

    store: Store
    index: int

    @property
    def info(self) -> PatchInfo:
        """Position, corners, tissue fraction and total UMIs."""
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
        """(T, T, D) float16 tokens; those of an int8 store are converted."""
        shape, dtype = self.store.token_shape, self.store.token_dtype
        return self._unpack(Kind.TOKENS, lambda payload: unpack_tokens(payload, shape, dtype))

    @property
    def token_codes(self) -> tuple[Array, Float32Array]:
        """Codes (T, T, D) int8 and scales (D,) float32 of the tokens in an int8 store.

        They take half the memory of `tokens`, which are their product rounded to float16.
        """
        shape = self.store.token_shape
        return self._unpack(Kind.TOKENS, lambda payload: unpack_codes(payload, shape))

    @property
    def cls(self) -> Array:
        """(D,) float16, the class token."""
        shape = self.store.token_shape[2:]
        return self._unpack(Kind.CLASS_TOKEN, lambda payload: unpack_tokens(payload, shape))

    @property
    def sparse_counts(self) -> SparseCounts:
        """Non-zero counts of all genes."""
        n_genes = len(self.store.genes)
        return self._unpack(Kind.COUNTS, lambda payload: fmt.unpack_counts(payload, n_genes))

    def counts(self, panel: Sequence[int] | Int64Array | None = None) -> sparse.csr_array:
        """UMIs as a sparse (G, 128·128) uint32 matrix.

        Args:
            panel: gene indices in any order; all genes of the store if None.
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

    def dense_counts(
        self, panel: Sequence[int] | Int64Array, out: Float32Array | None = None
    ) -> Float32Array:
        """UMIs of a panel as (G, 128, 128) float32; faster than `counts` for few genes.

        Args:
            panel: gene indices in any order; an index may occur several times.
            out: C-contiguous array to overwrite, such as part of a batch; allocated if None.

        Raises:
            IndexError: a gene index outside the store's list.
            ValueError: the panel or the buffer has another shape or type.
        """
        from virchow_st.store import panel_reads  # imports numba, which few readers need

        n_genes = len(self.store.genes)
        return self._unpack(
            Kind.COUNTS, lambda payload: panel_reads.read_dense(payload, n_genes, panel, out)
        )

    def panel_counts(self, panel: Sequence[int] | Int64Array, bin_um: int = 2) -> PanelCounts:
        """Non-zero UMIs of a panel, at 2 µm or summed to bins of 4, 8 or 16 µm.

        Args:
            panel: as for `dense_counts`.
            bin_um: side of a bin: 2, 4, 8 or 16 µm.

        Raises:
            IndexError, ValueError: as for `dense_counts`.
        """
        from virchow_st.store import panel_reads

        n_genes = len(self.store.genes)
        return self._unpack(
            Kind.COUNTS,
            lambda payload: panel_reads.read_sparse(payload, n_genes, panel).pooled(bin_um),
        )

    def _unpack(self, kind: Kind, unpack: Callable[[memoryview], Any]) -> Any:
        return self.store.unpack(self.index, kind, unpack)


def open_store(path: Path | str) -> Store:
    """Open a finished store; see `Store`."""
    return Store(path)


def verify(store: Store, on_patch: Callable[[int, int], None] | None = None) -> list[str]:
    """Compare the checksum of every record and unpack it.

    Args:
        store: the store.
        on_patch: called with the number of patches done and their total.

    Returns:
        One line per damaged record.
    """
    faults: list[str] = []
    hasher = xxhash.xxh64()
    n_genes, shape, dtype = len(store.genes), store.token_shape, store.token_dtype
    unpackers: dict[Kind, Callable[[memoryview], Any]] = {
        Kind.PATCH: fmt.unpack_patch,
        Kind.TISSUE_MASK: fmt.unpack_mask,
        Kind.VALIDITY_MASK: fmt.unpack_mask,
        Kind.COUNTS: lambda payload: fmt.unpack_counts(payload, n_genes),
        Kind.IMAGE: fmt.unpack_image,
        Kind.CLASS_TOKEN: lambda payload: unpack_tokens(payload, shape[2:]),
        Kind.TOKENS: lambda payload: unpack_tokens(payload, shape, dtype),
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
        faults.append("the records are not those for which the manifest was written")
    return faults
