"""Measures how the training patients' slides look, and how much their staining differs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virchow_st.metrics.appearance import (
    BETWEEN_LABORATORIES,
    MOST_PATCHES,
    Appearance,
    appearance,
)
from virchow_st.models.decoders.stem import OpticalDensity
from virchow_st.models.encoders.stain import UNMIX
from virchow_st.run.split import Member
from virchow_st.training.dataset import PatchDataset
from virchow_st.types import Array


def appearances(
    dataset: PatchDataset, members: Sequence[Member], unmix: Array = UNMIX[:, :2]
) -> list[Appearance]:
    """How the slides of each training patient look.

    Args:
        dataset: the run's patches.
        members: the training patches; no others are read.
        unmix: (3, 2) from optical densities of red, green and blue to haematoxylin and eosin.
    """
    by_patient: dict[str, list[Member]] = {}
    for member in members:
        by_patient.setdefault(dataset.stores[member.store].patient, []).append(member)
    return [_appearance_of(dataset, of, unmix) for of in by_patient.values()]


def variation_from_data(dataset: PatchDataset, members: Sequence[Member]) -> float:
    """Strength of stain augmentation that matches the differences between the training patients.

    It is the standard deviation between patients of the logarithm of stain strength (root mean
    square over haematoxylin and eosin), in units of the standard deviation between laboratories,
    which augmentation of strength 1 varies stains by. Strengths are along the directions that
    augmentation varies.

    Args:
        dataset, members: as for `appearances`.

    Returns:
        0 to 1, rounded to three digits; 0 if there is only one training patient.
    """
    if len({dataset.stores[member.store].patient for member in members}) < 2:
        return 0.0
    varied = OpticalDensity().unmix_33[:, :2].double().numpy()
    looks = appearances(dataset, members, varied)
    strengths = np.log([[look.haematoxylin, look.eosin] for look in looks])
    spread = np.sqrt(strengths.var(axis=0, ddof=1).mean())
    return float(min(1.0, round(spread / BETWEEN_LABORATORIES, 3)))


def _appearance_of(dataset: PatchDataset, members: Sequence[Member], unmix: Array) -> Appearance:
    chosen = np.unique(np.linspace(0, len(members) - 1, MOST_PATCHES).astype(int))
    images, masks = [], []
    for member in (members[i] for i in chosen):
        patch = dataset.patch(member)
        images.append(patch.image)
        masks.append(patch.tissue_mask.repeat(2, axis=0).repeat(2, axis=1))
    return appearance(images, masks, unmix)
