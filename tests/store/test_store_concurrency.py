"""Many readers of one store: threads, forked and spawned processes; one writer, and no more."""

import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_store import JOB, checksum_of_all, make_manifest, make_records, write_store

from virchow_st.errors import StoreError
from virchow_st.runtime.lock import BusyError
from virchow_st.store.reader import open_store
from virchow_st.store.writer import StoreWriter

HERE = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "A.vst", n_patches=6, grid=4)


def read_patches(store, indices):
    """What a data loader's worker does: some patches, in any order."""
    return [int(store[i].tokens.view(np.uint16).sum(dtype=np.int64)) for i in indices]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_what_the_parent_has_opened_and_read(store, method):
    order = [5, 0, 3, 3, 1, 4, 2, 0]
    expected = read_patches(store, order)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        shares = list(pool.map(read_patches, [store] * 4, [order[i : i + 2] for i in (0, 2, 4, 6)]))
    assert [total for share in shares for total in share] == expected
    assert read_patches(store, order) == expected  # the parent's file is still open


def read_on_and_on(store, stop, expected, wrong):
    while not stop.is_set():
        if checksum_of_all(store) != expected:
            wrong.append(1)


def test_fork_while_threads_read_and_open(store):
    """A fork may come at any moment; whatever another thread held then must not be needed."""
    expected = checksum_of_all(store)
    stop, wrong = threading.Event(), []
    threads = [
        threading.Thread(target=read_on_and_on, args=(s, stop, expected, wrong))
        for s in (store, open_store(store.path))
    ]
    opener = threading.Thread(target=lambda: [open_store(store.path) for _ in range(200)])
    for thread in [*threads, opener]:
        thread.start()
    try:
        for _ in range(12):
            child = os.fork()
            if not child:
                signal.alarm(30)  # a hang ends as a signal
                same = checksum_of_all(store) == expected == checksum_of_all(open_store(store.path))
                os._exit(0 if same else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in [*threads, opener]:
            thread.join()
    assert not wrong


def test_eight_threads_on_one_store_object(store):
    expected = checksum_of_all(store)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: checksum_of_all(store), range(32))) == [expected] * 32


def test_many_processes_at_once(store):
    code = (
        "import sys; from tiny_store import checksum_of_all;"
        "from virchow_st.store.reader import open_store;"
        "print(checksum_of_all(open_store(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, store.path]
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE) for _ in range(8)
    ]
    answers = {reader.communicate(timeout=60)[0].strip() for reader in readers}
    assert answers == {str(checksum_of_all(store))}


def test_torch_data_loader_workers(store):
    from torch.utils.data import DataLoader, Dataset

    class Patches(Dataset):
        def __len__(self):
            return len(store)

        def __getitem__(self, index):
            return store[index].tokens

    batches = DataLoader(Patches(), batch_size=2, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        read = np.concatenate([batch.numpy() for batch in batches])
        np.testing.assert_array_equal(read, [patch.tokens for patch in store])


def test_no_file_stays_open_after_its_stores_are_gone(store):
    def n_open():
        return len(os.listdir("/proc/self/fd"))

    gc.collect()  # of other tests' stores
    before = n_open()
    stores = [open_store(store.path) for _ in range(20)]
    assert n_open() >= before + 20
    assert checksum_of_all(stores[7]) == checksum_of_all(store)
    del stores
    assert n_open() == before


def test_pickled_store_is_its_folder(store):
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert checksum_of_all(pickle.loads(pickled)) == checksum_of_all(store)
    assert read_patches(store, [2]) == [
        int(pickle.loads(pickle.dumps(store[2])).tokens.view(np.uint16).sum(dtype=np.int64))
    ]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_moved_while_open(tmp_path, store, method):
    """Who has it open reads on, and so do forked workers; a spawned one says what is wrong."""
    moving = open_store(shutil.copytree(store.path, tmp_path / "B.vst"))
    expected = checksum_of_all(moving)
    moved = moving.path.rename(tmp_path / "C.vst")
    assert checksum_of_all(moving) == expected == checksum_of_all(open_store(moved))
    if method == "fork":
        child = os.fork()
        if not child:
            os._exit(0 if checksum_of_all(moving) == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
    else:
        with pytest.raises(StoreError, match=r"B.vst: no such store"):
            pickle.loads(pickle.dumps(moving))


def test_deleted_and_copied_while_open(tmp_path, store):
    opened = open_store(shutil.copytree(store.path, tmp_path / "B.vst"))
    expected = checksum_of_all(opened)
    copy = shutil.copytree(opened.path, tmp_path / "C.vst")
    shutil.rmtree(opened.path)
    assert checksum_of_all(opened) == expected == checksum_of_all(open_store(copy))


def try_to_write(path):
    try:
        StoreWriter(path, JOB)
    except BusyError as e:
        return str(e)
    return "could write"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_second_writer_in_another_process_is_refused_by_name(tmp_path, method):
    path = tmp_path / "A.vst"
    records = make_records(2, grid=4)
    with StoreWriter(path, JOB) as writer:
        writer.append(records[:1])
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
            refusal = pool.submit(try_to_write, path).result()
        assert f"being written by process {os.getpid()} on {os.uname().nodename}" in refusal
        writer.append(records[1:])
        writer.finish(make_manifest(records, 6))
    assert len(open_store(path)) == 2


def test_store_being_written_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "A.vst"
    with StoreWriter(path, JOB) as writer:
        writer.append(make_records(1, grid=4))
        with pytest.raises(
            StoreError, match=f"being written by process {os.getpid()} on .*; wait for that to end"
        ):
            open_store(path)
    with pytest.raises(StoreError, match="unfinished; run its `vst extract` again"):
        open_store(path)


def test_writers_that_start_together_leave_one(tmp_path):
    """Each either writes or is refused; never two, and never none."""
    path = tmp_path / "A.vst"
    refusals, written = [], []
    barrier = threading.Barrier(8)

    def start():
        barrier.wait()
        try:
            writer = StoreWriter(path, JOB)
        except BusyError as e:
            refusals.append(str(e))
        else:
            written.append(writer)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert len(refusals) == 7
    assert all("being written by" in refusal for refusal in refusals)
    with written[0] as writer:
        writer.append(make_records(1, grid=4))
        assert writer.next_index == 1
