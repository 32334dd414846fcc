"""One gene of a simulated slide: its counts, its best Gaussian, and its denoised rate."""

from __future__ import annotations

import numpy as np

from virchow_st.denoise.fit import Rates, smoother_of
from virchow_st.denoise.half import GAUSSIANS_UM
from virchow_st.denoise.own import column, gene_columns
from virchow_st.denoise.slide import SlideCounts
from virchow_st.types import Array, Float32Array


def beside_truth(
    slide: SlideCounts, rates: Rates, gene: int, true: Array
) -> dict[str, tuple[Float32Array, float]]:
    """Maps of one gene in three ways, and what each correlates with the true rate.

    The width of the Gaussian is the one that is best by the truth itself, so that it is flattered.

    Args:
        slide: Counts of a simulated slide.
        rates: Its denoised rates.
        gene: Index of the gene.
        true: (R, C) true rate on the slide's lattice, with its stripes, as ``truth.h5`` has it.

    Returns:
        Way (``counts``, ``Gaussian of … µm``, ``denoised``) → map (R, C), UMIs per 2 µm bin with
        the slide's stripes, NaN in bins that were not observed; and Pearson's r with the truth.
    """
    smoother = smoother_of(slide)
    counts = column(gene_columns(slide.rows, np.array([gene])), 0)
    at_bins = true.ravel()[slide.place]

    def told(values: Float32Array) -> tuple[Float32Array, float]:
        grid = np.full(slide.tissue.shape, np.nan, np.float32)
        grid.ravel()[slide.place] = values
        return grid, float(np.corrcoef(values, at_bins)[0, 1])

    smooth = {w: told(smoother.smoothed(counts, w) * smoother.exposure) for w in GAUSSIANS_UM}
    width_um = max(smooth, key=lambda w: smooth[w][1])
    denoised = rates.factors @ rates.loadings[gene].astype(np.float32)
    return {
        "counts": told(counts),
        f"Gaussian of {width_um:g} µm": smooth[width_um],
        "denoised": told(denoised * slide.rows.exposure.astype(np.float32)),
    }
