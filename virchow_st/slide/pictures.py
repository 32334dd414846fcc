"""Space Ranger's own pictures of a slide: where they may lie, and how large they say it is.

Space Ranger puts ``tissue_hires_image.png`` into ``outs/spatial`` and links to it from every bin
size. Copies of one bin size alone have a link that leads nowhere, or a file that holds the link's
text, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virchow_st.errors import SlideError
from virchow_st.slide.picture_header import read_picture_header

_NAMES = ("hires", "lowres")  # the finer first, as its size says more


@dataclass(frozen=True)
class ExpectedSize:
    """The size of the full-resolution image, by one of Space Ranger's pictures.

    Attributes:
        width, height: px.
        picture: the picture.
    """

    width: float
    height: float
    picture: Path


def expected_size(
    bins: Path, scalefactors: dict[str, float]
) -> tuple[ExpectedSize | None, list[str]]:
    """How large the full-resolution image was, and a line for each picture that cannot be read.

    Args:
        bins: the ``square_002um`` folder.
        scalefactors: its scale factors.

    Returns:
        The size by the first picture that can be read, of ``tissue_hires_image.png`` and
        ``tissue_lowres_image.png``, in the bins' ``spatial``, in ``outs/spatial``, and in that of
        the other bin sizes; None where there is none.
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
                    faults.append(f"{path}: {_fault(path)}; other pictures are asked instead")
                    continue
                size = ExpectedSize(header.width / scale, header.height / scale, path)
                return size, faults
    return None, faults


def _folders(bins: Path) -> list[Path]:
    """Folders that may hold the pictures, the likeliest first."""
    own = sorted(p for p in bins.glob("*spatial") if p.is_dir())
    outs = bins.parent.parent if bins.parent.name.endswith("binned_outputs") else bins.parent
    above = [p for place in (outs, bins.parent) for p in sorted(place.glob("*spatial"))]
    others = sorted(bins.parent.glob("*square_*um/*spatial"))
    return list(dict.fromkeys(p for p in (*own, *above, *others) if p.is_dir()))


def _fault(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "is a link that leads nowhere"
    return "is no PNG that can be read"
