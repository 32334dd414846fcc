"""How a slide looks: strength and colour of its stain, and sharpness, from images of 1 µm/px.

By these numbers a slide is compared with those that a run was trained on; none is a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.types import Array, BoolArray, Float64Array, UInt8Array

MOST_PATCHES = 16
"""Patches of a slide that are looked at; they hold a million pixels, enough for quantiles."""
BETWEEN_LABORATORIES = 0.15
"""Standard deviation of the logarithm of a stain's strength between laboratories."""
_TISSUE_DENSITY = 0.08  # smallest optical density (mean over colours) of a stained pixel
# Quantiles that measure the stain itself: nuclei, and the most eosinophilic parts, are about
# equally dark in every tissue. A mean would depend on the number of nuclei instead.
_HAEMATOXYLIN_QUANTILE, _EOSIN_QUANTILE = 0.98, 0.90
_LEAST_STRENGTH = 0.01  # optical density; bounds the logarithm
_GREY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601


@dataclass(frozen=True)
class Appearance:
    """How the tissue of a slide, or of a patient's slides, looks.

    Attributes:
        haematoxylin, eosin: strength of the stains: the 98th percentile of haematoxylin's optical
            density and the 90th of eosin's.
        colour: mean optical density of red, green and blue, as a vector of length 1.
        sharpness: median over patches of the variance of the Laplacian, see `sharpness`.
    """

    haematoxylin: float
    eosin: float
    colour: tuple[float, float, float]
    sharpness: float


def appearance(
    images: Sequence[UInt8Array], masks: Sequence[BoolArray], unmix: Array
) -> Appearance:
    """How images of one slide or patient look.

    Args:
        images: (H, W, 3) uint8 RGB each, at 1 µm/px, compressed as in a store.
        masks: (H, W) bool each, True for tissue.
        unmix: (3, 2) from optical densities of red, green and blue to haematoxylin and eosin.
    """
    pixels = np.concatenate([i[m] for i, m in zip(images, masks, strict=True)])
    density = -np.log10((pixels.astype(np.float64) + 1) / 256)
    tissue = density[density.mean(axis=1) > _TISSUE_DENSITY]
    found = [sharpness(i, m) for i, m in zip(images, masks, strict=True) if m.any()]
    sharp = float(np.median(found)) if found else 0.0
    if not len(tissue):
        return Appearance(_LEAST_STRENGTH, _LEAST_STRENGTH, (3**-0.5, 3**-0.5, 3**-0.5), sharp)
    stains = tissue @ unmix
    mean = tissue.mean(axis=0)
    red, green, blue = (mean / np.linalg.norm(mean)).tolist()
    return Appearance(
        max(float(np.quantile(stains[:, 0], _HAEMATOXYLIN_QUANTILE)), _LEAST_STRENGTH),
        max(float(np.quantile(stains[:, 1], _EOSIN_QUANTILE)), _LEAST_STRENGTH),
        (red, green, blue),
        sharp,
    )


def sharpness(image: UInt8Array, mask: BoolArray) -> float:
    """Variance of the Laplacian of the grey values in tissue (Pech-Pacheco et al. 2000).

    The Laplacian is a pixel's four neighbours less four times the pixel; pixels at the border of
    the image are left out. The variance falls with blur and, being of grey values of 0 to 255,
    depends on the scale of the image: compare images of one µm/px.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, True for the pixels that count.

    Example:
        >>> board = np.indices((8, 8)).sum(axis=0) % 2 * np.uint8(10)
        >>> sharpness(np.repeat(board[..., None], 3, 2).astype(np.uint8), np.ones((8, 8), bool))
        1600.0
    """
    grey: Float64Array = np.round(image @ _GREY, 9)
    inner = grey[1:-1, 1:-1]
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = (neighbours - 4 * inner)[mask[1:-1, 1:-1]]
    return float(laplacian.var()) if laplacian.size else 0.0


def stain_shift(a: Appearance, b: Appearance) -> float:
    """Difference in strength of two stains, in standard deviations between laboratories.

    It is the root mean square, over haematoxylin and eosin, of the difference of the logarithms of
    their strengths, divided by 0.15.

    Example:
        >>> grey = (0.58, 0.58, 0.58)
        >>> a, b = Appearance(0.5, 0.2, grey, 0.0), Appearance(1.0, 0.2, grey, 0.0)
        >>> round(stain_shift(a, b), 2)  # log(2) / 0.15 / √2
        3.27
    """
    logs = [
        np.log(x / y) / BETWEEN_LABORATORIES
        for x, y in ((a.haematoxylin, b.haematoxylin), (a.eosin, b.eosin))
    ]
    return float(np.sqrt(np.mean(np.square(logs))))


def stain_angle(a: Appearance, b: Appearance) -> float:
    """Angle between the mean optical densities of two slides, in degrees: a difference in colour.

    Example:
        >>> a, b = Appearance(1, 1, (1.0, 0.0, 0.0), 0), Appearance(1, 1, (0.8, 0.6, 0.0), 0)
        >>> round(stain_angle(a, b), 1)
        36.9
    """
    cosine = float(np.clip(np.dot(a.colour, b.colour), -1.0, 1.0))
    return float(np.degrees(np.arccos(cosine)))


def matching_factors(look: Appearance, training: Sequence[Appearance]) -> tuple[float, float]:
    """Factors of haematoxylin and eosin that make a slide's stains as strong as in training.

    Each is the geometric mean of the training patients' strengths over the slide's, to four digits.

    Args:
        look: of the slide.
        training: of the training patients, one or more.

    Example:
        >>> grey = (0.58, 0.58, 0.58)
        >>> training = [Appearance(0.4, 0.2, grey, 0.0), Appearance(0.9, 0.2, grey, 0.0)]
        >>> matching_factors(Appearance(0.5, 0.4, grey, 0.0), training)
        (1.2, 0.5)
    """
    usual = np.log([[patient.haematoxylin, patient.eosin] for patient in training]).mean(axis=0)
    factors = np.exp(usual - np.log([look.haematoxylin, look.eosin]))
    haematoxylin, eosin = np.round(factors, 4).tolist()
    return haematoxylin, eosin
