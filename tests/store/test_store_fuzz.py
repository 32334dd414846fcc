"""Malformed records and manifests: read within their bounds or refused, and nothing else.

More than 10,000 cases in all, from random bytes and from sound payloads that were changed.
"""

import json
import struct
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_store import make_records, write_store

from virchow_st.errors import StoreError
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind
from virchow_st.store.manifest import read_manifest
from virchow_st.store.panel_reads import read_dense, read_sparse
from virchow_st.store.reader import open_store
from virchow_st.store.tokens import pack_tokens, unpack_tokens

N_GENES, MANY_GENES = 300, 70_000  # indices of two bytes, and of four
SHAPE = (4, 4, 6)


def cases(n):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=n, deadline=None, suppress_health_check=checks, database=None)


# --- payloads ----------------------------------------------------------------------------------


def counts_payload(seed, n, most, n_genes=N_GENES):
    """Sound counts of about ``n`` entries, every sixth or so an escape."""
    rng = np.random.default_rng(seed)
    cells = np.unique(rng.integers((n_genes - N_GENES) * 16384, n_genes * 16384, n))
    count = rng.choice([1, 1, 2, 3, 4, most], len(cells)).astype(np.uint32)
    return fmt.pack_counts(cells // 16384, cells % 16384, count, n_genes)


RECORD = make_records(1, grid=4, dim=6)[0]
COUNTS = {
    n_genes: [counts_payload(n, n, 2**32 - 1, n_genes) for n in (0, 1, 2, 9, 40, 301)]
    for n_genes in (N_GENES, MANY_GENES)
}
PATCHES = [fmt.pack_patch(RECORD.info)]
MASKS = [fmt.pack_mask(RECORD.tissue_mask)]
IMAGES = [fmt.pack_image(RECORD.image), fmt.pack_image(np.zeros((256, 256, 3), np.uint8))]
HALVES = [pack_tokens(RECORD.tokens)]
CODES = [pack_tokens(RECORD.tokens, "int8"), pack_tokens(np.zeros(SHAPE), "int8")]

TELLING = [0, 1, 2, 3, 255, 16383, 16384, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]


def flip(data, at, value):
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1 << value % 8]) + data[at + 1 :]


def cut(data, at, value):
    return data[: at % len(data)]


def extend(data, at, value):
    return data + value.to_bytes(4, "little")[: at % 5]


def put(data, at, value):
    """A telling number, in the header more often than not."""
    size = (2, 4)[at % 2]
    at = at % 12 if at % 3 else at % len(data)
    return data[:at] + (value % 2 ** (8 * size)).to_bytes(size, "little") + data[at + size :]


def drop(data, at, value):
    at %= len(data)
    return data[:at] + data[at + 1 + value % 8 :]


def repeat(data, at, value):
    at %= len(data)
    return data[:at] + data[at : at + 1 + value % 8] + data[at:]


@st.composite
def changed(draw, payloads):
    """A sound payload after up to four changes."""
    data = draw(st.sampled_from(payloads))
    for _ in range(draw(st.integers(0, 4))):
        how = draw(st.sampled_from([flip, flip, cut, extend, put, put, drop, repeat]))
        at, value = draw(st.integers(0, 1 << 20)), draw(st.sampled_from(TELLING))
        data = how(data, at, value) if data else extend(data, at, value)
    return data


def any_of(payloads):
    return st.one_of(st.binary(max_size=300), *[changed(payloads)] * 3)


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What is loaded and compiled once does not count as memory taken for a payload."""
    for n_genes, payloads in COUNTS.items():
        read_dense(memoryview(payloads[3]), n_genes, [1], None)
        read_sparse(memoryview(payloads[3]), n_genes, [1])
    unpack_tokens(memoryview(CODES[0]), SHAPE, "int8")
    fmt.unpack_image(memoryview(IMAGES[0]))


def read_or_refused(unpack, payload, beside=0):
    """What ``unpack`` gives, or the text of its `StoreError`; memory in proportion to the payload.

    ``beside`` is what the result may take whatever the payload says, bytes.
    """
    record = memoryview(bytearray(payload))
    tracemalloc.start()
    try:
        result = unpack(record)
    except StoreError as e:
        result = one_line(e)
    finally:
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken < 64 * len(payload) + beside + (1 << 19), f"{taken} for {len(payload)} bytes"
    return result


def one_line(error):
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("n_genes", COUNTS)
@cases(2000)
@given(data=st.data())
def test_counts(n_genes, data):
    payload = data.draw(any_of(COUNTS[n_genes]))
    stored = read_or_refused(lambda p: fmt.unpack_counts(p, n_genes), payload)
    if isinstance(stored, str):
        return
    assert stored.indptr[-1] == len(stored.positions) == len(stored.counts)
    assert (np.diff(stored.indptr) > 0).all()
    assert not len(stored.genes) or 0 <= stored.genes[0] <= stored.genes[-1] < n_genes
    assert not len(stored.positions) or stored.positions.max() < 16384
    assert stored.counts.all()
    gene = np.repeat(stored.genes, np.diff(stored.indptr))
    place = gene * 16384 + stored.positions
    assert (np.diff(place) > 0).all()
    assert fmt.pack_counts(gene, stored.positions, stored.counts, n_genes) == payload


@pytest.mark.parametrize("n_genes", COUNTS)
@cases(1200)
@given(data=st.data())
def test_panel_reads_agree_with_the_plain_unpacker(n_genes, data):
    """The compiled kernels refuse what the plain code refuses, and read what it reads."""
    payload = data.draw(any_of(COUNTS[n_genes]))
    panel = data.draw(st.lists(st.integers(n_genes - N_GENES, n_genes - 1), max_size=5))
    stored = read_or_refused(lambda p: fmt.unpack_counts(p, n_genes), payload)
    room = 2 * (len(panel) + 1) * 65536
    dense = read_or_refused(lambda p: read_dense(p, n_genes, panel, None), payload, room)
    found = read_or_refused(lambda p: read_sparse(p, n_genes, panel), payload, room)
    if isinstance(stored, str):
        assert dense == found == stored
        return
    expected = np.zeros((len(panel), 16384), np.uint32)
    everything = np.repeat(stored.genes, np.diff(stored.indptr))
    for row, gene in zip(expected, panel, strict=True):
        row[stored.positions[everything == gene]] = stored.counts[everything == gene]
    np.testing.assert_array_equal(dense.reshape(-1, 16384), expected.astype(np.float32))
    place, position = np.nonzero(expected)
    np.testing.assert_array_equal(found.gene, place)
    np.testing.assert_array_equal(found.position, position)
    np.testing.assert_array_equal(found.count, expected[place, position])


@cases(1200)
@given(any_of(PATCHES))
def test_patch(payload):
    info = read_or_refused(fmt.unpack_patch, payload)
    if not isinstance(info, str):
        assert np.isfinite(info.corners_px).all()
        assert 0 <= info.tissue_fraction <= 1
        assert fmt.pack_patch(info) == payload


@cases(600)
@given(any_of(MASKS))
def test_mask(payload):
    mask = read_or_refused(fmt.unpack_mask, payload)
    if not isinstance(mask, str):
        assert (mask.dtype, mask.shape) == (bool, (128, 128))
        assert fmt.pack_mask(mask) == payload


@cases(800)
@given(any_of(HALVES))
def test_float16_tokens(payload):
    tokens = read_or_refused(lambda p: unpack_tokens(p, SHAPE), payload)
    if not isinstance(tokens, str):
        assert (tokens.dtype, tokens.shape) == (np.float16, SHAPE)
        assert tokens.tobytes() == payload


@cases(1200)
@given(any_of(CODES))
def test_int8_tokens(payload):
    tokens = read_or_refused(lambda p: unpack_tokens(p, SHAPE, "int8"), payload)
    if not isinstance(tokens, str):
        assert (tokens.dtype, tokens.shape) == (np.float16, SHAPE)
        assert np.isfinite(tokens).all()


@cases(100)
@given(st.lists(st.integers(1, 2**62), min_size=3, max_size=3), st.binary(max_size=64))
def test_tokens_of_an_impossible_shape(shape, payload):
    tokens = read_or_refused(lambda p: unpack_tokens(p, tuple(shape)), payload)
    assert isinstance(tokens, str) or tokens.nbytes == len(payload)


@cases(500)
@given(any_of(IMAGES))
def test_image(payload):
    image = read_or_refused(fmt.unpack_image, payload, beside=1 << 20)
    if not isinstance(image, str):
        assert (image.dtype, image.shape) == (np.uint8, (256, 256, 3))


def encoded(extension, side=256):
    return cv2.imencode(extension, np.zeros((side, side, 3), np.uint8))[1].tobytes()


def of_size(jpeg, height, width):
    at = jpeg.index(b"\xff\xc0") + 5  # behind marker, length and bits
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


@pytest.mark.parametrize(
    "payload",
    [
        of_size(IMAGES[0], 65500, 65500),
        of_size(IMAGES[0], 256, 65500),
        of_size(IMAGES[0], 0, 256),
        encoded(".jpg", 64),
        encoded(".png"),
        encoded(".bmp"),
        encoded(".tiff"),
        encoded(".webp"),
        IMAGES[0][:2],
        b"\xff\xd8" * 9,
        b"\xff\xd8\xff\xe0\x00\x00" + bytes(9),  # a segment that would never be left
    ],
)
def test_image_of_another_kind_or_size_never_reaches_the_decoder(monkeypatch, payload):
    """A decoder takes memory for the size that a header claims."""

    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(fmt.cv2, "imdecode", decode)
    with pytest.raises(StoreError, match="expected a JPEG of 256 x 256 px"):
        fmt.unpack_image(memoryview(payload))


# --- keys and checksums --------------------------------------------------------------------------


@cases(400)
@given(st.binary(max_size=8) | changed([fmt.key(258, Kind.IMAGE)]))
def test_key(raw):
    found = read_or_refused(lambda p: fmt.unpack_key(bytes(p)), raw)
    if not isinstance(found, str):
        assert fmt.key(*found) == raw


SEALED = fmt.seal(fmt.key(3, Kind.COUNTS), COUNTS[N_GENES][3])


@cases(600)
@given(changed([SEALED]) | st.binary(max_size=40))
def test_no_changed_value_passes_its_checksum(value):
    payload = read_or_refused(lambda p: fmt.unseal(fmt.key(3, Kind.COUNTS), p), value)
    assert isinstance(payload, str) == (value != SEALED)


# --- manifests -----------------------------------------------------------------------------------

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
ANYTHING = st.recursive(
    PLAIN
    | st.sampled_from(
        [-1, 0, 2**63, 2**64, 10**400, "virchow_st.store/1", "virchow_st.store/2", [], {}]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    store = write_store(tmp_path_factory.mktemp("manifest") / "A.vst", n_patches=1, grid=4)
    return store.path, (store.path / "store.json").read_bytes()


def opened_or_refused(path, content):
    """Every use of the manifest that reading makes, or the text of the error."""
    (path / "store.json").write_bytes(content)
    try:
        read_manifest(path)
        store = open_store(path)
        return [len(store), store.patient, store.genes.totals.sum(), store[0].tokens.shape]
    except IndexError:
        return [len(store)]  # a store without patches has no first one
    except StoreError as e:
        return one_line(e)


@cases(500)
@given(content=st.data())
def test_manifest_of_any_bytes(folder, content):
    path, whole = folder
    opened_or_refused(path, content.draw(st.binary(max_size=80) | changed([whole])))


@cases(700)
@given(data=st.data())
def test_manifest_with_any_value_anywhere(folder, data):
    path, whole = folder
    manifest = json.loads(whole)
    inside = data.draw(st.sampled_from([manifest, manifest, manifest["genes"]]))
    inside[data.draw(st.sampled_from(sorted(inside)))] = data.draw(ANYTHING)
    opened_or_refused(path, json.dumps(manifest).encode())


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"format":' * 100_000, b"9" * 10_000, b"\x00"]
)
def test_manifest_that_exhausts_a_parser(folder, content):
    assert "cannot be read as JSON" in opened_or_refused(folder[0], content)


def test_manifest_that_is_not_text(folder):
    assert "cannot be read as text" in opened_or_refused(folder[0], b"\xff\xfe")
