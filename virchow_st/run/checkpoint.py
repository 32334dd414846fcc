"""Checkpoints as safetensors and JSON, without pickle; a folder appears only when complete.

``state.json`` holds hashes of the tensors' file, of the run's other files
(`virchow_st.run.integrity`), and of its own content.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from virchow_st.errors import ConfigError
from virchow_st.run.integrity import hash_file
from virchow_st.run.state import FORMAT, STATE, TENSORS, read_state, sealed, tensors_file
from virchow_st.runtime.atomic import replaced_folder


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Replace ``folder`` by a checkpoint of the modules, the optimiser's moments and ``state``."""
    _write(folder, _copied(modules, optimizer), state)


class CheckpointWriter:
    """Saves checkpoints in a thread, in order, while training continues; `close` waits for the
    last.

    The tensors are copied first, so that the next step may change them. An error is raised by one
    of the next calls, at the latest by `close`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._writing: list[Future[None]] = []

    def save(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        state: Mapping[str, Any],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """As `save_checkpoint`, but returns before the files are written."""
        self._wait(n_left=1)  # the best and the last one of an epoch, and no more in memory
        tensors = _copied(modules, optimizer)
        self._writing.append(self._thread.submit(_write, folder, tensors, dict(state)))

    def _wait(self, n_left: int) -> None:
        while len(self._writing) > n_left:
            self._writing.pop(0).result()

    def close(self) -> None:
        """Write the remaining checkpoints and end the thread."""
        try:
            self._wait(n_left=0)
        finally:
            self._thread.shutdown()


def _copied(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None
) -> dict[str, Tensor]:
    tensors = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    if optimizer is not None:
        tensors |= {
            f"optimizer.{index}.{key}": value
            for index, moments in optimizer.state_dict()["state"].items()
            for key, value in moments.items()
        }
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }


def _write(folder: Path, tensors: dict[str, Tensor], state: Mapping[str, Any]) -> None:
    with replaced_folder(folder) as aside:
        try:
            (aside / TENSORS).touch()  # with the rights that the umask gives
            rights = (aside / TENSORS).stat().st_mode
            save_file(tensors, aside / TENSORS)
            (aside / TENSORS).chmod(rights)  # safetensors lets nobody but the owner read it
        except SafetensorError as e:
            raise _as_os_error(e, aside / TENSORS) from None
        content = sealed({"format": FORMAT, **state, "tensors_xxh64": hash_file(aside / TENSORS)})
        (aside / STATE).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """What the disk said, which safetensors passes on as a text."""
    found = re.search(r"os error (\d+)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error), str(path))


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, Any]:
    """Load what `save_checkpoint` saved into modules of the same shapes; returns the state."""
    state = read_state(folder)
    file = tensors_file(folder, state)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as e:
        raise ConfigError(f"{file}: cannot be read ({e}); train again") from None
    for name, module in modules.items():
        own = {
            k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")
        }
        try:
            module.load_state_dict(own)
        except RuntimeError as e:
            reason = str(e).splitlines()[-1].strip()
            raise ConfigError(f"{folder}: does not fit the {name} ({reason})") from None
    if optimizer is not None:
        try:
            _load_optimizer(optimizer, tensors)
        except (ValueError, KeyError, RuntimeError) as e:
            raise ConfigError(f"{file}: does not fit the optimiser ({e}); train again") from None
    return state


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
