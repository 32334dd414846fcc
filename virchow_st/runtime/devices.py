"""The device that a job runs on, and its free memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virchow_st.errors import ConfigError
from virchow_st.runtime.memory import free_ram

if TYPE_CHECKING:
    import torch


def core_count() -> int:
    """Number of cores that this process may use; on macOS, which cannot tell, all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names of this machine's CUDA devices, as ``CUDA_VISIBLE_DEVICES`` has them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(i) for i in range(count)]


def pick_device(name: str, process: int | None = None) -> torch.device:
    """Convert the option ``--device`` to a torch device, after checking that it exists.

    ``auto`` is the first CUDA device, or the CPU if there is none. ``cuda`` on a machine without
    CUDA raises `ConfigError` and does not fall back to the CPU, which would be a hundred times
    slower.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        process: number on this machine of one of several processes, from 0; each takes the CUDA
            device of its number, and none may be named.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
    if process is not None:
        return torch.device("cuda", _own_device(name, index, process, count))
    if index and int(index) >= count:
        raise ConfigError(f"device: expected cuda:0 to cuda:{count - 1}; got {name!r}")
    return torch.device(name)


def _own_device(name: str, index: str, process: int, count: int) -> int:
    if index:
        raise ConfigError(
            f"device: expected auto, cpu or cuda with several processes, which take a device each; "
            f"got {name!r}"
        )
    if process >= count:
        raise ConfigError(
            f"device: expected a CUDA device for each process; this machine has {count} and runs "
            f"{process + 1} processes or more; start fewer with --nproc-per-node"
        )
    return process


def free_memory(device: torch.device) -> int:
    """Free memory of a CUDA device, or of the machine for the CPU, in bytes."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_ram()
