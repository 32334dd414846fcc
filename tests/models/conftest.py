"""Inputs shared by tests of encoders and decoders."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_vit import tiny_published

from virchow_st.models.encoders.published import PUBLISHED, VIRCHOW2


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)


@pytest.fixture
def small_virchow2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virchow2 with the tiny model in place of the 2.5 GB one, in float32 on any CPU."""
    monkeypatch.setitem(PUBLISHED, VIRCHOW2.repo.lower(), tiny_published())
    monkeypatch.setattr(
        "virchow_st.models.encoders.network.native_precision", lambda device: torch.float32
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for a busy core slow down work as small as this many times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
