"""Measures of a slide's quality, reported with its prediction; none of them stops anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from virchow_st.metrics.appearance import Appearance, stain_angle, stain_shift
from virchow_st.slide.ink import find_ink
from virchow_st.types import BoolArray, UInt8Array


@dataclass(frozen=True)
class SlideQuality:
    """What a slide is like; docs/predict.md explains how to read it.

    Attributes:
        tissue: share of the slide that is tissue, pen marks included.
        pen: share of the tissue that is blue, green or black ink.
        sharpness: variance of the Laplacian of grey values in tissue, at 1 µm/px.
        sharpness_ratio: sharpness over the median of the training patients; None if not known.
        stain_shift: difference in stain strength from the most similar training patient, in
            standard deviations between laboratories; None if not known.
        stain_angle: angle in degrees between the slide's mean optical density and that of the most
            similar training patient; None if not known.
    """

    tissue: float
    pen: float
    sharpness: float
    sharpness_ratio: float | None
    stain_shift: float | None
    stain_angle: float | None

    def describe(self) -> str:
        """One line.

        >>> SlideQuality(0.4, 0.0, 612.0, 0.98, 0.71, 1.9).describe()
        'tissue 40.0%, pen 0.0%, sharpness 612 (0.98 of training), stain off by 0.7 SD and 1.9°'
        """
        training = stain = ""
        if self.sharpness_ratio is not None:
            training = f" ({self.sharpness_ratio:.2f} of training)"
        if self.stain_shift is not None and self.stain_angle is not None:
            stain = f", stain off by {self.stain_shift:.1f} SD and {self.stain_angle:.1f}°"
        return (
            f"tissue {self.tissue:.1%}, pen {self.pen:.1%}, sharpness {self.sharpness:.0f}"
            f"{training}{stain}"
        )

    def as_dict(self) -> dict[str, float | None]:
        """Its values by name, for JSON, with six digits."""
        return {k: None if v is None else float(f"{v:.6g}") for k, v in asdict(self).items()}


def slide_quality(
    look: Appearance,
    cells: BoolArray,
    overview: UInt8Array,
    um_per_px: float,
    tissue: BoolArray,
    training: Sequence[Appearance],
) -> SlideQuality:
    """Compare how a slide looks with training, and measure its overview.

    Args:
        look: of the slide.
        cells: (R, C) bool, tissue on cells of 8 µm.
        overview: (H, W, 3) uint8 RGB of the whole slide.
        um_per_px: side of the overview's pixels, µm.
        tissue: (H, W) bool, tissue on the overview.
        training: of the training patients; empty if they are not known.
    """
    usual = float(np.median([patient.sharpness for patient in training])) if training else 0.0
    return SlideQuality(
        float(cells.mean()),
        float((find_ink(overview, um_per_px) & tissue).sum() / tissue.sum()),
        look.sharpness,
        look.sharpness / usual if usual else None,
        min((stain_shift(look, patient) for patient in training), default=None),
        min((stain_angle(look, patient) for patient in training), default=None),
    )
