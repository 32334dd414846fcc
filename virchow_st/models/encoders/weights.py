"""A network's parameters from a local file or the Hugging Face Hub; no partial matches."""

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
    """Read parameters from a .safetensors, .bin or .pth file; only tensors are unpickled.

    Raises:
        ConfigError: The file is missing, of another type, damaged, or holds more than tensors.
    """
    if path.suffix not in (".safetensors", ".bin", ".pth"):
        raise ConfigError(
            f"{path}: expected weights as .safetensors, .bin or .pth; got {path.suffix!r}"
        )
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
    """Raise `ConfigError` unless names and shapes are exactly those of the model."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "not known": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(
            k for k in wanted.keys() & given.keys() if wanted[k] != given[k]
        ),
    }
    texts = [f"{len(keys)} {what} (first: {keys[0]})" for what, keys in faults.items() if keys]
    if texts:
        raise ConfigError(f"{source}: the weights do not fit the model: {', '.join(texts)}")


def parameters_hash(model: torch.nn.Module) -> str:
    """xxHash64 over names, dtypes, shapes and bytes of the state dict, as 16 hexadecimal digits.

    The hash depends on the parameters only, not on the file that they were read from.
    """
    digest = xxhash.xxh64()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def cached_weights(repo: str) -> Path | None:
    """Weights file of a hub repository in the local cache; None if it is not cached."""
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
    """List the files of a hub repository; raises `ConfigError` if they may not be downloaded.

    This is checked before a download because it takes seconds, whereas a download without a network
    is retried for half a minute, with a line on the screen for each attempt.
    """
    try:
        api = HfApi()
        files = api.model_info(repo, timeout=_HUB_TIMEOUT_S).siblings or []
        api.auth_check(repo)
    except Exception as e:  # the network errors below the hub client share no base class
        raise hub_error(repo, e) from e
    return [file.rfilename for file in files]


def fetch_hub_weights(repo: str) -> Path:
    """Path of a hub repository's weights file in the local cache, downloaded if necessary."""
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
    """Error for weights that the hub did not deliver: the reason, and the ways to get them."""
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
