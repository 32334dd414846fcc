"""Measures how much staining differs between patients, to set the strength of augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virchow_st.models.decoders.stem import OpticalDensity
from virchow_st.run.split import Member
from virchow_st.training.dataset import PatchDataset
from virchow_st.types import Float64Array

# Standard deviation of the logarithm of a stain's strength between laboratories; augmentation of
# strength 1 varies stains by as much.
_BETWEEN_LABORATORIES = 0.15
_MOST_PATCHES = 16  # patches per patient; they hold a million pixels, enough for quantiles
_TISSUE_DENSITY = 0.08  # smallest optical density (mean over colours) of a stained pixel
# Quantiles that measure the stain itself: nuclei, and the most eosinophilic parts, are about
# equally dark in every tissue. A mean would depend on the number of nuclei instead.
_HAEMATOXYLIN_QUANTILE, _EOSIN_QUANTILE = 0.98, 0.90
_LEAST_STRENGTH = 0.01  # optical density; bounds the logarithm


def variation_from_data(dataset: PatchDataset, members: Sequence[Member]) -> float:
    """Strength of stain augmentation that matches the differences between the training patients.

    It is the standard deviation between patients of the logarithm of stain strength (root mean
    square over haematoxylin and eosin), in units of the standard deviation between laboratories.

    Args:
        dataset: the run's patches.
        members: the training patches; no others are read.

    Returns:
        0 to 1, rounded to three digits; 0 if there is only one training patient.
    """
    by_patient: dict[str, list[Member]] = {}
    for member in members:
        by_patient.setdefault(dataset.stores[member.store].patient, []).append(member)
    if len(by_patient) < 2:
        return 0.0
    strengths = np.log([_stain_strengths(dataset, of) for of in by_patient.values()])
    spread = np.sqrt(strengths.var(axis=0, ddof=1).mean())
    return float(min(1.0, round(spread / _BETWEEN_LABORATORIES, 3)))


def _stain_strengths(dataset: PatchDataset, members: Sequence[Member]) -> Float64Array:
    """Strengths of haematoxylin and eosin on a patient's slides, (2,): quantiles of density."""
    chosen = np.unique(np.linspace(0, len(members) - 1, _MOST_PATCHES).astype(int))
    pixels = []
    for member in (members[i] for i in chosen):
        patch = dataset.patch(member)
        in_tissue = patch.tissue_mask.repeat(2, axis=0).repeat(2, axis=1)
        pixels.append(patch.image[in_tissue])
    density = -np.log10((np.concatenate(pixels).astype(np.float64) + 1) / 256)
    tissue = density[density.mean(axis=1) > _TISSUE_DENSITY]
    if not len(tissue):
        return np.full(2, _LEAST_STRENGTH)
    stains = tissue @ OpticalDensity().unmix_33[:, :2].double().numpy()
    haematoxylin = np.quantile(stains[:, 0], _HAEMATOXYLIN_QUANTILE)
    eosin = np.quantile(stains[:, 1], _EOSIN_QUANTILE)
    return np.maximum([haematoxylin, eosin], _LEAST_STRENGTH)
