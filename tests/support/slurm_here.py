"""Commands with ``--executor slurm`` whose jobs are processes of this machine, by submitit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_CODE = """
import sys
from functools import partial
from virchow_st.cohort import on_slurm
from virchow_st_cli.main import run
on_slurm.SlurmExecutor = partial(on_slurm.SlurmExecutor, cluster="local")
sys.exit(run(sys.argv[1:]))
"""


def start(*arguments: object, folder: Path) -> subprocess.Popen[str]:
    """Start ``vst`` with these arguments, in a folder and a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, *map(str, arguments)], text=True, cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, start_new_session=True,
    )  # fmt: skip
