"""Everything that is scored on the test patches: the run, its baselines, slide by slide, truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from virchow_st.evaluation.baselines import BASELINES, Baselines
from virchow_st.evaluation.truth import TruthScores
from virchow_st.metrics import BlockSums, ScaleAccumulator
from virchow_st.run.compare import intervals
from virchow_st.run.results import RUN
from virchow_st.run.split import Member
from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import Store
from virchow_st.types import BIN_UM, SCALES_UM, Float32Array, Float64Array, Int64Array

ByScale = dict[int, ScaleAccumulator]


@dataclass(frozen=True)
class Slide:
    """A test slide: its name among the results, its store, and its patches of the split."""

    name: str
    store: Store
    members: Sequence[Member]
    infos: Sequence[PatchInfo]
    genes: Int64Array
    """(G,) where the panel's genes are in the store."""


class Scoreboard:
    """What every model scores at every scale, all on the same patches.

    Attributes:
        models: accumulators of the run and of each baseline.
        slides: accumulators of the run on each slide, where there are several.
        truth: of a simulated slide, or None.
    """

    def __init__(
        self,
        train_rate: Float64Array,
        baselines: Baselines,
        n_blocks: int,
        slides: Sequence[Slide],
        truth: TruthScores | None,
    ) -> None:
        def accumulators(n_blocks: int) -> ByScale:
            n_genes = len(train_rate)
            return {s: ScaleAccumulator(n_genes, s, train_rate, n_blocks) for s in SCALES_UM}

        self._baselines = baselines
        self.models = {name: accumulators(n_blocks) for name in (RUN, *BASELINES)}
        self.slides = {s.name: accumulators(1) for s in slides if len(slides) > 1}
        self.truth = truth

    def jobs(
        self, slide: Slide, place: int, rates: Sequence[Float32Array | None], block: int
    ) -> list[Callable[[], None]]:
        """What is to be done to score one patch; each touches sums of its own.

        Args:
            slide, place: which patch.
            rates: (G, 128, 128) each: its prediction, and those that the nulls lay on it.
            block: the patch's spatial block.
        """
        patch = slide.store[slide.members[place].patch]
        counts, mask = patch.dense_counts(slide.genes), patch.tissue_mask
        rate, shuffled, shifted = rates
        assert rate is not None
        jobs: list[Callable[[], None]] = []
        for accumulators, at in ((self.models[RUN], block), (self.slides.get(slide.name, {}), 0)):
            for a in accumulators.values():
                nulls = {"shuffled_rate": shuffled, "shifted_rate": shifted}
                jobs.append(partial(a.update, rate, counts, mask, **nulls, block=at))
        for name in BASELINES:
            of_baseline = self._baselines.rate(name, patch, counts)
            for a in self.models[name].values():
                jobs.append(partial(a.update, of_baseline, counts, mask, block=block))
        if self.truth is not None:
            jobs.append(partial(self.truth.update, patch.info, rate, counts, mask))
        return jobs

    def block_sums(self) -> dict[str, dict[int, BlockSums]]:
        """The sums of each block, by model and scale."""
        return {
            model: {scale: accumulator.block_sums() for scale, accumulator in scales.items()}
            for model, scales in self.models.items()
        }


def scale_figures(accumulators: ByScale, tissue_bins: int) -> dict[str, Any]:
    """Figures of one model, a scale each.

    Args:
        accumulators: by scale.
        tissue_bins: 2 µm bins of tissue on the slides, in patches or not.
    """
    figures = {}
    for scale, accumulator in accumulators.items():
        scores = accumulator.compute()
        figures[str(scale)] = {
            "coverage": scores.n_bins * (scale // BIN_UM) ** 2 / tissue_bins,
            "n_bins": scores.n_bins,
            **scores.summary(),
            **intervals(accumulator.block_sums()),
        }
    return figures
