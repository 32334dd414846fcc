"""Exposure of the test slides: their stripes, and what the scores are at their true depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from virchow_st.evaluation.blocks import Blocks
from virchow_st.evaluation.scoreboard import Scoreboard
from virchow_st.evaluation.slide import Slide
from virchow_st.metrics import BlockSums, correlation
from virchow_st.metrics import deviance as poisson_scores
from virchow_st.predict.load import Run
from virchow_st.run.blocks import RUN
from virchow_st.run.exposure import CohortExposure
from virchow_st.runtime.progress import Progress
from virchow_st.store.reader import Store
from virchow_st.types import Float64Array


def exposures(
    run: Run, stores: Sequence[Store], slides: Sequence[Slide], progress: Progress
) -> tuple[CohortExposure | None, list[Slide]]:
    """Read the exposure that a run was trained with, and measure that of its test slides.

    Args:
        run: The run.
        stores: Stores of the run.
        slides: Its test slides.
        progress: Receives the number of patches read.

    Returns:
        The exposure, of the test slides as well, and the test slides with theirs; None, and the
        slides as they are, for a run without.

    Raises:
        ConfigError: The run's file is missing or not what it was.
    """
    xxh64 = run.state.get("exposure_xxh64")
    if xxh64 is None:
        return None, list(slides)
    exposure = CohortExposure.read(run.path, xxh64, stores)
    with_own = []
    for slide in slides:
        index = slide.members[0].store
        exposure = exposure.with_slide(index, stores, progress)
        with_own.append(replace(slide, exposure=exposure.slides[index]))
    return exposure, with_own


def exposure_metrics(
    exposure: CohortExposure, slides: Sequence[Slide], board: Scoreboard, blocks: Blocks
) -> dict[str, Any]:
    """``exposure`` of ``metrics.json``, see docs/metrics.md.

    The scores elsewhere in it are those of rates at the training slides' mean depth, since nobody
    knows the depth of a slide before it was sequenced. ``with_depth`` has those at each test
    slide's own depth.
    """
    depth_of_block = np.ones(blocks.n_blocks)
    for slide, of_patch in zip(slides, blocks.of_patch, strict=True):
        depth_of_block[of_patch] = exposure.relative_depth(slide.members[0].store)
    sums = board.block_sums()[RUN]
    return {
        "mode": exposure.mode,
        "training_umis_per_bin": exposure.reference,
        "slides": {
            slide.name: {
                "relative_depth": exposure.relative_depth(slide.members[0].store),
                **exposure.slides[slide.members[0].store].summary(),
            }
            for slide in slides
        },
        "with_depth": {
            str(scale): _scores(at_depth(of_scale, depth_of_block))
            for scale, of_scale in sums.items()
        },
    }


def at_depth(sums: BlockSums, depth: Float64Array) -> BlockSums:
    """Sums per block that exposures ``depth`` times as large would give, for the same rates.

    Args:
        sums: Sums per block at one scale.
        depth: (n_blocks,) > 0.

    Example:
        >>> moments = np.array([[[4.0, 2.0, 6.0, 2.0, 18.0, 3.0]]])
        >>> poisson = np.array([[[2.0, 2.0, -1.0, 5.0]]])
        >>> deeper = at_depth(BlockSums(moments, poisson, np.ones(1)), np.array([2.0]))
        >>> deeper.moments[0, 0].tolist(), deeper.poisson_sums[0, 0].round(2).tolist()
        ([8.0, 4.0, 6.0, 4.0, 9.0, 3.0], [2.0, 4.0, -1.0, 0.84])
    """
    moments, poisson_sums = sums.moments.copy(), sums.poisson_sums.copy()
    d = depth[:, None]
    for column in (correlation.N, correlation.SX, correlation.SXX):
        moments[..., column] *= d
    moments[..., correlation.SYY] /= d
    poisson_sums[..., poisson_scores.RATE] *= d
    poisson_sums[..., poisson_scores.K_LOG_K] -= np.log(d) * moments[..., correlation.SY]
    return BlockSums(moments, poisson_sums, sums.null_rate)


def _scores(sums: BlockSums) -> dict[str, float | None]:
    moments, poisson_sums = sums.moments.sum(0), sums.poisson_sums.sum(0)
    n, predicted, observed = (
        moments[:, c] for c in (correlation.N, correlation.SX, correlation.SY)
    )
    pcc = correlation.pearson_from_moments(moments)
    deviance = poisson_scores.poisson_deviance(poisson_sums, observed)
    null = poisson_scores.constant_deviance(poisson_sums, observed, n, sums.null_rate)
    d2 = poisson_scores.deviance_explained(deviance, null)
    scored = np.isfinite(pcc)
    return {
        "pcc": _mean(pcc[scored]),
        "d2_poisson": _mean(d2[scored]),
        "calibration": float(predicted.sum() / observed.sum()) if observed.sum() else None,
    }


def _mean(values: Float64Array) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else None
