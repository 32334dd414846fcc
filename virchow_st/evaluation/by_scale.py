"""Scores of one model at every scale, as ``metrics.json`` has them."""

from __future__ import annotations

from typing import Any

from virchow_st.metrics import ScaleAccumulator
from virchow_st.run.compare import intervals
from virchow_st.types import BIN_UM

ByScale = dict[int, ScaleAccumulator]


def scale_scores(
    accumulators: ByScale, tissue_bins: int, *, is_baseline: bool = False
) -> dict[str, Any]:
    """Scores of one model by scale, as in ``metrics.json``.

    Args:
        accumulators: Accumulators by scale.
        tissue_bins: Number of 2 µm tissue bins on the slides, inside and outside of patches.
        is_baseline: Whether it is a baseline; ``pcc_partial`` then gets no interval, which takes
            longer than all others together.
    """
    by_scale = {}
    for scale, accumulator in accumulators.items():
        scores = accumulator.compute()
        by_scale[str(scale)] = {
            "coverage": scores.n_bins * (scale // BIN_UM) ** 2 / tissue_bins,
            "n_bins": scores.n_bins,
            **scores.summary(),
            **intervals(accumulator.block_sums(), of_partial=not is_baseline),
        }
    return by_scale
