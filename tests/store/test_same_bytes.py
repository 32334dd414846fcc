"""The same records give the same ``data.mdb``, byte by byte, whatever lay in a process's memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SUPPORT = Path(__file__).parents[1] / "support"
WRITE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_store import make_records, write_records
SECRET = [bytes([int(sys.argv[3])]) * 4096 for _ in range(5000)]
del SECRET  # the heap's pages are full of it
write_records(Path(sys.argv[2]), make_records(9, n_genes=20, seed=3), 20)
"""


def test_two_processes_write_the_same_file(tmp_path: Path) -> None:
    """With MALLOC_PERTURB_ the C library fills the memory that it gives out with other bytes."""
    written = []
    for name, byte in ("a", 165), ("b", 90):
        arguments = [sys.executable, "-c", WRITE, SUPPORT, tmp_path / name, byte]
        environment = os.environ | {"MALLOC_PERTURB_": str(byte)}
        done = subprocess.run([*map(str, arguments)], capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        written.append(np.frombuffer((tmp_path / name / "data.mdb").read_bytes(), np.uint8))
    assert written[0].size == written[1].size
    assert np.flatnonzero(written[0] != written[1]).tolist() == []
