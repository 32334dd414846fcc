"""``vst doctor``: installed packages, missing packages and how to install them."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import click

from virchow_st.bench.tables import machine
from virchow_st.errors import ConfigError
from virchow_st.runtime.memory import free_ram
from virchow_st_cli.console import Console
from virchow_st_cli.images import doctor_pair
from virchow_st_cli.options import with_console

_VIRCHOW2 = "paige-ai/Virchow2"
_EXTRAS = (
    "spatial",
    "tracking",
    "cloud",
    "cluster",
)  # those that add commands or options; dev and docs do not


@click.command(short_help="Check the installation, or whether an image fits its counts.")
@click.argument("image", type=click.Path(path_type=Path), required=False)
@click.argument("outs", type=click.Path(path_type=Path), required=False)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="print the same as JSON without any path, for programs and issues",
)
@with_console
def doctor(console: Console, image: Path | None, outs: Path | None, as_json: bool) -> int:
    """Show versions, devices and access to the gated model; exit code 1 if a package is missing.

    With IMAGE and OUTS it checks in seconds whether the counts belong to the image, by size, scale,
    orientation, stain and registration; exit code 1 if not.
    """
    if image is not None:
        if outs is None:
            raise ConfigError(
                f"expected OUTS beside {image}; give Space Ranger's outs, or check the image "
                f"alone with `vst inspect {image}`"
            )
        return doctor_pair(console, image, outs, as_json)
    found = _found()
    if as_json:
        console.json(found)
    else:
        console.table("virchow_st", ["", "found"], _rows(found), justify="left")
    return int(None in found["packages"].values())


def _found() -> dict[str, Any]:
    """The content of ``--json``; the version of a package that is not installed is None."""
    packages, extras = _requirements()
    device, gpus = _device(), _gpus()
    about = machine()  # called after torch is loaded, to include its threads
    return {
        "format": "virchow_st.doctor/1",
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("virchow_st", *packages)},
        "extras": {e: {name: _version(name) for name in extras[e]} for e in _EXTRAS},
        "cpu": about["cpu"],
        "cores": about["cores"],
        "memory_gb": about["memory_gb"],
        "free_memory_gb": round(free_ram() / 1e9, 1),
        "gpus": gpus,
        "device": device,
        "virchow2": _gated_access(),
    }


def _rows(found: dict[str, Any]) -> list[list[str]]:
    absent = "missing: run `pip install virchow_st` again"
    rows = [[name, version or absent] for name, version in found["packages"].items()]
    for extra, packages in found["extras"].items():
        how = f"not installed; `pip install 'virchow_st[{extra}]'` adds it"
        rows += [[name, version or how] for name, version in packages.items()]
    memory = f"{found['memory_gb']} GB, {found['free_memory_gb']} GB free"
    rows += [["Python", found["python"]], ["memory", memory]]
    return [*rows, ["device", found["device"]], ["Virchow2", found["virchow2"]]]


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Names of the packages that virchow_st needs, and of those that each extra adds."""
    packages: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in requires("virchow_st") or ():
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        (extras.setdefault(extra[1], []) if extra else packages).append(name)
    return packages, extras


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> str:
    try:
        import torch
    except ImportError as e:
        return f"torch cannot be imported ({type(e).__name__})"
    if not torch.cuda.is_available():
        return f"cpu, {torch.get_num_threads()} threads; no CUDA device"
    from virchow_st.models.losses.fused_gpu import missing

    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    how = f"on dense counts, which is slower: {missing()}" if missing() else "fused, by Triton"
    return f"cuda, {torch.cuda.get_device_name(0)}, {gib:.0f} GiB; Poisson loss {how}"


def _gpus() -> list[dict[str, Any]]:
    try:
        import torch
    except ImportError:
        return []
    gpus = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(i)
        capability = f"{gpu.major}.{gpu.minor}"
        memory_gb = round(gpu.total_memory / 1e9, 1)
        gpus.append({"name": gpu.name, "capability": capability, "memory_gb": memory_gb})
    return gpus


def _gated_access() -> str:
    """Ask the hub, with a time limit, whether the user may download the weights of Virchow2."""
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
        return f"the hub cannot be reached ({type(e).__name__}); --weights FILE works without it"
    return "access granted"
