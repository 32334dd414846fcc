"""Which device a job runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virchow_st.errors import ConfigError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """Turn the option ``--device`` into a torch device that is really there.

    ``auto`` is the first CUDA device, or the CPU where there is none. Any other name is taken at
    its word: asking for CUDA on a machine without it raises `ConfigError`, because a job that runs
    a hundred times slower than expected is not what was asked for.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()) or name.endswith(":"):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N; got {name!r}")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device: {name} was asked for and this machine has no CUDA device that torch can use; "
            "check the driver with nvidia-smi, or choose cpu or auto"
        )
    count = torch.cuda.device_count()
    if index and int(index) >= count:
        raise ConfigError(f"device: expected cuda:0 to cuda:{count - 1}; got {name!r}")
    return torch.device(name)
