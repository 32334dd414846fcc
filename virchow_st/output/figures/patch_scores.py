"""Scores of a single patch, by the same code that scores whole slides."""

from __future__ import annotations

from virchow_st.types import Array, BoolArray, Float32Array

PRINTED = ("pcc", "pcc_ceiling", "ssim", "ssim_all_zero")


def score_patch(
    rate: Float32Array, counts: Array, mask: BoolArray, scale_um: int
) -> dict[str, float]:
    """PCC, its ceiling, SSIM and the SSIM of zeros for one gene in one patch.

    Args:
        rate: (128, 128) expected UMIs per 2 µm bin.
        counts: (128, 128) observed, uint16.
        mask: (128, 128) bool, the scored bins.
        scale_um: side of the bins to sum to.

    Returns:
        `PRINTED`, NaN where undefined; docs/metrics.md defines them.
    """
    import numpy as np

    from virchow_st.metrics import ScaleAccumulator  # loads numba, which tables do not need

    accumulator = ScaleAccumulator(1, scale_um, np.ones(1))
    accumulator.update(rate[None], counts[None], mask)
    scores = accumulator.compute()
    return {name: float(getattr(scores, name)[0]) for name in PRINTED}
