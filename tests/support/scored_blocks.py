"""Scores of random patches, one patch per block, for tests of result files and comparisons."""

from __future__ import annotations

import numpy as np

from virchow_st.metrics import BlockSums, ScaleAccumulator
from virchow_st.metrics.partial import Controls
from virchow_st.run.panel import Panel
from virchow_st.types import SCALES_UM

G = 3
PANEL = Panel(("E0", "E1", "E2"), ("A", "B", "A"))


def scored(n_blocks: int, noise: float = 0.0, seed: int = 0) -> dict[int, ScaleAccumulator]:
    """A patch a block; rates that follow the true ones more or less."""
    rng = np.random.default_rng(7)
    other = np.random.default_rng(seed)
    accumulators = {s: ScaleAccumulator(G, s, np.full(G, 0.3), n_blocks) for s in SCALES_UM}
    for block in range(n_blocks):
        rate = rng.gamma(2, 0.15, (G, 8, 8)).repeat(4, 1).repeat(4, 2).astype(np.float32)
        counts, mask = rng.poisson(rate).astype(np.uint16), np.ones((32, 32), np.bool_)
        rate = rate * np.exp(noise * other.normal(size=rate.shape)).astype(np.float32)
        nuclei = np.random.default_rng(block).random((2, 32, 32), np.float32)
        controls = Controls(3 * counts.sum(0, dtype=np.int64), nuclei)
        for accumulator in accumulators.values():
            accumulator.update(rate, counts, mask, block=block, controls=controls)
    return accumulators


def sums_of(accumulators: dict[int, ScaleAccumulator]) -> dict[int, BlockSums]:
    return {scale: accumulator.block_sums() for scale, accumulator in accumulators.items()}
