"""int8 tokens: bytes, precision, refusals, and their use from the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from golden_bytes import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_store import JOB, make_manifest, make_records, write_records

from virchow_st.config import ExtractConfig
from virchow_st.errors import StoreError
from virchow_st.kernels.tokens import dequantise
from virchow_st.run.panel import Panel
from virchow_st.run.split import Member
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind
from virchow_st.store.reader import open_store, verify
from virchow_st.store.tokens import pack_tokens, token_bytes, unpack_tokens
from virchow_st.store.writer import StoreWriter
from virchow_st.training.dataset import PatchDataset

TOKENS = np.array(
    [[[127, -63.5, 0], [0.5, 0.5, 0]], [[1.5, 0.75, 0], [-2.5, 0.25, 0]]], np.float32
)  # (2, 2, 3)
CAME_BACK = np.array([[[127, -63.5, 0], [0, 0.5, 0]], [[2, 1, 0], [-2, 0, 0]]])

# --- bytes ------------------------------------------------------------------------------------


def test_golden_tokens() -> None:
    assert pack_tokens(TOKENS, "int8") == golden("tokens_int8")
    tokens = unpack_tokens(memoryview(golden("tokens_int8")), (2, 2, 3), "int8")
    assert tokens.dtype == np.float16
    assert tokens.flags.writeable
    np.testing.assert_array_equal(tokens, CAME_BACK)


def test_the_store_keeps_tokens_in_every_format_that_the_configuration_offers() -> None:
    (field,) = [f for f in fields(ExtractConfig) if f.name == "token_dtype"]
    tokens = np.linspace(-1, 1, 12, dtype=np.float16).reshape(2, 2, 3)
    for dtype in field.metadata["choices"]:
        kept = unpack_tokens(memoryview(pack_tokens(tokens, dtype)), (2, 2, 3), dtype)
        np.testing.assert_allclose(kept, tokens, atol=1 / 127, err_msg=dtype)


halves = hnp.arrays(
    np.float16,
    st.tuples(st.sampled_from([1, 2, 4]), st.just(2), st.integers(1, 5)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=16),
)


def exact(x: float) -> Fraction:
    return Fraction(float(x))


@settings(deadline=None)
@given(halves)
def test_every_value_comes_back_within_half_a_step(tokens: np.ndarray) -> None:
    """Against the specification in exact fractions; the largest value fills the codes."""
    payload = pack_tokens(tokens, "int8")
    dim = tokens.shape[-1]
    assert len(payload) == 4 * dim + tokens.size == token_bytes(tokens.shape, "int8")
    scales = np.frombuffer(payload, "<f4", dim)
    codes = np.frombuffer(payload, np.int8, offset=4 * dim).reshape(tokens.shape)
    back = unpack_tokens(memoryview(payload), tokens.shape, "int8")
    for c in range(dim):
        x, q, s = tokens[..., c].ravel(), codes[..., c].ravel(), exact(scales[c])
        largest = max(abs(exact(v)) for v in x)
        assert abs(s - largest / 127) <= largest / 127 / 2**24
        assert int(np.abs(q.astype(int)).max()) == (127 if largest else 0)
        for value, code, actual in zip(x, q, back[..., c].ravel(), strict=True):
            step = int(code) * s
            assert abs(exact(value) - step) <= s / 2 + largest / 2**22  # f32 arithmetic
            assert abs(exact(actual) - step) <= max(abs(step) / 2**11, Fraction(1, 2**25))


@settings(deadline=None)
@given(halves)
def test_what_came_back_is_kept_as_it_is(tokens: np.ndarray) -> None:
    """Codes do not drift when tokens are read and written again."""
    once = unpack_tokens(memoryview(pack_tokens(tokens, "int8")), tokens.shape, "int8")
    twice = unpack_tokens(memoryview(pack_tokens(once, "int8")), tokens.shape, "int8")
    assert np.isfinite(once).all()
    codes = [np.frombuffer(pack_tokens(t, "int8"), np.int8, offset=4 * t.shape[-1])
             for t in (once, twice)]  # fmt: skip
    np.testing.assert_array_equal(*codes)


def test_every_scale_and_code_gives_the_nearest_float16() -> None:
    """All scales that a float16 channel can have, and all codes: against NumPy's own rounding."""
    largest = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)  # all positive ones
    ties = np.array([2.0**-25, 3 * 2.0**-25, 2.0**-15, 1 + 2**-11, 1 + 3 * 2**-11], np.float32)
    scales = np.concatenate([largest.astype(np.float32) / np.float32(127), ties, [0]])
    scales = scales.astype(np.float32)
    codes = np.arange(-127, 128, dtype=np.int8)[:, None] * np.ones(len(scales), np.int8)
    expected = (codes * scales).astype(np.float16)
    np.testing.assert_array_equal(
        dequantise(codes, scales).view(np.uint16), expected.view(np.uint16)
    )


def test_the_largest_values_do_not_overflow() -> None:
    tokens = np.full((1, 1, 2), 65504.0)
    tokens[..., 1] = -65519.0  # to -65504 in float16
    back = unpack_tokens(memoryview(pack_tokens(tokens, "int8")), (1, 1, 2), "int8")
    assert back.ravel().tolist() == [65504, -65504]


@pytest.mark.parametrize("value", [np.nan, np.inf, 65520.0])
def test_values_that_float16_cannot_hold_are_refused(value: float) -> None:
    with pytest.raises(StoreError, match="not finite in float16"):
        pack_tokens(np.full((1, 1, 1), value), "int8")


def payload_of(scales: list[float], codes: list[int]) -> memoryview:
    parts = np.array(scales, "<f4").tobytes() + np.array(codes, np.int8).tobytes()
    return memoryview(parts)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (payload_of([1, 1], [1, 2])[:-1], "expected 10 bytes, got 9"),
        (payload_of([1, 1], [1, 2, 3]), "expected 10 bytes, got 11"),
        (memoryview(bytes(4)), "expected 10 bytes, got 4"),  # what float16 would take
        (payload_of([1, np.nan], [1, 2]), "expected scales of 0 to 515.78"),
        (payload_of([1, -np.nan], [1, 2]), "expected scales"),
        (payload_of([np.inf, 1], [1, 2]), "expected scales"),
        (payload_of([1, -1], [1, 2]), "expected scales"),
        (payload_of([1, -0.0], [1, 0]), "expected scales"),
        (payload_of([1, 515.7797], [1, 2]), "expected scales"),
        (payload_of([1, 1], [-128, 2]), "code -128"),
        (payload_of([0, 1], [1, 2]), "scale 0"),
    ],
)
def test_forbidden_tokens_are_refused(payload: memoryview, reason: str) -> None:
    with pytest.raises(StoreError, match=reason):
        unpack_tokens(payload, (1, 1, 2), "int8")


@settings(deadline=None)
@given(st.binary(min_size=12, max_size=12))
def test_any_bytes_are_read_as_finite_numbers_or_refused(payload: bytes) -> None:
    try:
        tokens = unpack_tokens(memoryview(payload), (2, 1, 2), "int8")
    except StoreError:
        return
    assert np.isfinite(tokens).all()


# --- stores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [16, 32])
def test_a_store_of_int8_tokens(tmp_path: Path, grid: int) -> None:
    records = make_records(3, grid=grid)
    half = write_records(tmp_path / "half.vst", records, 6)
    store = write_records(tmp_path / "int8.vst", records, 6, token_dtype="int8")
    assert (store.token_dtype, half.token_dtype) == ("int8", "float16")
    assert store.manifest["token_dtype"] == "int8"
    assert store.token_shape == (grid, grid, 8)
    for patch, record in zip(store, records, strict=True):
        largest = np.abs(record.tokens.astype(float)).max(axis=(0, 1))
        assert patch.tokens.dtype == np.float16
        # half a step of 127, and the float16 that comes last
        bound = largest / 127 / 2 + np.abs(record.tokens.astype(float)) * 2**-10
        assert (np.abs(patch.tokens.astype(float) - record.tokens) <= bound).all()
        assert len(store.record(patch.index, Kind.TOKENS)) == 8 * (grid * grid + 4)
        for kind in set(Kind) - {Kind.TOKENS}:
            assert store.record(patch.index, kind) == half.record(patch.index, kind)
    assert verify(store) == []


def test_a_token_dtype_read_as_the_other_is_refused(tmp_path: Path) -> None:
    store = write_records(tmp_path / "int8.vst", make_records(1), 6, token_dtype="int8")
    manifest = json.loads((store.path / "store.json").read_text("utf-8"))
    (store.path / "store.json").write_text(json.dumps(manifest | {"token_dtype": "float16"}))
    other = open_store(store.path)
    with pytest.raises(StoreError, match="patch 0: token record: expected 4096 bytes, got 2080"):
        _ = other[0].tokens
    assert "patch 0, TOKENS" in verify(other)[0]


def test_verify_names_forbidden_tokens(tmp_path: Path) -> None:
    import lmdb

    store = write_records(tmp_path / "int8.vst", make_records(2), 6, token_dtype="int8")
    copy = shutil.copytree(store.path, tmp_path / "bad.vst")
    key = fmt.key(1, Kind.TOKENS)
    payload = bytearray(store.record(1, Kind.TOKENS))
    payload[3] = 0xFF  # the sign and exponent of the first scale
    with lmdb.open(str(copy), map_size=1 << 30) as env, env.begin(write=True) as txn:
        txn.put(key, fmt.seal(key, bytes(payload)))
    bad = open_store(copy)
    assert [fault.split(":")[0] for fault in verify(bad)] == ["patch 1, TOKENS"]
    with pytest.raises(StoreError, match=r"bad.vst: patch 1: .*expected scales.*vst verify"):
        _ = bad[1].tokens


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token_dtype": "bfloat16"}, "token_dtype: expected 'float16' or 'int8'; got 'bfloat16'"),
        ({"grid": 0}, "grid: expected 1 to 128; got 0"),
        ({"grid": 24}, "grid: expected a divisor of 128; got 24"),
        ({"grid": -16}, "grid: expected 1 to 128; got -16"),
        ({"dim": 0}, "dim: expected 1 to 65535; got 0"),
        ({"dim": 10**30}, "dim: expected a whole number of 64 bits"),
        ({"n_patches": -1}, "n_patches: expected 0 to 4294967296; got -1"),
        ({"n_patches": 10**30}, "n_patches: expected a whole number of 64 bits"),
    ],
)
def test_numbers_beyond_the_limits_are_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    path = write_records(tmp_path / "A.vst", make_records(1), 6).path
    manifest = json.loads((path / "store.json").read_text("utf-8"))
    (path / "store.json").write_text(json.dumps(manifest | changes))
    with pytest.raises(StoreError, match=reason):
        open_store(path)


def test_resumed_int8_store_is_the_uninterrupted_one(tmp_path: Path) -> None:
    records = make_records(4)
    whole = write_records(tmp_path / "whole.vst", records, 6, token_dtype="int8")
    with StoreWriter(tmp_path / "A.vst", JOB, "int8") as writer:
        writer.append(records[:2])
    with StoreWriter(tmp_path / "A.vst", JOB, "int8") as writer:
        writer.append(records[2:])
        writer.finish(make_manifest(records, 6))
    resumed = open_store(tmp_path / "A.vst")
    assert resumed.manifest == whole.manifest
    assert verify(resumed) == []


def test_batches_of_an_int8_store(tmp_path: Path) -> None:
    """A dataset does not care how tokens are kept."""
    store = write_records(tmp_path / "A.vst", make_records(2), 6, token_dtype="int8")
    panel = Panel(store.genes.ids, store.genes.symbols)
    batch = PatchDataset([store], panel).load([Member(0, 0), Member(0, 1)])
    assert batch.tokens.dtype == np.float16
    np.testing.assert_array_equal(batch.tokens, [patch.tokens for patch in store])


# --- the command line ---------------------------------------------------------------------------


def test_extract_with_int8_tokens(vst, simulated: Path, stores, tmp_path: Path) -> None:
    slide, path = simulated / "P1", tmp_path / "P1.vst"
    arguments = ["extract", slide / "outs", "--image", slide / "tissue_image.tif", "--store", path,
                 "--patient", "P1", "--encoder", "stain", "--device", "cpu"]  # fmt: skip
    assert vst(*arguments, "--token-dtype", "int8").code == 0
    store, half = open_store(path), open_store(stores["P1"])
    for patch, other in zip(store, half, strict=True):
        kept = pack_tokens(other.tokens, "int8")  # the very bytes, made from a float16 store
        assert store.record(patch.index, Kind.TOKENS) == kept
        for kind in set(Kind) - {Kind.TOKENS}:
            assert store.record(patch.index, kind) == half.record(patch.index, kind)
    assert store.manifest["job"]["options"]["token_dtype"] == "int8"
    assert "all intact" in vst("verify", path).out
    answer = vst(*arguments)  # float16 into the same folder
    assert answer.code == 2
    assert "other inputs or options" in answer.err


def test_begun_int8_extraction_is_not_resumed_as_float16(
    vst, simulated: Path, tmp_path: Path, monkeypatch
) -> None:
    slide, path = simulated / "P1", tmp_path / "P1.vst"
    arguments = ["extract", slide / "outs", "--image", slide / "tissue_image.tif", "--store", path,
                 "--patient", "P1", "--encoder", "stain", "--device", "cpu"]  # fmt: skip

    def killed(self: StoreWriter, manifest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finish", killed)
        assert vst(*arguments, "--token-dtype", "int8").code == 130
    answer = vst(*arguments)
    assert answer.code == 2
    assert "other inputs or options" in answer.err
    assert vst(*arguments, "--token-dtype", "int8").code == 0
    assert open_store(path).token_dtype == "int8"
