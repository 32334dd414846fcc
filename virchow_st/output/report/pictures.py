"""The pictures of ``run/figures``, made small enough for a page, with a caption by their kind."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from virchow_st.errors import ConfigError

WIDEST_PX = 1600  # twice what a page of 1280 px shows would be sharper and weigh three times
_QUALITY = 88

KINDS = {
    "overview": (
        "Slide",
        "The slide with its tissue, its patches and what they were used for, and its UMIs.",
    ),
    "multiscale": (
        "Maps at 8, 4 and 2 µm",
        "H&E beside prediction and observation of one gene; above the whole slide, below the "
        "256 µm of strongest signal. All maps of a half share one colour scale; grey is no tissue.",
    ),
    "patches": (
        "Patches with most signal",
        "H&E, observed and predicted, of several genes in the patch where each is strongest.",
    ),
    "mosaic": (
        "Mosaic",
        "H&E, observed and predicted of one gene in the patches where it is strongest.",
    ),
    "genes": ("Genes", "PCC of every gene beside the ceiling that Poisson noise leaves it."),
    "sparsity": ("Sparsity", "PCC of every gene against how seldom its counts are above zero."),
    "calibration": (
        "Calibration",
        "Observed mean count of bins against the rate predicted for them; on the diagonal, rates "
        "mean what they say.",
    ),
    "against": ("Against another run", "The same genes and bins as another run predicts them."),
    "training_curves": (
        "Training",
        "Loss and validation PCC by epoch, and the weight of each scale in the loss.",
    ),
}
"""Title and caption by the beginning of a file's name, in the order of the page."""


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it: its file's name, what it is, and a WebP in base64."""

    name: str
    title: str
    caption: str
    width: int
    height: int
    content: str


def find_pictures(folder: Path) -> list[Path]:
    """PNGs of a folder, by kind and then by name."""
    kinds = [*KINDS, None]
    return sorted(folder.glob("*.png"), key=lambda path: (kinds.index(_kind(path)), path))


def load_pictures(paths: Sequence[Path], most_bytes: int) -> tuple[list[Picture], list[str]]:
    """Pictures as they come until they take ``most_bytes``; then the names of those left out.

    Raises:
        ConfigError: a file is no picture.
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
