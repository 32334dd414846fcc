"""Caches of compiled code in a container with a read-only file system and HOME."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from virchow_st.runtime import caches


@pytest.fixture
def places(tmp_path, monkeypatch):
    for name in caches._FOLDERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/proc/none")
    # As on a read-only file system; root is asked no permission elsewhere.
    real = os.access
    monkeypatch.setattr(
        caches.os, "access", lambda path, how: Path(path) == tmp_path and real(path, how)
    )
    yield tmp_path
    for name in caches._FOLDERS:
        os.environ.pop(name, None)


def test_caches_find_a_place_of_our_own(places):
    caches.place_caches()
    root = places / f"virchow_st-{os.getuid()}"
    assert root.stat().st_mode & 0o777 == 0o700
    assert os.environ["NUMBA_CACHE_DIR"] == str(root / "numba")
    assert os.environ["MPLCONFIGDIR"] == str(root / "matplotlib")


def test_what_the_user_set_stays(places, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/fast/triton")
    caches.place_caches()
    assert os.environ["TRITON_CACHE_DIR"] == "/fast/triton"
    assert "MPLCONFIGDIR" in os.environ


def test_nothing_changes_with_a_home(places, monkeypatch):
    monkeypatch.setenv("HOME", str(places))
    caches.place_caches()
    assert not {name for name in caches._FOLDERS if name in os.environ}
    assert not list(places.iterdir())


def test_a_folder_that_others_can_fill_is_not_used(places):
    folder: Path = places / f"virchow_st-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    caches.place_caches()
    assert not os.environ["MPLCONFIGDIR"].startswith(f"{folder}/")


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77
export HOME="$1/none" TMPDIR="$2" PYTHONDONTWRITEBYTECODE=1
exec "$3" -c 'import numpy as np
from virchow_st.kernels.pooling import sum_pool
print(sum_pool(np.ones((1, 8, 8), "f4"), 4).sum())'
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_kernels_load_in_a_read_only_container(tmp_path):
    """Numba refused to: "cannot cache function 'sum_pool': no locator available"."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    script = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh"]
    environment = {k: v for k, v in os.environ.items() if k not in caches._FOLDERS}
    done = subprocess.run(
        [*script, str(Path(caches.__file__).parents[2]), str(tmp_path), sys.executable],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert done.stdout == "64.0\n", done.stderr
    assert list(tmp_path.glob("virchow_st-*/numba/*"))
