"""Scores of a run within classes of regions that a pathologist drew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.evaluation.by_scale import ByScale, scale_scores
from virchow_st.evaluation.slide import Slide
from virchow_st.metrics import ScaleAccumulator
from virchow_st.run.regions import RegionMetrics, RegionScoresOfClass
from virchow_st.runtime.progress import Progress
from virchow_st.slide.cells.classes import ELSEWHERE, RegionClasses, read_region_classes
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.store.format import PatchInfo
from virchow_st.store.genes import some
from virchow_st.types import (
    PATCH_BINS,
    SCALES_UM,
    Array,
    BoolArray,
    Float32Array,
    Float64Array,
)


class RegionScores:
    """Accumulates the scores of a run within each class of regions, and elsewhere.

    The tissue of a class stands in place of the whole tissue: a coarse bin is scored if all of its
    2 µm bins are tissue of the class, so that borders of regions lose a bin, and ceiling, nulls and
    intervals are those of the class. Patches and spatial blocks are those of the whole slide.

    Args:
        path: Regions, as `virchow_st.slide.cells.classes.read_region_classes` reads them.
        slide: The test slide.
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches.
        n_blocks: Number of spatial blocks of the slide.
        progress: Receives warnings about what the file holds beside regions on test patches.

    Raises:
        ConfigError: No region has a class, or none lies on tissue of the test patches.
        SlideError: The file cannot be read, holds no regions, or is of another slide.
    """

    def __init__(
        self,
        path: Path,
        slide: Slide,
        train_rate: Float64Array,
        n_blocks: int,
        progress: Progress,
    ) -> None:
        self._lattice = _lattice(slide)
        self._found = read_region_classes(path, self._lattice)
        n_bins = np.zeros(len(self._found.names) + 1, np.int64)
        for info, member in zip(slide.infos, slide.members, strict=True):
            tissue = slide.store[member.patch].tissue_mask
            n_bins += np.bincount(self._labels(info)[tissue], minlength=len(n_bins))
        self._tissue_bins = n_bins
        _warn(path, self._found, n_bins, progress)
        self._scales: dict[int, ByScale] = {
            label: {
                s: ScaleAccumulator(len(train_rate), s, train_rate, n_blocks) for s in SCALES_UM
            }
            for label in np.flatnonzero(n_bins).tolist()
        }

    def jobs(
        self,
        info: PatchInfo,
        rate: Float32Array,
        counts: Array,
        tissue_mask: BoolArray,
        nulls: Mapping[str, Any],
        block: int,
        known: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[Callable[[], None]]:
        """Functions that score one patch; they may run in parallel.

        Args:
            info: Position of the patch.
            rate: (G, 128, 128) predicted UMIs per 2 µm bin.
            counts: (G, 128, 128) observed UMIs per 2 µm bin.
            tissue_mask: (128, 128) bool, bins that are scored.
            nulls: ``shuffled_rate`` and ``shifted_rate``, see `ScaleAccumulator.update`.
            block: Index of the patch's spatial block.
            known: ``exposure`` and ``controls``, see `ScaleAccumulator.update`.
        """
        labels = self._labels(info)
        for label in np.unique(labels[tissue_mask]).tolist():
            mask = tissue_mask & (labels == label)
            for accumulator in self._scales[label].values():
                yield partial(accumulator.update, rate, counts, mask, **nulls, **known, block=block)

    def compute(self) -> RegionMetrics:
        """``regions`` of ``metrics.json``: classes by their tissue, the largest first."""
        found, n_bins = self._found, self._tissue_bins
        order = sorted(self._scales, key=lambda label: (label == 0, -n_bins[label], label))
        classes: dict[str, RegionScoresOfClass] = {}
        for label in order:
            classes[found.names[label - 1] if label else ELSEWHERE] = {
                "n_regions": found.n_regions[label - 1] if label else 0,
                "tissue_bins": int(n_bins[label]),
                "scales": scale_scores(self._scales[label], int(n_bins[label])),
            }
        return {
            "shared_bins": found.n_shared,
            "regions_without_bins": found.n_without_bins,
            "regions_without_class": found.n_unclassed,
            "classes": classes,
        }

    def _labels(self, info: PatchInfo) -> Array:
        """Labels (128, 128) of a patch's bins."""
        row, col = info.row0 - self._lattice.row0, info.col0 - self._lattice.col0
        return self._found.labels[row : row + PATCH_BINS, col : col + PATCH_BINS]


def region_scores(
    path: Path,
    slides: Sequence[Slide],
    train_rate: Float64Array,
    n_blocks: int,
    progress: Progress,
) -> RegionScores:
    """`RegionScores` of the only test slide; `ConfigError` if there are several."""
    if len(slides) > 1:
        raise ConfigError(
            f"{path}: expected one test slide for one file of regions; the test patient has "
            f"{len(slides)}; leave out --regions"
        )
    return RegionScores(path, slides[0], train_rate, n_blocks, progress)


def _lattice(slide: Slide) -> Lattice:
    """The lattice of all patches of the store, test patches or not, with their tissue."""
    store = slide.store
    infos = store.patch_table
    row0, col0 = min(info.row0 for info in infos), min(info.col0 for info in infos)
    rows = max(info.row0 for info in infos) + PATCH_BINS - row0
    cols = max(info.col0 for info in infos) + PATCH_BINS - col0
    tissue = np.zeros((rows, cols), bool)
    for info, patch in zip(infos, store, strict=True):
        row, col = info.row0 - row0, info.col0 - col0
        tissue[row : row + PATCH_BINS, col : col + PATCH_BINS] = patch.tissue_mask
    image = store.manifest["job"]["inputs"].get("image") or {}
    size = image.get("size_px")
    size_px = (int(size[0]), int(size[1])) if size else None
    return Lattice(slide.name, slide.homography, row0, col0, tissue, size_px)


def _warn(path: Path, found: RegionClasses, n_bins: Array, progress: Progress) -> None:
    """Warn about classes and regions that are not scored; `ConfigError` if none is."""
    off = [name for name, n in zip(found.names, n_bins[1:].tolist(), strict=True) if not n]
    if len(off) == len(found.names):
        raise ConfigError(
            f"{path}: expected regions on tissue of the test patches; {some(off)} lie elsewhere on "
            "the slide; draw regions there, or leave out --regions"
        )
    if off:
        progress.warn(f"{path}: not scored, without tissue in the test patches: {some(off)}")
    if n := found.n_without_bins:
        progress.warn(
            f"{path}: {n} region{'s' * (n > 1)} left out, off the slide's patches or covered by "
            "smaller regions"
        )
    if found.n_unclassed:
        n = found.n_unclassed
        progress.warn(f"{path}: {n} region{'s' * (n > 1)} without a class; taken for {ELSEWHERE}")
