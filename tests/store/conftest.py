"""A store that nothing happened to."""

from __future__ import annotations

from pathlib import Path

import pytest
from written_store import write


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that nothing happened to; read only."""
    path = tmp_path_factory.mktemp("whole") / "A.vst"
    assert write(path).returncode == 0
    return path
