"""The pipeline of an extraction: batches, memory that runs out, Ctrl-C, threads that render."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from tiny_cohort import STAIN
from tiny_vit import tiny_encoder

from virchow_st.errors import ConfigError, SlideError, StoreError
from virchow_st.extract.pipeline import Batches
from virchow_st.extract.slide import extract_slide
from virchow_st.models.encoders import load_encoder
from virchow_st.models.encoders.base import Encoder, Tokens
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import lay_patches, render_patch
from virchow_st.slide.render import render_ahead
from virchow_st.slide.visium_hd import VisiumHDSlide
from virchow_st.store.reader import Store, open_store, verify
from virchow_st.store.writer import StoreWriter


class Told(list[str]):
    """Progress that keeps the notes and warnings."""

    def note(self, text: str) -> None:
        self.append(text)

    warn = note

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        if unit == "patches":
            self.append(f"step {done}/{total}")


class Fake(Encoder):
    """An encoder whose tokens tell the image, the place in the batch and the batch's size.

    So records come out the same only if every patch was encoded in the same batch.
    """

    name, dim, image_px, weights_hash, batch = "fake", 4, 32, "0", 2

    def __init__(self, room: int = 99) -> None:
        self.room = room
        self.sizes: list[int] = []
        self.before: Callable[[], None] = lambda: None

    def encode(self, images: np.ndarray) -> Tokens:
        if len(images) > self.room:
            raise MemoryError
        self.before()
        self.sizes.append(len(images))
        n = len(images)
        tokens = np.empty((n, 16, 16, 4), np.float16)
        tokens[..., 0] = images.mean(axis=(1, 2, 3))[:, None, None]
        tokens[..., 1] = np.arange(n)[:, None, None]
        tokens[..., 2:] = n
        return Tokens(tokens, tokens[:, 0, 0])


def run(
    simulated: Path, store: Path, encoder: Encoder | None, progress: Any = None, **options: Any
) -> Store:
    slide = simulated / "P1"  # 9 patches
    return extract_slide(
        slide / "outs", slide / "tissue_image.tif", store, "P1", STAIN,
        Told() if progress is None else progress, encoder, **options,
    )  # fmt: skip


def content(store: Path) -> tuple[dict[bytes, bytes], dict[str, Any]]:
    """Records and manifest; of a copy, as this process may have the store open already."""
    copy = shutil.copytree(store, store.with_name(f"copy of {store.name}"), dirs_exist_ok=True)
    with lmdb.open(str(copy), readonly=True, lock=False) as env, env.begin() as txn:
        records = {bytes(k): bytes(v) for k, v in txn.cursor()}
    return records, {**json.loads((store / "store.json").read_text()), "slide": ""}


def batches_of(store: Path) -> list[list[int]]:
    name = "store.json" if (store / "store.json").exists() else "job.json"
    content = json.loads((store / name).read_text())
    encoding: dict[str, Any] = content.get("job", content)["encoding"]
    assert encoding["precision"] == "float32"
    batches: list[list[int]] = encoding["batches"]
    return batches


class Killed(BaseException):
    """Ends an extraction as a kill does: no handler of the package knows it."""


def killed_after(n_commits: int, monkeypatch: pytest.MonkeyPatch, start: Callable[[], Any]) -> None:
    append, left = StoreWriter.append, [n_commits]

    def die(self: StoreWriter, records: Any) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        append(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "append", die)
        with pytest.raises(Killed):
            start()


# --- batches ------------------------------------------------------------------------------------


def test_batches_get_smaller_from_a_patch_on() -> None:
    batches = Batches(((0, 64),)).shrunk(128, 32).shrunk(160, 16)
    assert batches.steps == ((0, 64), (128, 32), (160, 16))
    assert [batches.size(p) for p in (0, 127, 128, 159, 160, 9999)] == [64, 64, 32, 32, 16, 16]
    assert batches.shrunk(64, 32).steps == ((0, 64), (64, 32))  # begun again from patch 64
    assert batches.shrunk(128, 8).steps == ((0, 64), (128, 8))


@pytest.mark.parametrize("n_commits", [0, 1, 3, 4])
def test_a_killed_extraction_resumes_to_the_same_bytes(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_commits: int
) -> None:
    whole, store = tmp_path / "whole.vst", tmp_path / "P1.vst"
    encoder = Fake()
    run(simulated, whole, encoder)
    assert encoder.sizes == [2, 2, 2, 2, 1]
    killed_after(n_commits, monkeypatch, lambda: run(simulated, store, Fake()))
    other = Fake()
    other.batch = 7  # as on a device with more memory: the store's own batches are kept to
    assert verify(run(simulated, store, other)) == []
    assert sum(other.sizes) == 9 - 2 * n_commits
    assert content(store) == content(whole)
    assert batches_of(store) == [[0, 2]]


def test_a_killed_extraction_with_a_vit_resumes_to_the_same_bytes(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing, four images at once: tokens of 8 µm, so each patch is a batch."""
    from virchow_st.models.encoders.quarters import Quartered

    whole, store = tmp_path / "whole.vst", tmp_path / "P1.vst"
    run(simulated, whole, Quartered(tiny_encoder()))
    killed_after(3, monkeypatch, lambda: run(simulated, store, Quartered(tiny_encoder())))
    run(simulated, store, Quartered(tiny_encoder()))
    assert content(store) == content(whole)
    assert open_store(store).token_shape == (32, 32, 48)


def test_other_precision_is_refused(simulated: Path, tmp_path: Path, monkeypatch: Any) -> None:
    store = tmp_path / "P1.vst"
    killed_after(1, monkeypatch, lambda: run(simulated, store, Fake()))
    rough = Fake()
    rough.precision = "bfloat16"
    with pytest.raises(StoreError, match=r"was begun in float32; here fake runs in bfloat16"):
        run(simulated, store, rough)
    assert len(run(simulated, store, Fake())) == 9
    assert len(run(simulated, store, rough)) == 9  # finished: whatever runs here does not matter


# --- memory -------------------------------------------------------------------------------------


def test_memory_that_runs_out_halves_the_batch_and_is_recorded(
    simulated: Path, tmp_path: Path
) -> None:
    told, encoder = Told(), Fake(room=3)
    encoder.batch = 8
    store = run(simulated, tmp_path / "P1.vst", encoder, told)
    assert encoder.sizes == [2, 2, 2, 2, 1]
    assert batches_of(store.path) == [[0, 2]]
    assert [t for t in told if t.startswith("out of memory")] == [
        "out of memory at 8 patches per batch; continuing with 4 from patch 0 on",
        "out of memory at 4 patches per batch; continuing with 2 from patch 0 on",
    ]
    assert verify(store) == []


def test_a_batch_halved_on_the_way_resumes_to_the_same_bytes(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cramped_later() -> Fake:
        encoder = Fake()
        encoder.batch = 4

        def shrink() -> None:
            encoder.room = 2

        encoder.before = shrink  # after the first batch
        return encoder

    whole, store = tmp_path / "whole.vst", tmp_path / "P1.vst"
    run(simulated, whole, cramped_later())
    assert batches_of(whole) == [[0, 4], [4, 2]]
    killed_after(2, monkeypatch, lambda: run(simulated, store, cramped_later()))
    assert batches_of(store) == [[0, 4], [4, 2]]
    roomy = Fake()
    run(simulated, store, roomy)
    assert roomy.sizes == [2, 1]
    assert content(store) == content(whole)


def test_a_patch_that_does_not_fit_is_told_in_a_line(simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="single patch does not fit the free memory") as e:
        run(simulated, tmp_path / "P1.vst", Fake(room=0))
    assert "\n" not in str(e.value)


# --- the order of things ------------------------------------------------------------------------


def test_the_next_batch_is_begun_before_the_last_is_waited_for(
    simulated: Path, tmp_path: Path
) -> None:
    log: list[str] = []

    class Logged(Fake):
        def launch(self, images: np.ndarray) -> Callable[[], Tokens]:
            number = len(self.sizes)
            tokens = self.encode(images)
            log.append(f"begin {number}")
            return lambda: log.append(f"wait {number}") or tokens  # type: ignore[func-returns-value]

    run(simulated, tmp_path / "P1.vst", Logged())
    expected = ["begin 0"]
    for n in range(1, 5):
        expected += [f"begin {n}", f"wait {n - 1}"]
    assert log == [*expected, "wait 4"]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as Python has it; a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_finishes_the_batch_and_says_how_to_resume(simulated: Path, tmp_path: Path) -> None:
    whole, store = tmp_path / "whole.vst", tmp_path / "P1.vst"
    run(simulated, whole, Fake())
    told, encoder = Told(), Fake()

    def press() -> None:
        if len(encoder.sizes) == 1:
            signal.raise_signal(signal.SIGINT)

    encoder.before = press
    with pytest.raises(KeyboardInterrupt):
        run(simulated, store, encoder, told)
    assert encoder.sizes == [2, 2]
    assert any("stopping after this batch; press Ctrl-C again" in t for t in told)
    assert told[-1] == (f"{store}: stopped after 4 of 9 patches; the same command resumes there")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not any(t.name.startswith("render") for t in threading.enumerate())
    other = Fake()
    run(simulated, store, other)
    assert other.sizes == [2, 2, 1]
    assert content(store) == content(whole)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_twice_stops_at_once(simulated: Path, tmp_path: Path) -> None:
    encoder = Fake()

    def press_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    encoder.before = press_twice
    with pytest.raises(KeyboardInterrupt):
        run(simulated, tmp_path / "P1.vst", encoder)
    assert encoder.sizes == []
    assert len(run(simulated, tmp_path / "P1.vst", Fake())) == 9


# --- rendering ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(simulated: Path) -> tuple[VisiumHDSlide, Any]:
    slide = VisiumHDSlide.open(simulated / "P1" / "outs")
    return slide, lay_patches(slide.tissue_mask, 0.5)


def test_threads_render_what_one_renders_in_order(
    simulated: Path, opened: tuple[VisiumHDSlide, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, patches = opened
    monkeypatch.setattr("virchow_st.slide.render.thread_count", lambda: 4)
    with SlideImage.open(simulated / "P1" / "tissue_image.tif") as image:
        rendered = list(render_ahead(image, slide.homography, patches, 224, first=2, n_ahead=3))
        assert len(rendered) == len(patches) - 2
        for index, actual in enumerate(rendered, 2):
            (stored, _), (encoded, _) = render_patch(
                image, slide.homography, int(patches.row0[index]), int(patches.col0[index]),
                (256, 224),
            )  # fmt: skip
            np.testing.assert_array_equal(actual.stored, stored)
            np.testing.assert_array_equal(actual.encoded, encoded)


def test_rendering_stays_a_few_patches_ahead(
    simulated: Path, opened: tuple[VisiumHDSlide, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, patches = opened
    asked: list[int] = []
    real = render_patch

    def counted(*arguments: Any) -> Any:
        asked.append(1)
        return real(*arguments)

    monkeypatch.setattr("virchow_st.slide.render.render_patch", counted)
    with SlideImage.open(simulated / "P1" / "tissue_image.tif") as image:
        with closing(render_ahead(image, slide.homography, patches, 64, n_ahead=2)) as rendered:
            next(rendered)
        assert 1 <= len(asked) <= 4


def test_a_damaged_image_ends_the_extraction_and_keeps_what_was_written(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = render_patch, [0]

    def damaged(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 7:
            raise SlideError("image.tif: expected a TIFF image; it is damaged")
        return real(*arguments)

    monkeypatch.setattr("virchow_st.slide.render.thread_count", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr("virchow_st.slide.render.render_patch", damaged)
        with pytest.raises(SlideError, match="damaged"):
            run(simulated, tmp_path / "P1.vst", Fake())
    encoder = Fake()
    assert len(run(simulated, tmp_path / "P1.vst", encoder)) == 9
    assert sum(encoder.sizes) < 9


def test_stain_tokens_do_not_depend_on_the_batch(
    simulated: Path, stores: Any, tmp_path: Path
) -> None:
    encoder = load_encoder("stain")
    encoder.batch = 5
    again = run(simulated, tmp_path / "P1.vst", encoder)
    for a, b in zip(again, open_store(stores["P1"]), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.image, b.image)
