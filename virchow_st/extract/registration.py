"""Measures the registration of image and counts: haematoxylin against UMIs, shifted by ≤ 32 µm.

In most tissue, nuclei (stained by haematoxylin) hold more transcripts than the space between them.
The local contrasts of the two maps therefore correlate if the image lies on the counts. Over
shifts, the correlation has a peak: its position tells how far the image is shifted, and its height
relative to the noise tells how reliable that is.

The correlation is Pearson's, over pairs of bins within patches: the masked normalised
cross-correlation of Padfield (2012, IEEE Trans. Image Process. 21, 2706), with its sums accumulated
over patches. The noise is estimated from the same correlation with the counts mirrored and rotated
within their patches, where no true correlation can exist. A shift is given as (row, col) in the bin
frame: what lies at bin (r, c) appears in the image at (r + row, c + col).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from virchow_st.kernels.orientation import turn
from virchow_st.models.encoders.stain import haematoxylin
from virchow_st.types import BIN_UM, PATCH_BINS, Array, BoolArray, Float64Array, UInt8Array

SEARCHED_BINS = 16
"""Largest shift that is tried, in bins, along rows and along columns."""
NEAR_UM = 4.0
"""Largest shift that is not reported: two bins or half a nucleus, which does not matter at 8 µm."""
TRUSTED = 6.0
"""Smallest strength of a reliable peak. For unrelated maps, the largest of the 1,089 correlations
is 3 to 5 times the noise."""
_CONTRAST_BINS = 8.0  # sigma of the subtracted mean: 16 µm keeps nuclei and removes glands
_WITHIN_NOISE = 3.0  # a shift may be the best if its correlation is within this many noises of it
_FFT_SIDE = PATCH_BINS + SEARCHED_BINS  # padded, so that shifts do not wrap round
_POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1))  # exponents of UMIs and haematoxylin


@dataclass(frozen=True, eq=False)
class Example:
    """The patch with the most UMIs, shown in the figure.

    Attributes:
        haematoxylin: (128, 128) float64 optical density.
        umi: (128, 128) float64 UMIs of all genes.
        tissue_mask: (128, 128) bool.
    """

    haematoxylin: Float64Array
    umi: Float64Array
    tissue_mask: BoolArray


@dataclass(frozen=True, eq=False)
class Registration:
    """The result of the check.

    Attributes:
        correlation: (33, 33) float64 correlations for shifts of −16 to 16 bins, rows down.
        shift_um: (row, col) of the largest |correlation|, refined by a parabola through its
            neighbours: how far the image is shifted from the counts, positive towards higher
            array_row and array_col.
        strength: that |correlation| divided by the noise, which is the root mean square of the
            correlations with mirrored and rotated counts.
        uncertainty_um: every shift with a |correlation| within three noises of the largest lies
            within this distance of it; at least half a bin.
        verdict: ``"aligned"``; ``"shifted"``, if the shift exceeds 4 µm and ``uncertainty_um``; or
            ``"undecided"``, if the strength is below 6 or the peak lies on the edge of the search.
    """

    correlation: Float64Array
    shift_um: tuple[float, float]
    strength: float
    uncertainty_um: float
    verdict: str

    def to_manifest(self) -> dict[str, Any]:
        """The entry ``registration`` of the store's manifest (docs/coordinates.md)."""
        row, col = (round(um, 2) + 0.0 for um in self.shift_um)  # + 0.0: no minus zero
        at_best = self.correlation.flat[np.abs(self.correlation).argmax()]
        at_zero = self.correlation[SEARCHED_BINS, SEARCHED_BINS]
        return {
            "verdict": self.verdict,
            "shift_row_um": row,
            "shift_col_um": col,
            "uncertainty_um": round(self.uncertainty_um, 2),
            "correlation": round(float(at_best), 5) + 0.0,
            "correlation_at_zero": round(float(at_zero), 5) + 0.0,
            "strength": round(self.strength, 2),
            "searched_um": float(SEARCHED_BINS * BIN_UM),
        }


class RegistrationCheck:
    """Accumulates patches with `add`; `result` evaluates them.

    The order of patches affects the last digits only.

    Attributes:
        example: the patch with the most UMIs so far.
    """

    def __init__(self) -> None:
        self.example: Example | None = None
        side = _FFT_SIDE
        # Spectra of the sums over pairs of bins, for each orientation of the counts and exponents.
        self._sums = np.zeros((8, len(_POWERS), side, side // 2 + 1), np.complex128)

    def add(
        self, image: UInt8Array, validity_mask: BoolArray, umi: Array, tissue_mask: BoolArray
    ) -> None:
        """Add a patch.

        Args:
            image: (256, 256, 3) uint8 RGB in bin orientation.
            validity_mask: (128, 128) bool, True for bins on the slide image.
            umi: (128, 128) UMIs of all genes, of any dtype.
            tissue_mask: (128, 128) bool, True for bins with known counts.
        """
        size = (PATCH_BINS, PATCH_BINS)
        stain = cv2.resize(haematoxylin(image), size, interpolation=cv2.INTER_AREA)
        stain, umi = stain.astype(np.float64), umi.astype(np.float64)
        if self.example is None or umi.sum() > self.example.umi.sum():
            self.example = Example(stain, umi, tissue_mask)
        of_image = _spectra(local_contrast(stain, validity_mask), validity_mask)
        # The square root stabilises the variance of the counts.
        contrast = local_contrast(np.sqrt(umi), tissue_mask)
        for orientation, sums in enumerate(self._sums):
            of_counts = _spectra(turn(contrast, orientation), turn(tissue_mask, orientation))
            for total, (i, j) in zip(sums, _POWERS, strict=True):
                total += of_counts[i].conj() * of_image[j]

    def merge(self, other: RegistrationCheck) -> None:
        """Add the patches that another check has accumulated."""
        self._sums += other._sums
        theirs = other.example
        if theirs is not None and (
            self.example is None or theirs.umi.sum() > self.example.umi.sum()
        ):
            self.example = theirs

    def result(self) -> Registration:
        """Find the best shift over the patches added so far, and judge its reliability."""
        maps = self.correlations()
        correlation, noise = maps[0], float(np.sqrt(np.mean(maps[1:] ** 2)))
        height = np.abs(correlation)
        row, col = np.unravel_index(int(height.argmax()), height.shape)
        strength = float(height.max() / noise) if noise > 0 else 0.0
        as_good = np.argwhere(height >= height.max() - _WITHIN_NOISE * noise)
        reach = float(np.hypot(*(as_good - (row, col)).T).max())
        uncertainty = BIN_UM * max(reach, 0.5)
        last = 2 * SEARCHED_BINS
        on_rim = row in (0, last) or col in (0, last)
        shift = (0.0, 0.0)
        if not on_rim:
            down = _vertex(height[row - 1 : row + 2, col])
            right = _vertex(height[row, col - 1 : col + 2])
            shift = (down, right)
        shift_um = (
            BIN_UM * (float(row) - SEARCHED_BINS + shift[0]),
            BIN_UM * (float(col) - SEARCHED_BINS + shift[1]),
        )
        off = float(np.hypot(*shift_um))
        if strength < TRUSTED or on_rim:
            verdict = "undecided"
        else:
            verdict = "shifted" if off > max(NEAR_UM, uncertainty) else "aligned"
        return Registration(correlation, shift_um, strength, uncertainty, verdict)

    def correlations(self) -> Float64Array:
        """(8, 33, 33) float64: Pearson's r per shift, for the eight orientations of the counts.

        The first is that of the counts as they are; the others estimate the noise.
        """
        sums = np.fft.irfft2(self._sums, (_FFT_SIDE, _FFT_SIDE))
        side = 2 * SEARCHED_BINS + 1
        sums = np.roll(sums, (SEARCHED_BINS, SEARCHED_BINS), (2, 3))[:, :, :side, :side]
        n, u, h, uu, hh, uh = np.moveaxis(sums, 1, 0)
        # Sums computed through spectra have errors of about 1e-12 where they should be 0, which
        # must not pass for a variance.
        floor = 1e-9 * np.maximum(n, 1.0) ** 2
        spread_u, spread_h = n * uu - u * u, n * hh - h * h
        varies = (spread_u > floor) & (spread_h > floor)
        scale = np.sqrt(np.where(varies, spread_u * spread_h, 1.0))
        return np.where(varies, (n * uh - u * h) / scale, 0.0)


def local_contrast(values: Float64Array, mask: BoolArray) -> Float64Array:
    """Subtract the local mean (Gaussian, σ = 16 µm) within a mask.

    Args:
        values: (128, 128) float64.
        mask: (128, 128) bool, True where values are known.

    Returns:
        (128, 128) float64, 0 outside the mask.
    """
    inside = mask.astype(np.float64)
    weight = _blur(inside)
    mean = _blur(values * inside) / np.maximum(weight, 1e-12)
    return np.where(mask, values - mean, 0.0)


def describe(found: dict[str, Any]) -> str:
    """Describe the manifest's entry ``registration`` in one line."""
    row, col = (round(found[name], 1) + 0.0 for name in ("shift_row_um", "shift_col_um"))
    where = f"({row:+.1f}, {col:+.1f}) µm"  # + 0.0 above avoids minus zero
    peak = f"r {found['correlation']:.3f} is {found['strength']:.1f} × the noise"
    if found["verdict"] == "undecided":
        return (
            f"undecided: no peak of {TRUSTED:g} × the noise within {found['searched_um']:g} µm; "
            f"the largest, at {where} (rows, cols): {peak}"
        )
    return (
        f"{found['verdict']}: the image lies {where} off the counts (rows, cols), "
        f"± {found['uncertainty_um']:g} µm; {peak}; r unshifted {found['correlation_at_zero']:.3f}"
    )


def _blur(values: Float64Array) -> Float64Array:
    return cv2.GaussianBlur(values, (0, 0), _CONTRAST_BINS, borderType=cv2.BORDER_CONSTANT)


def _spectra(values: Float64Array, mask: BoolArray) -> Array:
    """Spectra of the mask, of the values (0 outside the mask) and of their squares."""
    powers = np.stack([mask.astype(np.float64), values, values * values])
    return np.fft.rfft2(powers, (_FFT_SIDE, _FFT_SIDE))


def _vertex(heights: Float64Array) -> float:
    """Position of the vertex of the parabola through heights at −1, 0 (the largest) and 1."""
    before, middle, after = (float(height) for height in heights)
    curvature = before - 2 * middle + after
    return 0.5 * (before - after) / curvature if curvature < 0 else 0.0
