"""Scores of all models on the test patches: the run, its baselines, per slide, and true rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from virchow_st.evaluation.baselines import ORACLES, Baselines, patch_controls
from virchow_st.evaluation.by_scale import ByScale
from virchow_st.evaluation.regions import RegionScores
from virchow_st.evaluation.slide import Slide
from virchow_st.evaluation.truth import TruthScores
from virchow_st.metrics import BlockSums, ScaleAccumulator
from virchow_st.run.blocks import RUN
from virchow_st.run.rates import left_out
from virchow_st.run.score_table import BASELINES
from virchow_st.types import SCALES_UM, Float32Array, Float64Array


class Scoreboard:
    """Accumulates the scores of every model at every scale, all on the same patches.

    Args:
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches.
        baselines: Fitted baselines.
        n_blocks: Number of spatial blocks over all slides.
        slides: Test slides.
        truth: Accumulates the comparison with the true rates of a simulated slide; None otherwise.
        regions: Accumulates the scores of the run within regions; None without.

    Attributes:
        models: Accumulators of the run and of each baseline, by scale.
        slides: Accumulators of the run on each slide, by scale; empty for a single slide.
        truth: As given.
        regions: As given.
    """

    def __init__(
        self,
        train_rate: Float64Array,
        baselines: Baselines,
        n_blocks: int,
        slides: Sequence[Slide],
        truth: TruthScores | None,
        regions: RegionScores | None = None,
    ) -> None:
        def accumulators(n_blocks: int) -> ByScale:
            n_genes = len(train_rate)
            return {s: ScaleAccumulator(n_genes, s, train_rate, n_blocks) for s in SCALES_UM}

        self._baselines = baselines
        self._train_rate = train_rate.astype(np.float32)[:, None, None]
        self.models = {name: accumulators(n_blocks) for name in (RUN, *BASELINES)}
        self.slides = {s.name: accumulators(1) for s in slides if len(slides) > 1}
        self.truth = truth
        self.regions = regions

    def jobs(
        self, slide: Slide, place: int, rates: Sequence[Float32Array | None], block: int
    ) -> list[Callable[[], None]]:
        """Functions that score one patch; they may run in parallel, as each adds to its own sums.

        Args:
            slide: Test slide.
            place: Index of the patch among the slide's test patches.
            rates: (G, 128, 128) each: the prediction for the patch, and those of its partners for
                the shuffled and the shifted null (None without a partner). Bins that are NaN in the
                first are not scored, by any model; the others are filled with the training means.
            block: Index of the patch's spatial block.
        """
        patch = slide.store[slide.members[place].patch]
        counts, mask = patch.dense_counts(slide.genes), patch.tissue_mask
        controls = patch_controls(patch)
        exposure = None if slide.exposure is None else slide.exposure.of_patch(patch.info)
        rate, *partners = rates
        assert rate is not None
        if (lost := left_out(rate)).any():
            mask = mask & ~lost
            rate = np.where(lost, np.float32(0), rate)
        shuffled, shifted = (None if null is None else self._filled(null) for null in partners)
        jobs: list[Callable[[], None]] = []
        known: dict[str, Any] = {"exposure": exposure, "controls": controls}
        nulls: dict[str, Any] = {"shuffled_rate": shuffled, "shifted_rate": shifted}
        for accumulators, at in ((self.models[RUN], block), (self.slides.get(slide.name, {}), 0)):
            for a in accumulators.values():
                jobs.append(partial(a.update, rate, counts, mask, **nulls, **known, block=at))
        for name in BASELINES:
            of_baseline = self._baselines.rate(name, patch, counts, controls)
            if exposure is not None and name in ORACLES:
                of_baseline = of_baseline / exposure  # it reads counts, which have the exposure
            for a in self.models[name].values():
                jobs.append(partial(a.update, of_baseline, counts, mask, **known, block=block))
        if self.truth is not None:
            expected = rate if exposure is None else rate * exposure
            jobs.append(partial(self.truth.update, patch.info, expected, counts, mask))
        if self.regions is not None:
            jobs += self.regions.jobs(patch.info, rate, counts, mask, nulls, block, known)
        return jobs

    def _filled(self, rate: Float32Array) -> Float32Array:
        return np.where(left_out(rate), self._train_rate, rate)

    def block_sums(self) -> dict[str, dict[int, BlockSums]]:
        """Sums per spatial block, by model and scale."""
        return {
            model: {scale: accumulator.block_sums() for scale, accumulator in scales.items()}
            for model, scales in self.models.items()
        }
