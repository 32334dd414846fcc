"""Programs that find cells in H&E: the package's own, InstanSeg, and those of other packages.

Other packages add segmenters by the entry point group ``virchow_st.segmenters``. An entry point's
name is what ``vst cells --cells`` takes; its object is a subclass of `Segmenter`, or any callable
that gives one (docs/own-segmenter.md).
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.slide.cells import instanseg
from virchow_st.slide.cells.segmenter import TILE_PX, Segmenter
from virchow_st.types import Array, UInt8Array

GROUP = "virchow_st.segmenters"
NUCLEI_SEGMENTER, INSTANSEG = "nuclei", "instanseg"
"""Names of the package's own segmenters; no other package takes them over."""


def find_segmenter(name: str) -> EntryPoint | None:
    """The entry point of a segmenter of another package; None if no installed package has one.

    Raises:
        ConfigError: several packages have one.
    """
    found = list(entry_points(group=GROUP, name=name))
    if len({entry.value for entry in found}) > 1:
        packages = ", ".join(sorted({_package(entry) for entry in found}))
        raise ConfigError(
            f"segmenter {name}: expected one package that adds it; found {packages}; uninstall all "
            "but one"
        )
    return found[0] if found else None


def is_segmenter(name: str) -> bool:
    """Whether a segmenter is called so."""
    return name in (NUCLEI_SEGMENTER, INSTANSEG) or find_segmenter(name) is not None


def segmenter_names() -> list[str]:
    """Names of all segmenters that are installed."""
    own = {NUCLEI_SEGMENTER, INSTANSEG} if instanseg.is_installed() else {NUCLEI_SEGMENTER}
    return sorted(own | {entry.name for entry in entry_points(group=GROUP)})


def load_segmenter(name: str) -> tuple[Segmenter, str]:
    """Make a segmenter, and say what it is.

    Returns:
        The segmenter, and its package with the version.

    Raises:
        ConfigError: it cannot be imported or made, its weights are not there, or it is not a
            `Segmenter`.
    """
    if name == NUCLEI_SEGMENTER:
        from virchow_st.slide.cells.nuclei import Nuclei  # loads scikit-image

        return Nuclei(), "virchow_st"
    if name == INSTANSEG:
        network = instanseg.InstanSegNuclei()
        return network, network.package
    entry = find_segmenter(name)
    assert entry is not None
    whose = f"segmenter {name}, of the package {_package(entry)}"
    try:
        made = entry.load()()
    except Exception as e:  # whatever another package raises
        reason = " ".join(str(e).split())
        raise ConfigError(
            f"{whose}: {entry.value} cannot be made ({type(e).__name__}: {reason})"
        ) from e
    if not isinstance(made, Segmenter):
        raise ConfigError(
            f"{whose}: expected {entry.value} to make a virchow_st.Segmenter; got {made!r:.80}"
        )
    return made, _package(entry)


def segmented(segmenter: Segmenter, image: UInt8Array, name: str) -> Array:
    """`Segmenter.segment`, checked; `ConfigError` where it fails or gives no labels."""
    try:
        labels = np.asarray(segmenter.segment(image))
    except Exception as e:  # whatever another package raises
        reason = " ".join(str(e).split())
        raise ConfigError(
            f"segmenter {name}: failed on a tile ({type(e).__name__}: {reason})"
        ) from e
    shape = TILE_PX, TILE_PX
    if labels.shape != shape or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ConfigError(
            f"segmenter {name}: expected whole numbers of 0 or more, of shape {shape}; got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return labels


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "(unknown)"
