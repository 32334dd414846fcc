"""Nuclear-density baseline: linear regression on the haematoxylin in and around a bin."""

from __future__ import annotations

import cv2
import numpy as np

from virchow_st.evaluation.baselines.regression import LinearMap, NormalEquations
from virchow_st.models.encoders.stain import haematoxylin
from virchow_st.store.panel_reads import PanelCounts
from virchow_st.types import PATCH_BINS, BoolArray, Float32Array, Float64Array, UInt8Array

_AROUND_UM = 32  # a few cells wide; the image has 1 µm/px
_NO_PENALTY = 1e-9  # keeps the equations solvable if both features are equal


def nuclear_features(image: UInt8Array) -> Float32Array:
    """Haematoxylin concentration (optical density) in and around each bin of a patch.

    Args:
        image: (256, 256, 3) uint8 RGB patch image; it is reflected at its border.

    Returns:
        (128·128, 2) float32 for the bins in row-major order: the mean over the bin, which shows
        whether a nucleus lies there, and the mean over 32 × 32 µm around it, which shows the
        density of nuclei.
    """
    h = haematoxylin(image)
    around = cv2.blur(h, (_AROUND_UM, _AROUND_UM), borderType=cv2.BORDER_REFLECT)
    size = (PATCH_BINS, PATCH_BINS)
    bins = [cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) for pixels in (h, around)]
    return np.stack(bins, axis=-1).reshape(-1, 2)


class NuclearFit:
    """Least-squares fit over the tissue bins of the training patches."""

    def __init__(self, n_genes: int) -> None:
        self._equations = NormalEquations(2, n_genes)

    def add(self, image: UInt8Array, counts: PanelCounts, tissue_mask: BoolArray) -> None:
        """Add a patch: image (256, 256, 3), panel counts at 2 µm, tissue mask (128, 128)."""
        x = nuclear_features(image).astype(np.float64)
        tissue = tissue_mask.ravel()
        inside = tissue[counts.position]
        gene, position = counts.gene[inside], counts.position[inside]
        k = counts.count[inside].astype(np.float64)

        def by_gene(values: Float64Array) -> Float64Array:
            return np.bincount(gene, values, counts.n_genes).astype(np.float64)

        xy = np.stack([by_gene(k * feature[position]) for feature in x.T])
        self._equations.add(x[tissue], xy, by_gene(k), by_gene(k**2))

    def solve(self) -> LinearMap:
        """Linear map from `nuclear_features` to UMIs per 2 µm bin."""
        return self._equations.solve(_NO_PENALTY)


def nuclear_rates(fit: LinearMap, nuclei: Float32Array) -> Float32Array:
    """Predict UMIs per 2 µm bin, (G, 128, 128), from `nuclear_features` as maps (2, 128, 128)."""
    return fit(nuclei.reshape(2, -1).T).T.reshape(-1, PATCH_BINS, PATCH_BINS)
