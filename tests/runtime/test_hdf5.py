"""HDF5 on a disk that runs full, for which a limit on the size of files stands."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from virchow_st.runtime.hdf5 import is_held_by_another, written_hdf5

WRITE = """
import resource, sys
import numpy as np
from pathlib import Path
from virchow_st.runtime.hdf5 import written_hdf5

limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with written_hdf5(Path(sys.argv[1])) as output:
        file = output.file
        data = file.create_dataset("rate", (40, 128, 128), "f4", chunks=(1, 64, 64),
                                   compression="gzip")
        for i in range(40):
            data[i] = np.random.default_rng(i).random((128, 128))
        file["name"] = ["a", "b"]
        file.attrs["text"] = "x" * 500
except OSError as e:
    print(e.errno, e.filename)
"""


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("limit", [0, 1, 700, 3000, 100_000, 1_500_000])
def test_a_full_disk_is_told_and_the_process_lives(tmp_path, limit):
    """HDF5 alone ends such a process with a segmentation fault at its exit."""
    path = tmp_path / "a.h5"
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(path), str(limit)], capture_output=True, text=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stderr == ""
    assert done.stdout == f"{errno.EFBIG} {path}\n"


def test_a_long_job_learns_of_it_early(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = 0

    def job() -> None:
        nonlocal written
        with written_hdf5(tmp_path / "a.h5") as output:
            for i in range(100):
                output.file[str(i)] = np.zeros(10_000)
                written += 1
                output.check()

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"a\.h5"):
            job()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert written < 10


def test_what_was_written_is_read_by_hdf5_itself(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.random((30, 100, 70)).astype("f4")
    with written_hdf5(tmp_path / "a.h5") as output:
        data = output.file.create_dataset(
            "x", values.shape, "f4", chunks=(1, 64, 64), compression="gzip", shuffle=True
        )
        for i in rng.permutation(30):
            data[i] = values[i]
            assert (data[i] == values[i]).all()
        output.file.attrs["name"] = "µ"
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["x"][:] == values).all()
        assert file.attrs["name"] == "µ"


def test_a_file_that_another_program_writes_is_known(tmp_path: Path):
    path = tmp_path / "a.h5"
    other = "import h5py, sys, time; f = h5py.File(sys.argv[1], 'w'); print(1, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", other, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with pytest.raises(OSError, match="lock") as held:
            h5py.File(path, "r")
    finally:
        process.communicate(b"\n")
    assert is_held_by_another(held.value)
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    with pytest.raises(OSError, match="signature") as damaged:
        h5py.File(tmp_path / "b.h5", "r")
    assert not is_held_by_another(damaged.value)
