"""Names of devices: auto, cpu, cuda and cuda:N; others are refused."""

from __future__ import annotations

import pytest
import torch
from tiny_vit import CPU

from virchow_st.errors import ConfigError
from virchow_st.runtime.devices import pick_device


def test_devices() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:", "cuda:x", "mps"):
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
            pick_device(name)


def test_cuda_is_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        pick_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="expected cuda:0 to cuda:1"):
        pick_device("cuda:2")
