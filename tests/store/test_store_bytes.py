"""The bytes of a record: golden files, round trips, and forbidden states."""

import numpy as np
import pytest
import xxhash
from golden_bytes import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from virchow_st.errors import StoreError
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind, PatchInfo
from virchow_st.store.tokens import pack_tokens, unpack_tokens

INFO = PatchInfo(256, 384, np.array([[0, 1], [2, 3], [4, 0.5], [-0.5, 1.5]]), 0.75, 2**32 + 5)
GENE = np.array([3, 3, 3, 65534, 65534])
POSITION = np.array([0, 129, 16383, 7, 8])
COUNT = np.array([1, 3, 4, 2, 70000], np.uint32)
TOKENS = np.array([[[1.0], [-2.0]], [[0.5], [65504.0]]])


def test_golden_key_and_checksum():
    key, payload = fmt.key(258, Kind.COUNTS), golden("counts")
    assert key == golden("key")
    assert fmt.unpack_key(key) == (258, Kind.COUNTS)
    assert fmt.seal(key, payload) == golden("checksum") + payload
    assert fmt.unseal(key, memoryview(golden("checksum") + payload)) == payload
    assert xxhash.xxh3_64(b"").hexdigest() == "2d06800538d394c2"  # the specification's own vector


def test_golden_patch():
    assert fmt.pack_patch(INFO) == golden("patch")
    info = fmt.unpack_patch(memoryview(golden("patch")))
    np.testing.assert_array_equal(info.corners_px, INFO.corners_px)
    assert (info.row0, info.col0, info.tissue_fraction) == (256, 384, 0.75)
    assert info.total_umi == 2**32 + 5


@pytest.mark.parametrize(
    ("name", "positions", "value"),
    [("tissue_mask", [0, 9, 16383], True), ("validity_mask", [0], False)],
)
def test_golden_masks(name, positions, value):
    mask = np.full(16384, not value)
    mask[positions] = value
    mask = mask.reshape(128, 128)
    assert fmt.pack_mask(mask) == golden(name)
    np.testing.assert_array_equal(fmt.unpack_mask(memoryview(golden(name))), mask)


def test_golden_counts():
    assert fmt.pack_counts(GENE, POSITION, COUNT) == golden("counts")
    stored = fmt.unpack_counts(memoryview(golden("counts")), 65535)
    assert stored.genes.tolist() == [3, 65534]
    assert stored.indptr.tolist() == [0, 3, 5]
    assert stored.positions.tolist() == POSITION.tolist()
    assert stored.counts.tolist() == COUNT.tolist()
    assert (stored.positions.dtype, stored.counts.dtype) == (np.uint16, np.uint32)


def test_golden_tokens():
    assert pack_tokens(TOKENS) == golden("tokens")
    np.testing.assert_array_equal(unpack_tokens(golden("tokens"), (2, 2, 1)), TOKENS)
    assert pack_tokens(np.array([0.5, -2, 65504])) == golden("class_token")
    assert unpack_tokens(golden("class_token"), (3,)).tolist() == [0.5, -2, 65504]


def test_golden_image_is_read():
    """Decoded only: which JPEG bytes an encoder writes is its own affair."""
    image = fmt.unpack_image(memoryview(golden("image"))).astype(int)
    assert np.abs(image[32:, :112] - (200, 30, 60)).max() <= 3
    assert np.abs(image[32:, 144:] - (20, 120, 220)).max() <= 3
    assert np.abs(image[:8, :112] - 250).max() <= 3


def test_image_round_trip_keeps_colours_and_shape():
    row, col = np.mgrid[:256, :256]
    image = np.stack([row, col, 255 - row], -1).astype(np.uint8)
    back = fmt.unpack_image(memoryview(fmt.pack_image(image)))
    assert back.shape == image.shape
    assert np.abs(back.astype(int) - image).mean() < 2


@st.composite
def sparse_patches(draw):
    """(gene, position, count) of a patch; counts around every boundary of the format."""
    genes = draw(st.lists(st.integers(0, 65534), max_size=6, unique=True))
    places = st.lists(st.integers(0, 16383), min_size=1, max_size=12, unique=True)
    values = st.sampled_from([1, 2, 3, 4, 5, 255, 65535, 65536, 2**32 - 1])
    entries = [(g, p, draw(values)) for g in sorted(genes) for p in sorted(draw(places))]
    gene, position, count = np.array(entries, np.int64).reshape(-1, 3).T
    return gene, position, count.astype(np.uint32)


@settings(deadline=None)
@given(sparse_patches())
def test_counts_round_trip(patch):
    gene, position, count = patch
    payload = fmt.pack_counts(gene, position, count)
    n_escapes = int((count > 3).sum())
    n = len(gene)
    assert len(payload) == 12 + 4 * len(set(gene)) + 2 * n + 2 * (n % 2) + 8 * n_escapes
    stored = fmt.unpack_counts(memoryview(payload), 65535)
    np.testing.assert_array_equal(np.repeat(stored.genes, np.diff(stored.indptr)), gene)
    np.testing.assert_array_equal(stored.positions, position)
    np.testing.assert_array_equal(stored.counts, count)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_counts_are_read_or_refused(payload):
    try:
        stored = fmt.unpack_counts(memoryview(payload), 100)
    except StoreError:
        return
    gene = np.repeat(stored.genes, np.diff(stored.indptr))
    assert fmt.pack_counts(gene, stored.positions, stored.counts) == payload


def test_counts_of_an_empty_patch():
    nothing = np.array([], np.int64)
    payload = fmt.pack_counts(nothing, nothing, nothing.astype(np.uint32))
    assert payload == bytes(12)
    stored = fmt.unpack_counts(memoryview(payload), 10)
    assert (len(stored.genes), len(stored.counts), stored.indptr.tolist()) == (0, 0, [0])


def counts_payload(genes=(1, 2), sizes=(1, 1), entries=(0x4000, 0x8001), pad=(), escapes=()):
    header = [len(genes), len(entries), len(escapes) // 2]
    words = [*genes, *sizes, *entries, *pad]
    parts = np.array(header, "<u4"), np.array(words, "<u2"), np.array(escapes, "<u4")
    return b"".join(part.tobytes() for part in parts)


def test_the_payload_that_the_forbidden_ones_are_made_from_is_read():
    assert fmt.unpack_counts(memoryview(counts_payload()), 3).counts.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "too short for its header"),
        (bytes(11), "too short for its header"),
        (counts_payload() + b"\0", "header says 24 bytes, there are 25"),
        (counts_payload()[:-1], "header says 24 bytes, there are 23"),
        (b"\xff" * 12, "header says"),  # 4 billion entries: refused, not allocated
        (counts_payload(genes=(2, 1)), "out of order"),
        (counts_payload(genes=(1, 1)), "out of order"),
        (counts_payload(genes=(1, 3)), "beyond the gene list"),
        (counts_payload(sizes=(1, 2)), "do not add up"),
        (counts_payload(sizes=(0, 2)), "do not add up"),
        (counts_payload(sizes=(2, 0)), "do not add up"),
        (counts_payload(entries=(0x4000, 0x0001)), "escapes do not match"),
        (counts_payload(escapes=(0, 9)), "escapes do not match"),
        (counts_payload(entries=(0x4000, 0x0001), escapes=(0, 9)), "escapes do not match"),
        (counts_payload(entries=(0x4000, 0x0001), escapes=(7, 9)), "escapes do not match"),
        (counts_payload(entries=(0, 0), escapes=(1, 9, 0, 9)), "escapes do not match"),
        (counts_payload(entries=(0x4000, 0x0001), escapes=(1, 3)), "count below 4"),
        (counts_payload(genes=(1,), sizes=(2,), entries=(0x4001, 0x4000)), "positions"),
        (counts_payload(genes=(1,), sizes=(2,), entries=(0x4001, 0x8001)), "positions"),
        (counts_payload(genes=(1,), sizes=(1,), entries=(0x4001,), pad=(1,)), "padding"),
    ],
)
def test_forbidden_counts_are_refused(payload, reason):
    with pytest.raises(StoreError, match=reason):
        fmt.unpack_counts(memoryview(payload), 3)


@pytest.mark.parametrize(
    ("unpack", "payload", "reason"),
    [
        (fmt.unpack_patch, bytes(87), "expected 88 bytes, got 87"),
        (fmt.unpack_patch, bytes(89), "expected 88 bytes, got 89"),
        (fmt.unpack_patch, bytes(76) + b"\1" + bytes(11), "expected zero at offset 76, got 1"),
        (fmt.unpack_mask, bytes(2047), "expected 2048 bytes, got 2047"),
        (fmt.unpack_mask, bytes(2049), "expected 2048 bytes, got 2049"),
        (fmt.unpack_image, b"", "expected a JPEG of 256 x 256 px"),
        (fmt.unpack_image, b"no picture", "expected a JPEG of 256 x 256 px"),
        (
            fmt.unpack_image,
            fmt.pack_image(np.zeros((8, 8, 3), np.uint8)),
            "expected a JPEG of 256 x 256 px",
        ),
        (lambda b: unpack_tokens(b, (2, 2, 3)), bytes(22), "expected 24 bytes, got 22"),
        (fmt.unpack_key, bytes(4), "unknown record key"),
        (fmt.unpack_key, b"\0\0\0\0\x08", "unknown record key"),
        (lambda b: fmt.unseal(b"12345", b), b"1234567", "too short for a checksum"),
    ],
)
def test_payloads_of_wrong_length_are_refused(unpack, payload, reason):
    with pytest.raises(StoreError, match=reason):
        unpack(memoryview(payload))


@pytest.mark.parametrize("value", [np.nan, np.inf, 65520.0])
def test_tokens_that_float16_cannot_hold_are_refused(value):
    with pytest.raises(StoreError, match="not finite in float16"):
        pack_tokens(np.array([1.0, value]))


def test_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected shape \(128, 128\), got \(64, 256\)"):
        fmt.pack_mask(np.zeros((64, 256), bool))


def test_every_flipped_bit_is_noticed():
    key = fmt.key(1, Kind.COUNTS)
    value = bytearray(fmt.seal(key, golden("counts")))
    for i in range(len(value)):
        for bit in range(8):
            value[i] ^= 1 << bit
            with pytest.raises(StoreError, match="checksum does not match"):
                fmt.unseal(key, memoryview(bytes(value)))
            value[i] ^= 1 << bit
    with pytest.raises(StoreError, match="checksum"):  # a record under another's key
        fmt.unseal(fmt.key(2, Kind.COUNTS), memoryview(bytes(value)))


def test_bytes_per_nonzero_on_a_realistic_patch():
    """18,085 genes, 9 UMIs a 2 µm bin, expression log-normal over genes as on a colon slide."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 2, 18_085)
    rates = 9 * share / share.sum()
    n = rng.poisson(rates * 16384)
    gene = np.repeat(np.arange(18_085), n)
    cells, count = np.unique(gene * 16384 + rng.integers(0, 16384, len(gene)), return_counts=True)
    payload = fmt.pack_counts(cells // 16384, cells % 16384, count.astype(np.uint32))
    assert len(cells) > 100_000
    assert len(payload) / len(cells) <= 2.5
