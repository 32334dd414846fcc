"""The figures of ``run/figures``, reduced for the page, each with the caption of its kind."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from virchow_st.errors import ConfigError

WIDEST_PX = 1600  # twice the width shown by a page of 1280 px would take three times the space
_QUALITY = 88

KINDS = {
    "overview": (
        "Slide",
        "The slide with its tissue, its patches by split, and its UMIs.",
    ),
    "multiscale": (
        "Maps at 8, 4 and 2 µm",
        "H&E, prediction and observation of one gene: the whole slide above, the 256 µm with the "
        "most UMIs below. The maps of each half share one colour scale; grey bins are not scored.",
    ),
    "patches": (
        "Patches with the most UMIs",
        "H&E, observation and prediction of several genes, each where it has the most UMIs.",
    ),
    "mosaic": (
        "Mosaic",
        "H&E, observation and prediction of one gene in the patches with most of its UMIs.",
    ),
    "genes": ("Genes", "PCC of every gene and the ceiling set by Poisson noise."),
    "sparsity": ("Sparsity", "PCC of every gene against the share of bins that hold a UMI."),
    "abundance": (
        "Abundance",
        "PCC and its ceiling for every gene that the factors predict, against its UMIs.",
    ),
    "factors": (
        "Factors",
        "The factors with the most UMIs on a test slide, and the genes that distinguish each.",
    ),
    "calibration": (
        "Calibration",
        "Observed mean count of bins against their predicted rate; points on the diagonal are "
        "calibrated.",
    ),
    "against": ("Against another run", "The same genes and bins, predicted by another run."),
    "training_curves": (
        "Training",
        "Loss and validation PCC by epoch, and the weight of each scale in the loss.",
    ),
}
"""Title and caption by the first part of a file's name, in the order of the page."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page: file name, title, caption, size in px, and a WebP in base64."""

    name: str
    title: str
    caption: str
    width: int
    height: int
    content: str


def find_pictures(folder: Path) -> list[Path]:
    """PNGs of a folder, ordered by kind and then by name."""
    kinds = [*KINDS, None]
    return sorted(folder.glob("*.png"), key=lambda path: (kinds.index(_kind(path)), path))


def load_pictures(paths: Sequence[Path], most_bytes: int) -> tuple[list[Picture], list[str]]:
    """Load pictures in their order until they take ``most_bytes``, and name those left out.

    Raises:
        ConfigError: a file cannot be read as an image.
    """
    pictures: list[Picture] = []
    left_out = []
    for path in paths:
        picture = _load(path)
        if len(picture.content) > most_bytes:
            left_out.append(path.name)
            continue
        most_bytes -= len(picture.content)
        pictures.append(picture)
    return pictures, left_out


def _load(path: Path) -> Picture:
    try:
        coded = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(coded, cv2.IMREAD_COLOR) if coded.size else None
    except (OSError, cv2.error):
        image = None
    if image is None:
        raise ConfigError(f"{path}: cannot be read as PNG; delete it and run vst figures again")
    height, width = image.shape[:2]
    if width > WIDEST_PX:
        width, height = WIDEST_PX, round(height * WIDEST_PX / width)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    _, webp = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    kind = _kind(path)
    title, caption = KINDS[kind] if kind else (path.stem, "")
    if kind and (of := path.stem.removeprefix(kind).strip("_")):
        title = f"{title}: {of.replace('_', ' ')}"
    content = base64.b64encode(webp.tobytes()).decode()
    return Picture(path.name, title, caption, width, height, content)


def _kind(path: Path) -> str | None:
    return next(
        (kind for kind in KINDS if path.stem == kind or path.stem.startswith(kind + "_")), None
    )
