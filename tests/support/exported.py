"""What tests of exports share: packages that they need, and maps at 8 µm."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

SPATIAL = "pip install 'virchow_st[spatial]'"
needs_anndata = pytest.mark.skipif(find_spec("anndata") is None, reason=SPATIAL)


def run_alone(code: str, *arguments: object) -> None:
    """In a process of its own: spatialdata brings dask, pandas and a hundred warnings."""
    code = "import sys, warnings\nwarnings.simplefilter('ignore')\n" + code
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def pooled(values: np.ndarray, factor: int = 4) -> np.ndarray:
    g, rows, cols = values.shape
    shape = g, rows // factor, factor, cols // factor, factor
    return values.astype(float).reshape(shape).sum(axis=(2, 4))
