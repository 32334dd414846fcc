"""Checkpoints as safetensors and JSON: nothing is pickled, and a folder is there whole or not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from virchow_st.errors import ConfigError

FORMAT = "virchow_st.checkpoint/1"
_TENSORS = "tensors.safetensors"
_STATE = "state.json"


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Replace ``folder`` by a checkpoint of the modules, the optimiser's moments and ``state``."""
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    if optimizer is not None:
        tensors |= _optimizer_tensors(optimizer)
    aside, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    if whole(folder) == old:  # an earlier save died between its renames: this is all there is
        os.replace(old, folder)
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(tensors, aside / _TENSORS)
    (aside / _STATE).write_text(json.dumps({"format": FORMAT, **state}, indent=1) + "\n", "utf-8")
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, Any]:
    """Load what `save_checkpoint` saved into modules of the same shapes; returns the state."""
    state = read_state(folder)
    try:
        tensors = load_file(whole(folder) / _TENSORS)
    except (OSError, SafetensorError) as e:
        raise ConfigError(f"{folder / _TENSORS}: cannot be read ({e}); train again") from None
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
        _load_optimizer(optimizer, tensors)
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    file = whole(folder) / _STATE
    try:
        state = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no checkpoint there; run `vst train` first") from None
    except ValueError as e:
        raise ConfigError(f"{file}: cannot be read as JSON ({e}); train again") from None
    came = state.get("format") if isinstance(state, dict) else None
    if came != FORMAT:
        raise ConfigError(f"{file}: expected format {FORMAT}, got {came!r}; train again")
    return dict(state)


def whole(folder: Path) -> Path:
    """The folder, or its predecessor if the process died between the two renames of a save."""
    old = folder.with_name(f".{folder.name}.old")
    return old if not folder.exists() and old.exists() else folder


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": value.detach().cpu().contiguous()
        for index, moments in state.items()
        for key, value in moments.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
