"""The writer thread: nothing lost, nothing misplaced, no hang, whatever goes wrong and when."""

# ruff: noqa: PT012 (what is tested is where in a block an error comes up)
from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import pytest
from tiny_store import JOB, make_manifest, make_records, write_records

from virchow_st.errors import StoreError
from virchow_st.store.background import BackgroundWriter
from virchow_st.store.reader import open_store, verify
from virchow_st.store.writer import PatchRecord, StoreWriter

SOON = 20.0  # seconds after which a wait is a hang


def committed(path: Path) -> list[tuple[bytes, bytes]]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return list(txn.cursor())


class GatedWriter(StoreWriter):
    """A writer that commits only once it is let, and may fail at a batch."""

    def __init__(self, path: Path, fails_at: int | None = None) -> None:
        super().__init__(path, JOB)
        self.gate = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.fails_at = fails_at
        self.n_batches = 0

    def append(self, records: Sequence[PatchRecord]) -> None:
        self.began.release()
        assert self.gate.acquire(timeout=SOON), "nobody opened the gate"
        batch, self.n_batches = self.n_batches, self.n_batches + 1
        if batch == self.fails_at:
            raise StoreError(f"{self.path}: writing failed")
        super().append(records)

    def open(self, n: int = 100) -> None:
        """Let ``n`` more batches through."""
        self.gate.release(n)


def later(action: Callable[[], None], after: float = 0.1) -> None:
    threading.Timer(after, action).start()


def press_ctrl_c() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@pytest.fixture
def arrived() -> Iterator[threading.Event]:
    """Set when Ctrl-C has reached the main thread."""
    event = threading.Event()

    def handler(number: int, frame: Any) -> None:
        event.set()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, handler)
    yield event
    signal.signal(signal.SIGINT, before)


def press_ctrl_c_then(arrived: threading.Event, action: Callable[[], None]) -> None:
    """The signal first, however busy the machine is."""
    press_ctrl_c()
    assert arrived.wait(SOON)
    time.sleep(0.3)  # for what the main thread does about it
    action()


def test_what_a_thread_writes_is_what_the_writer_writes(tmp_path: Path) -> None:
    records = make_records(7)
    whole = write_records(tmp_path / "whole.vst", records, 6)
    path = tmp_path / "A.vst"
    with StoreWriter(path, JOB) as writer:
        with BackgroundWriter(writer) as background:
            for start in range(0, 7, 2):
                background.append(records[start : start + 2])
        assert writer.next_index == 7
        writer.finish(make_manifest(records, 6))
    assert verify(open_store(path)) == []
    assert committed(path) == committed(whole.path)
    assert (path / "store.json").read_bytes() == (whole.path / "store.json").read_bytes()


def test_handing_over_waits_only_when_two_batches_wait(tmp_path: Path) -> None:
    records = make_records(5)
    with GatedWriter(tmp_path / "A.vst") as writer, BackgroundWriter(writer) as background:
        for i in range(3):  # one at work, two that wait: none of them waits for the disk
            background.append(records[i : i + 1])
        assert writer.next_index == 0
        fourth = threading.Thread(target=background.append, args=(records[3:4],))
        fourth.start()
        fourth.join(0.2)
        assert fourth.is_alive(), "memory would not be bounded"
        writer.open(1)
        fourth.join(SOON)
        assert not fourth.is_alive()
        writer.open()
    assert len(committed(tmp_path / "A.vst")) == 4 * 7


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_failure_comes_up_at_the_next_batch_and_leaves_no_gap(
    tmp_path: Path, fails_at: int
) -> None:
    records = make_records(9)
    handed_over = 0
    with GatedWriter(tmp_path / "A.vst", fails_at) as writer:
        writer.open()
        with pytest.raises(StoreError, match="writing failed"), BackgroundWriter(writer) as thread:
            for record in records:
                thread.append([record])
                handed_over += 1
        assert fails_at < handed_over <= fails_at + 3
        assert writer.next_index == fails_at
    assert len(committed(tmp_path / "A.vst")) == fails_at * 7


def test_a_failure_of_the_last_batch_comes_up_on_leaving(tmp_path: Path) -> None:
    records = make_records(3)
    with GatedWriter(tmp_path / "A.vst", fails_at=1) as writer:
        with pytest.raises(StoreError, match="writing failed"), BackgroundWriter(writer) as thread:
            for record in records:
                thread.append([record])
            writer.open()
        assert writer.next_index == 1  # and the third is not in the second's place
    assert committed(tmp_path / "A.vst")[-1][0][:4] == bytes(4)


def test_a_failure_frees_a_hand_over_that_waits(tmp_path: Path) -> None:
    records = make_records(4)
    with GatedWriter(tmp_path / "A.vst", fails_at=0) as writer:
        with pytest.raises(StoreError, match="writing failed"), BackgroundWriter(writer) as thread:
            for record in records[:3]:
                thread.append([record])
            later(writer.open)
            thread.append([records[3]])
        assert writer.next_index == 0


def test_an_error_of_the_block_finishes_one_batch_and_drops_the_rest(tmp_path: Path) -> None:
    records = make_records(3)
    with GatedWriter(tmp_path / "A.vst") as writer:
        with pytest.raises(RuntimeError), BackgroundWriter(writer) as thread:
            for record in records:
                thread.append([record])
            assert writer.began.acquire(timeout=SOON)
            later(writer.open)
            raise RuntimeError("the encoder's")
        assert writer.next_index == 1
    assert len(committed(tmp_path / "A.vst")) == 7


def test_ctrl_c_while_a_batch_is_committed(tmp_path: Path, arrived: threading.Event) -> None:
    """The second Ctrl-C comes while the first one waits for the commit."""
    records = make_records(3)
    with GatedWriter(tmp_path / "A.vst") as writer:
        with pytest.raises(KeyboardInterrupt), BackgroundWriter(writer) as thread:
            for record in records:
                thread.append([record])
            assert writer.began.acquire(timeout=SOON)
            later(lambda: press_ctrl_c_then(arrived, writer.open))
            raise KeyboardInterrupt
        assert writer.next_index == 1
    assert len(committed(tmp_path / "A.vst")) == 7


def test_ctrl_c_while_the_last_batches_are_waited_for(
    tmp_path: Path, arrived: threading.Event
) -> None:
    records = make_records(3)
    with GatedWriter(tmp_path / "A.vst") as writer:
        with pytest.raises(KeyboardInterrupt), BackgroundWriter(writer) as thread:
            for record in records:
                thread.append([record])
            assert writer.began.acquire(timeout=SOON)
            later(lambda: press_ctrl_c_then(arrived, writer.open))
        assert writer.next_index == 1
    with StoreWriter(tmp_path / "A.vst", JOB) as writer, BackgroundWriter(writer) as thread:
        thread.append(records[1:])
    assert len(committed(tmp_path / "A.vst")) == 3 * 7


def test_nothing_to_write(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "A.vst", JOB) as writer, BackgroundWriter(writer):
        pass
    assert committed(tmp_path / "A.vst") == []
