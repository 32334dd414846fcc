"""Where a ViT's parameters come from: a local file or the hub; checked, never in part."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
import xxhash
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from virchow_st.errors import ConfigError

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_TIMEOUT_S = 10


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read parameters from ``.safetensors`` or ``.bin``; nothing but tensors is ever unpickled."""
    if path.suffix not in (".safetensors", ".bin"):
        raise ConfigError(f"{path}: expected weights as .safetensors or .bin; got {path.suffix!r}")
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such weights file; check --weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ConfigError(
            f"{path}: holds more than tensors, or is no PyTorch file, and is not opened; "
            "save the bare state_dict, best as .safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as e:
        raise ConfigError(f"{path}: cannot be read as weights ({first_line(e)})") from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ConfigError(
            f"{path}: expected a bare state_dict of names to tensors; got nested data"
        )
    return state


def check_fits(model: torch.nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Raise `ConfigError` unless names and shapes are exactly the model's."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "not known": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(
            k for k in wanted.keys() & given.keys() if wanted[k] != given[k]
        ),
    }
    told = [f"{len(keys)} {what} (first: {keys[0]})" for what, keys in faults.items() if keys]
    if told:
        raise ConfigError(f"{source}: the weights do not fit the model: {', '.join(told)}")


def parameters_hash(model: torch.nn.Module) -> str:
    """xxHash64 over names, dtypes, shapes and bytes of the state dict: 16 hexadecimal digits.

    The same parameters give the same hash whichever file or hub they came from.
    """
    digest = xxhash.xxh64()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def cached_weights(repo: str) -> Path | None:
    """The weights file of a hub repository where the local cache already has it."""
    for name in HUB_FILES:
        try:
            path = try_to_load_from_cache(repo, name)
        except HFValidationError:
            raise ConfigError(
                f"encoder: expected virchow2, stain or a hub id such as owner/name; got {repo!r}"
            ) from None
        if isinstance(path, str):
            return Path(path)
    return None


def require_hub_access(repo: str) -> list[str]:
    """Names of the files in a hub repository that may be downloaded; `ConfigError` where not.

    Asked before any download because the answer comes in seconds: the download itself tries a
    machine without a network again and again for half a minute, a line on the screen each time.
    """
    try:
        api = HfApi()
        files = api.model_info(repo, timeout=_HUB_TIMEOUT_S).siblings or []
        api.auth_check(repo)
    except Exception as e:  # the network errors below the hub client share no base class
        raise hub_error(repo, e) from e
    return [file.rfilename for file in files]


def fetch_hub_weights(repo: str) -> Path:
    """The weights file of a hub repository, from the local cache or downloaded into it."""
    if cached := cached_weights(repo):
        return cached
    offered = require_hub_access(repo)
    name = next((name for name in HUB_FILES if name in offered), None)
    if name is None:
        raise ConfigError(f"{repo}: expected {' or '.join(HUB_FILES)} on the hub; found neither")
    try:
        return Path(hf_hub_download(repo, name))
    except Exception as e:  # as above
        raise hub_error(repo, e) from e


def hub_error(repo: str, error: Exception) -> ConfigError:
    """One line for weights that the hub did not give: why, and the three ways to get them."""
    return ConfigError(
        f"{repo}: the weights cannot be fetched from the Hugging Face Hub "
        f"({type(error).__name__}: {first_line(error)}); accept the terms at "
        f"https://huggingface.co/{repo} and run `hf auth login`, or give a local copy with "
        "--weights FILE"
    )


def first_line(error: Exception) -> str:
    """First line of a message, at most 160 characters, for errors that must stay on one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:160].rstrip(". ") if lines else "no message"
