"""``vst doctor``: what is installed, what is missing and how to get it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from virchow_st.errors import ConfigError
from virchow_st_cli.console import Console
from virchow_st_cli.images import doctor_pair
from virchow_st_cli.options import with_console

_PACKAGES = (
    "virchow_st", "torch", "torchvision", "timm", "torch-geometric", "huggingface_hub", "lmdb",
    "numpy", "numba", "scipy", "scikit-image", "opencv-python-headless", "openslide-python",
    "tifffile", "h5py", "pyarrow",
)  # fmt: skip
_VIRCHOW2 = "paige-ai/Virchow2"


@click.command(short_help="Check the installation, or whether an image fits its counts.")
@click.argument("image", type=click.Path(path_type=Path), required=False)
@click.argument("outs", type=click.Path(path_type=Path), required=False)
@with_console
def doctor(console: Console, image: Path | None, outs: Path | None) -> int:
    """Show versions, devices and access to the gated model; exit code 1 if a package is missing.

    With IMAGE and OUTS it says in seconds whether the image is the one that the counts lie on:
    size, scale, orientation, stain and registration; exit code 1 if not.
    """
    if image is not None:
        if outs is None:
            raise ConfigError(
                f"expected OUTS beside {image}; give Space Ranger's outs, or ask "
                f"`vst inspect {image}` of the image alone"
            )
        return doctor_pair(console, image, outs)
    rows, is_whole = [], True
    for name in _PACKAGES:
        try:
            rows.append([name, version(name)])
        except PackageNotFoundError:
            rows.append([name, "missing: run `pip install virchow_st` again"])
            is_whole = False
    rows.append(["device", _device()])
    rows.append(["Virchow2", _gated_access()])
    console.table("virchow_st", ["", "found"], rows, justify="left")
    return int(not is_whole)


def _device() -> str:
    try:
        import torch
    except ImportError as e:
        return f"torch cannot be imported ({e})"
    if not torch.cuda.is_available():
        return f"cpu, {torch.get_num_threads()} threads; no CUDA device"
    from virchow_st.models.losses.fused_gpu import missing

    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    how = f"on dense counts, which is slower: {missing()}" if missing() else "fused, by Triton"
    return f"cuda, {torch.cuda.get_device_name(0)}, {gib:.0f} GiB; Poisson loss {how}"


def _gated_access() -> str:
    """Whether the hub would let us download the weights, asked with a bounded wait."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    how = f"accept the licence at https://huggingface.co/{_VIRCHOW2}, then `hf auth login`"
    if get_token() is None:
        return f"not logged in to the hub: {how}; or give --weights FILE"
    try:
        HfApi().model_info(_VIRCHOW2, timeout=5)
        HfApi().auth_check(_VIRCHOW2)
    except GatedRepoError:
        return f"no access yet: {how}"
    except (HfHubHTTPError, OSError) as e:
        return f"the hub cannot be asked ({type(e).__name__}); --weights FILE works without it"
    return "access granted"
