"""Decoders of spatial folds of one slide: H&E as prior where there is no other patient.

The patches of the slide are dealt into folds by place. For each fold a decoder is trained on the
others; the counts of its own patches, and those within `MARGIN_UM` of them, it does not see. It
then predicts its fold from H&E. A margin is needed because a bin's estimate takes counts from
around it, up to the reach of the widest Gaussian: its prior has seen none of these.

Letters: n patches, (R, C) bins of the lattice.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import maximum_filter

from virchow_st.config import DenoiseConfig, TrainConfig
from virchow_st.denoise.ems import WIDTHS_UM
from virchow_st.denoise.prior import Prior
from virchow_st.denoise.run_prior import predict_prior
from virchow_st.denoise.slide import SlideCounts
from virchow_st.denoise.smooth import REACH
from virchow_st.errors import ConfigError
from virchow_st.predict.load import Run, load_run
from virchow_st.run.folder import check_same_options, is_begun
from virchow_st.run.split import split_blocks, square_blocks
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.part import StorePart
from virchow_st.store.reader import Store
from virchow_st.training.train import train_on_split
from virchow_st.types import BIN_UM, PATCH_BINS, BoolArray, Int64Array

MARGIN_UM = REACH * WIDTHS_UM[0]
"""Distance from a fold within which its decoder sees no counts, µm."""
EPOCHS = 15
"""Epochs of each decoder at most."""
_BLOCKS_PATCHES = (4, 2, 1)  # sides of the blocks that are dealt, the largest that are enough
_BLOCKS_PER_FOLD = 2


def fold_of_patches(store: Store, n_folds: int) -> Int64Array:
    """Fold of each patch, (n,) from 0 on.

    Square blocks of patches are dealt, the largest block first, each to the fold with the fewest
    patches. A block has a side of 4 patches (1 mm), or of 2 or 1 where these are fewer than two
    for each fold.

    Raises:
        ConfigError: The store has fewer patches than folds.
    """
    if len(store) < n_folds:
        raise ConfigError(
            f"{store.path}: expected at least {n_folds} patches for --leave-blocks-out {n_folds}; "
            f"found {len(store)}; leave fewer out, or give --run"
        )
    row, col = (
        np.array(x, np.int64)
        for x in ([i.row0 for i in store.patch_table], [i.col0 for i in store.patch_table])
    )
    for side in _BLOCKS_PATCHES:
        block = square_blocks(row - row.min(), col - col.min(), side * PATCH_BINS)
        if block.max() + 1 >= _BLOCKS_PER_FOLD * n_folds:
            break
    size, n_patches = np.bincount(block), np.zeros(n_folds, np.int64)
    fold = np.empty(len(size), np.int64)
    for b in np.argsort(-size, kind="stable"):
        fold[b] = np.argmin(n_patches)
        n_patches[fold[b]] += size[b]
    return fold[block]


def hidden_bins(store: Store, slide: SlideCounts, left_out: BoolArray) -> BoolArray:
    """(R, C) bool, the bins of the patches left out (n,) and those within the margin of them."""
    hidden = np.zeros_like(slide.tissue)
    for info, is_out in zip(store.patch_table, left_out, strict=True):
        if is_out:
            row, col = info.row0 - slide.corner[0], info.col0 - slide.corner[1]
            hidden[row : row + PATCH_BINS, col : col + PATCH_BINS] = True
    return np.asarray(maximum_filter(hidden, 2 * math.ceil(MARGIN_UM / BIN_UM) + 1))


def training_options(store: Store, config: DenoiseConfig) -> TrainConfig:
    """Settings of the decoders: the defaults, with all genes and few epochs."""
    stores = (str(store.path.resolve()),)
    return TrainConfig(stores=stores, panel="all", epochs=EPOCHS, seed=config.seed)


def train_folds(
    store: Store,
    slide: SlideCounts,
    config: DenoiseConfig,
    folder: Path,
    progress: Progress = SILENT,
) -> Prior:
    """Train the default decoder on the folds of a slide, and predict each fold by its own.

    Args:
        store: The slide's store.
        slide: Its counts.
        config: Number of folds, and seed.
        folder: Of the runs. Runs that are there, whole or not, are gone on with.
        progress: Receives notes and step counts.

    Raises:
        ConfigError: The slide has too few patches, or the folder holds runs with other options.
    """
    n_folds = config.leave_blocks_out
    fold = fold_of_patches(store, n_folds)
    options = training_options(store, config)
    parts, splits = [], []
    for f in range(n_folds):  # all splits at first, so that a slide that is too small fails at once
        hidden = hidden_bins(store, slide, fold == f)
        parts.append(StorePart(store.path, hidden, slide.corner))
        splits.append(split_blocks(parts[f], np.flatnonzero(fold == f).tolist(), config.seed))
    runs: list[Run] = []
    for f in range(n_folds):
        run = folder / f"fold-{f + 1}-of-{n_folds}"
        progress.note(
            f"fold {f + 1} of {n_folds}: a decoder that does not see "
            f"{np.count_nonzero(fold == f)} of {len(store)} patches"
        )
        if begun := is_begun(run):
            _check_begun(run, options, folder)
        if not (run / "best_metrics.json").is_file():
            train_on_split(run, options, [parts[f]], splits[f], resume=begun, progress=progress)
        runs.append(load_run(run))
    prior = predict_prior(runs, store, slide, fold, progress)
    return replace(prior, run=f"{n_folds} spatial folds of this slide")


def _check_begun(run: Path, options: TrainConfig, folder: Path) -> None:
    try:
        check_same_options(run, options)
    except ConfigError:
        raise ConfigError(
            f"{run}: expected a decoder that this command began; it was begun with other options; "
            f"delete {folder}"
        ) from None
