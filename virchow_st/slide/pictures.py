"""Finds Space Ranger's downscaled pictures and derives the size of the full-resolution image.

Space Ranger writes ``tissue_hires_image.png`` to ``outs/spatial`` and links to it from the folder
of every bin size. If only the folder of one bin size is copied, the picture is missing, a dangling
link, or a text file that holds the link's target.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virchow_st.errors import SlideError
from virchow_st.slide.picture_header import read_picture_header

_NAMES = ("hires", "lowres")  # the larger one first, as it gives the size more exactly


@dataclass(frozen=True)
class ExpectedSize:
    """The size of the full-resolution image, derived from one of Space Ranger's pictures.

    Attributes:
        width, height: px.
        picture: path of the picture.
    """

    width: float
    height: float
    picture: Path


def expected_size(
    bins: Path, scalefactors: dict[str, float]
) -> tuple[ExpectedSize | None, list[str]]:
    """Derive the size of the full-resolution image from a picture and its scale factor.

    ``tissue_hires_image.png`` is looked for first, then ``tissue_lowres_image.png``; each in the
    ``spatial`` folder of the bins, in ``outs/spatial``, and in those of the other bin sizes.

    Args:
        bins: the ``square_002um`` folder.
        scalefactors: its scale factors.

    Returns:
        The size by the first picture that can be read, or None; and one line per picture that
        cannot be read.
    """
    faults: list[str] = []
    for name in _NAMES:
        scale = scalefactors.get(f"tissue_{name}_scalef")
        if scale is None or not 0 < scale <= 1:
            continue
        for folder in _folders(bins):
            for path in sorted(folder.glob(f"*tissue_{name}_image.png")):
                if path.name.startswith("."):
                    continue
                try:
                    header = read_picture_header(path)
                except SlideError:
                    faults.append(f"{path}: {_fault(path)}; other pictures are used instead")
                    continue
                size = ExpectedSize(header.width / scale, header.height / scale, path)
                return size, faults
    return None, faults


def _folders(bins: Path) -> list[Path]:
    """Folders that may hold the pictures, the most likely first."""
    own = sorted(p for p in bins.glob("*spatial") if p.is_dir())
    outs = bins.parent.parent if bins.parent.name.endswith("binned_outputs") else bins.parent
    above = [p for place in (outs, bins.parent) for p in sorted(place.glob("*spatial"))]
    others = sorted(bins.parent.glob("*square_*um/*spatial"))
    return list(dict.fromkeys(p for p in (*own, *above, *others) if p.is_dir()))


def _fault(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "is a link to a file that does not exist"
    return "cannot be read as PNG"
