"""How differently the training patients are stained: what chooses the strength of augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virchow_st.models.decoders.stem import OpticalDensity
from virchow_st.run.split import Member
from virchow_st.training.dataset import PatchDataset
from virchow_st.types import Float64Array

# Standard deviation, over laboratories, of the logarithm of a stain's strength, for which the
# augmentation at strength 1 is made.
_BETWEEN_LABORATORIES = 0.15
_MOST_PATCHES = 16  # of a patient; the measures are quantiles of a million pixels by then
_TISSUE_DENSITY = 0.08
# Nuclei are about as dark in every tissue, and so are its most eosinophilic parts: means would tell
# how many nuclei there are, which is no matter of the laboratory.
_HAEMATOXYLIN_QUANTILE, _EOSIN_QUANTILE = 0.98, 0.90
_LEAST_STRENGTH = 0.01


def variation_from_data(dataset: PatchDataset, members: Sequence[Member]) -> float:
    """Strength of stain augmentation, 0 to 1, that fits how the training patients differ.

    The standard deviation between patients of the logarithm of each stain's strength, in units of
    what laboratories differ by. One patient alone differs from nobody: 0.

    Args:
        dataset: the run's patches.
        members: the training patches; no others are read.
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
    """Optical density of haematoxylin and of eosin where a patient's slides have most, (2,)."""
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
