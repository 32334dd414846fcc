"""Decoders of other packages, found by the entry point group ``virchow_st.decoders``.

An entry point's name is what ``--decoder`` takes. Its object is a subclass of
`virchow_st.models.decoders.base.Decoder` (docs/own-decoder.md).
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from virchow_st.errors import ConfigError
from virchow_st.types import PATCH_BINS, STORED_IMAGE_PX

if TYPE_CHECKING:
    from virchow_st.models.decoders.base import Decoder

GROUP = "virchow_st.decoders"
DECODERS = ("fusion", "hist2st", "hist2st-large", "guided", "pixels", "img2st", "linear")
"""Names of the package's own decoders; no other package takes them over."""


def find_plugin(name: str) -> EntryPoint | None:
    """The entry point of a name; None for `DECODERS` and where no installed package has one.

    Raises:
        ConfigError: Several packages have one.
    """
    if name in DECODERS:
        return None
    found = list(entry_points(group=GROUP, name=name))
    if len({entry.value for entry in found}) > 1:
        packages = sorted({_package(entry) for entry in found})
        raise ConfigError(
            f"decoder {name}: expected one package that adds it; found {', '.join(packages)}; "
            "uninstall all but one"
        )
    return found[0] if found else None


def package_of(name: str) -> str:
    """Name and version of the package that adds a decoder; empty if none does."""
    entry = find_plugin(name)
    return "" if entry is None else _package(entry)


def check_installed(name: str, package: str, run: Path) -> None:
    """Raise `ConfigError` if the package that a run's decoder comes with is not installed.

    Args:
        name: Name of the decoder.
        package: Name and version of the package as the run records it; empty for a decoder of
            virchow_st itself.
        run: The run.
    """
    if package and find_plugin(name) is None:
        wanted = quote(package.replace(" ", "=="))
        raise ConfigError(
            f"{run}: its decoder {name} is of the package {package}, which is not installed here; "
            f"whoever made the run chose that package: if you trust it, pip install {wanted}"
        )


def load_class(entry: EntryPoint) -> type[Decoder]:
    """Import the class of an entry point.

    Raises:
        ConfigError: It cannot be imported, or is not a subclass of `Decoder`.
    """
    from virchow_st.models.decoders.base import Decoder

    try:
        loaded = entry.load()
    except Exception as e:  # whatever the import of another package raises
        reason = " ".join(str(e).split())
        raise ConfigError(
            f"{_whose(entry)}: {entry.value} cannot be imported ({type(e).__name__}: {reason}); "
            "install the package again, or ask its authors"
        ) from e
    if not (isinstance(loaded, type) and issubclass(loaded, Decoder)):
        raise ConfigError(
            f"{_whose(entry)}: expected {entry.value} to be a subclass of virchow_st.Decoder; got "
            f"{loaded!r:.80}"
        )
    return loaded


def check_decoder(entry: EntryPoint, decoder: Decoder, grid: int, dim: int, n_outputs: int) -> None:
    """Decode one patch of zeros, and raise `ConfigError` unless the output can be trained.

    Args:
        entry: Entry point of the decoder.
        decoder: The decoder as it was built; its mode is kept.
        grid, dim: Tokens per side and their channels, T and D.
        n_outputs: Number of outputs per bin, G.
    """
    import torch

    from virchow_st.models.decoders.base import GeneHead

    whose = _whose(entry)
    if not isinstance(getattr(decoder, "head", None), GeneHead):
        raise ConfigError(f"{whose}: expected the attribute head to be a virchow_st.GeneHead")
    tokens = torch.zeros(1, grid, grid, dim)
    image = torch.zeros(1, 3, STORED_IMAGE_PX, STORED_IMAGE_PX) if decoder.wants_image else None
    was_training = decoder.training
    try:
        with torch.no_grad():
            output = decoder.eval()(tokens, image)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as e:
        reason = " ".join(str(e).split())
        raise ConfigError(
            f"{whose}: cannot decode a patch of {grid} × {grid} tokens of {dim} channels "
            f"({type(e).__name__}: {reason})"
        ) from e
    finally:
        decoder.train(was_training)
    shape = (1, n_outputs, PATCH_BINS, PATCH_BINS)
    if tuple(output.shape) != shape or not torch.isfinite(output).all():
        raise ConfigError(
            f"{whose}: expected finite outputs of shape {shape} for one patch; got shape "
            f"{tuple(output.shape)}"
        )


def _whose(entry: EntryPoint) -> str:
    return f"decoder {entry.name}, of the package {_package(entry)}"


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "(unknown)"
