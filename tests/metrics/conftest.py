"""A slide of random patches that several modules score."""

from __future__ import annotations

import pytest
from scored_patches import Patch, draw


@pytest.fixture(scope="session")
def slide() -> list[Patch]:
    """Twelve patches; read only."""
    return draw(12)
