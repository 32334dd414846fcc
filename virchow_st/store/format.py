"""Packs and unpacks the records of a store, as docs/store-format.md specifies their bytes.

Files and LMDB are handled elsewhere: `virchow_st.store.writer` and `virchow_st.store.reader`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import cv2
import numpy as np
import xxhash

from virchow_st.errors import StoreError
from virchow_st.types import (
    PATCH_BINS,
    PATCH_POSITIONS,
    STORED_IMAGE_PX,
    Array,
    BoolArray,
    Float64Array,
    Int64Array,
    UInt8Array,
)

FORMAT = "virchow_st.store/1"
"""Format of a store with up to `MAX_NARROW_GENES` genes."""
FORMAT_WIDE = "virchow_st.store/2"
"""Format of a store with more than `MAX_NARROW_GENES` genes."""
JPEG_QUALITY = 90
MAX_NARROW_GENES = 65_535
"""Largest number of genes for which gene indices are ``u16`` and the store has format 1."""
MAX_GENES = (1 << 32) - 1
MAX_PANEL = 1 << 16
"""Largest number of genes in a panel: sparse reads give the index in the panel as ``u16``."""
MAX_DIM = 65_535
MAX_PATCHES = 1 << 32

_CHECKSUM_BYTES = 8
_KEY = struct.Struct(">IB")
_CHECKSUM = struct.Struct("<Q")
_PATCH = struct.Struct("<ii8dfIQ")
_COUNTS_HEADER = struct.Struct("<III")
_POSITION_BITS = 14
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_LARGEST_INLINE_COUNT = 3
_JPEG_SEGMENT = struct.Struct(">BHBHH")  # marker, length; in a frame header: bits, height, width
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # frame markers: sequential and progressive, Huffman coded
_JPEG_TABLES, _JPEG_COMMENT = 0xC4, 0xFE  # first and last marker of segments with a length,
_JPEG_BARE = range(0xD0, 0xDB)  # except these: restart, start and end of image, start of scan


class Kind(IntEnum):
    """The kinds of record that every patch has, in key order."""

    PATCH = 1
    TISSUE_MASK = 2
    VALIDITY_MASK = 3
    COUNTS = 4
    IMAGE = 5
    CLASS_TOKEN = 6
    TOKENS = 7


@dataclass(frozen=True)
class PatchInfo:
    """Position and totals of a patch.

    Attributes:
        row0, col0: array_row and array_col of the first bin.
        corners_px: (4, 2) float64, (x, y) in full-resolution px, corner-based: the top left, top
            right, bottom right and bottom left corner in the bin frame.
        tissue_fraction: share of tissue bins, 0 to 1.
        total_umi: sum of all counts.
    """

    row0: int
    col0: int
    corners_px: Float64Array
    tissue_fraction: float
    total_umi: int


@dataclass(frozen=True)
class SparseCounts:
    """The non-zero counts of a patch, sorted by (gene, position).

    Attributes:
        genes: (P,) int64 indices of the genes with counts, strictly increasing.
        indptr: (P + 1,) int64 index of each gene's first entry, and the number of entries.
        positions: (N,) uint16, row * 128 + col within the patch.
        counts: (N,) uint32 UMIs.
    """

    genes: Int64Array
    indptr: Int64Array
    positions: Array
    counts: Array


def key(index: int, kind: Kind) -> bytes:
    """Key of a record: the patch index in big-endian order, and the kind.

    Example:
        >>> key(258, Kind.TOKENS).hex()
        '0000010207'
    """
    return _KEY.pack(index, kind)


def unpack_key(raw: bytes) -> tuple[int, Kind]:
    """Patch index and kind of a key; the inverse of `key`.

    Raises:
        StoreError: the bytes are not a key.
    """
    try:
        index, kind = _KEY.unpack(raw)
        return index, Kind(kind)
    except (struct.error, ValueError):
        raise StoreError(f"unknown record key {raw.hex()}; expected 4 + 1 bytes") from None


def seal(record_key: bytes, payload: bytes) -> bytes:
    """The value of a record: the checksum of key and payload, followed by the payload."""
    return _CHECKSUM.pack(digest(record_key, payload)) + payload


def unseal(record_key: bytes, value: memoryview) -> memoryview:
    """Payload of a value, after comparing its checksum.

    Raises:
        StoreError: the checksum does not match.
    """
    if len(value) < _CHECKSUM_BYTES:
        raise StoreError(f"record {record_key.hex()}: {len(value)} bytes, too short for a checksum")
    payload = payload_of(value)
    if checksum(value) != digest(record_key, payload):
        raise StoreError(f"record {record_key.hex()}: checksum does not match, bytes have changed")
    return payload


def payload_of(value: memoryview) -> memoryview:
    """Payload of a value, without comparing its checksum."""
    return value[_CHECKSUM_BYTES:]


def checksum(value: memoryview) -> int:
    """Checksum stored in a value."""
    return int(_CHECKSUM.unpack_from(value)[0])


def digest(record_key: bytes, payload: bytes | memoryview) -> int:
    """XXH3 (64 bit) of key and payload; four times as fast as the older XXH64."""
    hasher = xxhash.xxh3_64(record_key)
    hasher.update(payload)
    return hasher.intdigest()


# --- patch ------------------------------------------------------------------------------------


def pack_patch(info: PatchInfo) -> bytes:
    """Pack a record of kind PATCH, 88 bytes."""
    corners = np.asarray(info.corners_px, np.float64).reshape(8)
    return _PATCH.pack(info.row0, info.col0, *corners, info.tissue_fraction, 0, info.total_umi)


def unpack_patch(payload: memoryview) -> PatchInfo:
    """Unpack a record of kind PATCH.

    Raises:
        StoreError: the bytes are not such a record.
    """
    if len(payload) != _PATCH.size:
        raise StoreError(f"patch record: expected {_PATCH.size} bytes, got {len(payload)}")
    row0, col0, *corners, tissue_fraction, zero, total_umi = _PATCH.unpack(payload)
    if zero:
        raise StoreError(f"patch record: expected zero at offset 76, got {zero}")
    if min(row0, col0) < 0:
        raise StoreError(f"patch record: expected a first bin of at least 0, got {row0}, {col0}")
    if not 0 <= tissue_fraction <= 1 or not np.isfinite(corners).all():
        raise StoreError("patch record: expected finite corners and a tissue share of 0 to 1")
    return PatchInfo(row0, col0, np.array(corners).reshape(4, 2), tissue_fraction, total_umi)


# --- masks ------------------------------------------------------------------------------------


def pack_mask(mask: BoolArray) -> bytes:
    """Pack a (128, 128) bool mask into 2,048 bytes, least significant bit first."""
    if mask.shape != (PATCH_BINS, PATCH_BINS):
        raise ValueError(f"mask: expected shape (128, 128), got {mask.shape}")
    return np.packbits(mask.ravel(), bitorder="little").tobytes()


def unpack_mask(payload: memoryview) -> BoolArray:
    """Unpack a mask record to (128, 128) bool.

    Raises:
        StoreError: the record has another length.
    """
    if len(payload) * 8 != PATCH_POSITIONS:
        raise StoreError(f"mask record: expected {PATCH_POSITIONS // 8} bytes, got {len(payload)}")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little")
    return bits.astype(bool).reshape(PATCH_BINS, PATCH_BINS)


# --- counts -----------------------------------------------------------------------------------


def format_for(n_genes: int) -> str:
    """The format in which a store of ``n_genes`` genes is written."""
    return FORMAT_WIDE if n_genes > MAX_NARROW_GENES else FORMAT


def gene_dtype(n_genes: int) -> str:
    """Type of gene indices in the records of a store of ``n_genes`` genes: ``<u2`` or ``<u4``."""
    return "<u4" if n_genes > MAX_NARROW_GENES else "<u2"


def pack_counts(
    gene: Array, position: Array, count: Array, n_genes: int = MAX_NARROW_GENES
) -> bytes:
    """Pack the non-zero counts of one patch.

    Args:
        gene: (N,) gene indices, sorted.
        position: (N,) row * 128 + col, sorted within each gene.
        count: (N,) UMIs, at least 1.
        n_genes: number of genes in the manifest, which decides the width of a gene index.
    """
    n = len(gene)
    is_new = np.ones(n, bool)
    is_new[1:] = gene[1:] != gene[:-1]  # no difference, as indices may be unsigned
    starts = np.flatnonzero(is_new)  # np.unique would sort the sorted genes again
    genes, sizes = gene[starts].astype(gene_dtype(n_genes)), np.diff(starts, append=n)
    inline = np.where(count <= _LARGEST_INLINE_COUNT, count, 0).astype(np.uint16)
    entries = position.astype("<u2") | (inline << _POSITION_BITS)
    at = np.flatnonzero(inline == 0)
    escapes = np.stack([at, count[at]], axis=1).astype("<u4")
    return b"".join(
        [
            _COUNTS_HEADER.pack(len(genes), n, len(at)),
            genes.tobytes(),
            sizes.astype("<u2").tobytes(),
            entries.astype("<u2").tobytes(),
            bytes(_padding_bytes(genes.nbytes, len(genes), n)),
            escapes.tobytes(),
        ]
    )


class CountsParts(NamedTuple):
    """The arrays of a counts record, as views of its bytes; only their lengths are checked.

    Attributes:
        genes: (P,) uint16 indices of the genes with counts; uint32 in a store of more than 65,535
            genes.
        sizes: (P,) uint16 number of entries of each gene.
        entries: (N,) uint16 position (low 14 bits) and count of 1 to 3, or 0 (high 2 bits).
        padding: (0,) or (1,) uint16, zero.
        escapes: (2E,) uint32 pairs of the index of an entry and its count above 3.
    """

    genes: Array
    sizes: Array
    entries: Array
    padding: Array
    escapes: Array


def split_counts(payload: memoryview, n_genes: int) -> CountsParts:
    """Split a counts record into its arrays.

    Raises:
        StoreError: the payload's length differs from that given in its header.
    """
    if len(payload) < _COUNTS_HEADER.size:
        raise StoreError(f"counts record: {len(payload)} bytes, too short for its header")
    n_present, n, n_escapes = _COUNTS_HEADER.unpack_from(payload)
    dtype = np.dtype(gene_dtype(n_genes))
    gene_bytes = n_present * dtype.itemsize
    n_padding = _padding_bytes(gene_bytes, n_present, n) // 2
    n_words = n_present + n + n_padding
    expected = _COUNTS_HEADER.size + gene_bytes + 2 * n_words + 8 * n_escapes
    if len(payload) != expected:
        raise StoreError(f"counts record: header says {expected} bytes, there are {len(payload)}")
    genes = np.frombuffer(payload, dtype, n_present, _COUNTS_HEADER.size)
    words = np.frombuffer(payload, "<u2", n_words, _COUNTS_HEADER.size + gene_bytes)
    return CountsParts(
        genes=genes,
        sizes=words[:n_present],
        entries=words[n_present : n_present + n],
        padding=words[n_present + n :],
        escapes=np.frombuffer(payload, "<u4", 2 * n_escapes, expected - 8 * n_escapes),
    )


def _padding_bytes(gene_bytes: int, n_present: int, n: int) -> int:
    """Number of zero bytes, 0 or 2, so that the escapes start at a multiple of 4 bytes."""
    return (gene_bytes + 2 * (n_present + n)) % 4


def unpack_counts(payload: memoryview, n_genes: int) -> SparseCounts:
    """Unpack a counts record; every number is checked before it is used.

    Args:
        payload: the payload of the record.
        n_genes: number of genes in the manifest.

    Raises:
        StoreError: the record is malformed.
    """
    genes, sizes, entries, padding, escapes = split_counts(payload, n_genes)
    n_present, n = len(genes), len(entries)
    at, large = escapes.reshape(-1, 2).T.astype(np.int64)

    counts = (entries >> _POSITION_BITS).astype(np.uint32)
    ordered = bool((np.diff(genes.astype(np.int64)) > 0).all())
    if not ordered or (n_present and genes[-1] >= n_genes):
        raise StoreError("counts record: gene indices out of order or beyond the gene list")
    indptr = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    if indptr[-1] != n or (n_present and not sizes.all()):
        raise StoreError("counts record: the genes' sizes do not add up to the number of entries")
    positions = entries & _POSITION_MASK
    rises = positions[1:] > positions[:-1]
    rises[indptr[1:-1] - 1] = True  # from a gene's last entry to the next gene's first
    if not rises.all():
        raise StoreError("counts record: the positions of a gene are out of order")
    if not np.array_equal(at, np.flatnonzero(counts == 0)):
        raise StoreError("counts record: escapes do not match the entries they stand for")
    if (large <= _LARGEST_INLINE_COUNT).any():
        raise StoreError("counts record: an escape holds a count below 4")
    if padding.any():
        raise StoreError("counts record: the padding is not zero")
    counts[at] = large
    return SparseCounts(genes.astype(np.int64), indptr, positions, counts)


# --- image --------------------------------------------------------------------------------------


def pack_image(image: UInt8Array) -> bytes:
    """Encode a (256, 256, 3) uint8 RGB image as JPEG."""
    ok, jpeg = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if not ok:
        raise StoreError("patch image: the JPEG encoder failed")
    return jpeg.tobytes()


def unpack_image(payload: memoryview) -> UInt8Array:
    """Decode an image record to (256, 256, 3) uint8 RGB.

    Raises:
        StoreError: the record is not a JPEG of that size.
    """
    if _jpeg_size(payload) != (STORED_IMAGE_PX, STORED_IMAGE_PX):  # before memory is allocated
        raise StoreError("image record: expected a JPEG of 256 x 256 px")
    how = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(payload, np.uint8), how)
    except cv2.error:
        bgr = None
    if bgr is None or bgr.shape != (STORED_IMAGE_PX, STORED_IMAGE_PX, 3):
        raise StoreError("image record: the JPEG cannot be decoded")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def as_stored(image: UInt8Array) -> UInt8Array:
    """An image (256, 256, 3) uint8 RGB as it comes out of a store, once compressed."""
    return unpack_image(memoryview(pack_image(image)))


def _jpeg_size(payload: memoryview) -> tuple[int, int] | None:
    """Height and width from a JPEG's frame header (ITU-T T.81, B.2.2); None for anything else."""
    raw = bytes(payload)
    at = 2 if raw.startswith(b"\xff\xd8") else len(raw)
    while at + 9 <= len(raw) and raw[at] == 0xFF:
        marker, length, _, height, width = _JPEG_SEGMENT.unpack_from(raw, at + 1)
        if marker in _JPEG_FRAMES:
            return height, width
        if not _JPEG_TABLES <= marker <= _JPEG_COMMENT or marker in _JPEG_BARE or length < 2:
            return None
        at += 2 + length
    return None
