"""Runs as the prior of a slide that was measured: what they predict on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from virchow_st.denoise.prior import Prior
from virchow_st.denoise.slide import SlideCounts
from virchow_st.errors import ConfigError, StoreError
from virchow_st.predict.load import Run, load_run
from virchow_st.run.rates import check_left_out
from virchow_st.run.split import read_split
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.reader import Store, open_store
from virchow_st.store.same_slide import check_different_slides
from virchow_st.types import PATCH_BINS, Float64Array, Int64Array


def load_other(path: Path | str, store: Store) -> Run:
    """Load a run, and refuse one that was trained on the store's patient or slide.

    A decoder that has seen a slide's counts repeats their noise, and held-out counts of the same
    slide would trust it. The patients' names and the records' hashes are those in the run's split;
    its training stores are compared with the store where they still are.

    Args:
        path: Run directory, or ``hf:ORG/NAME``.
        store: The slide to denoise.

    Raises:
        ConfigError: No such run; one that was trained on this patient or slide; or the store's
            tokens are of another encoder than the run's.
    """
    run = load_run(path)
    run.check_store(store)
    content = read_split(run.path / "split.json")
    used = {part["store"] for part in (*content["train"], *content["validation"])}
    for i in sorted(used):
        slide = content["slides"][i]
        if slide["patient"] == store.patient:
            why = f"trained on patient {store.patient}"
        elif slide["records_xxh64"] == store.manifest["records_xxh64"]:
            why = f"trained on this slide, as patient {slide['patient']}"
        elif i < len(run.config.stores) and (same := _same(run.config.stores[i], store)):
            why = f"trained on this slide: {same}"
        else:
            continue
        raise ConfigError(
            f"{run.path}: expected a run of other patients than {store.path}; it was {why}; "
            f"train one with --test-patient {store.patient}"
        )
    return run


def _same(path: str, store: Store) -> str:
    """Why a training store is of the store's slide; empty where it is not, or is gone."""
    try:
        other = open_store(path)
    except StoreError:
        return ""
    try:
        check_different_slides([other, store])
    except ConfigError as e:
        return str(e)
    return ""


def predict_prior(
    runs: Sequence[Run],
    store: Store,
    slide: SlideCounts,
    of_patch: Int64Array,
    progress: Progress = SILENT,
) -> Prior:
    """Predict the maps of runs in the tissue bins of a slide, each patch by one of them.

    A run with factors gives its factors, another one the rates of its panel. Bins whose rates are
    left out as impossible get 0.

    Args:
        runs: One of other patients, see `load_other`, or those of folds of the slide.
        store: Of the slide.
        slide: Its counts.
        of_patch: Index of the run that predicts each patch, (n_patches,).
        progress: Receives the number of patches predicted.
    """
    places = np.concatenate([slide.place, slide.unseen])
    number = np.full(slide.tissue.shape, -1, np.int64)
    number.ravel()[places] = np.arange(len(places))
    each = [_loadings(run, slide) for run in runs]
    n_maps = max(loadings.shape[1] for loadings in each)
    loadings = np.stack([np.pad(x, ((0, 0), (0, n_maps - x.shape[1]))) for x in each])
    maps = np.zeros((len(places), n_maps), np.float32)
    part = np.zeros(len(places), np.int64)
    n_left_out = 0
    patches = list(store)
    predicted = [
        run.predict_maps([patch for n, patch in enumerate(patches) if of_patch[n] == i])
        for i, run in enumerate(runs)
    ]
    for n, patch in enumerate(patches):
        row, col = patch.info.row0 - slide.corner[0], patch.info.col0 - slide.corner[1]
        at = number[row : row + PATCH_BINS, col : col + PATCH_BINS]
        values = next(predicted[of_patch[n]])
        n_left_out += int(np.isnan(values[0]).sum())
        maps[at[at >= 0], : len(values)] = np.nan_to_num(values[:, at >= 0]).T
        part[at[at >= 0]] = of_patch[n]
        progress.step(n + 1, len(store), "patches predicted from H&E")
    check_left_out(n_left_out, len(store) * PATCH_BINS**2, str(runs[0].path))
    n_seen, name = len(slide.place), runs[0].path.resolve().name
    return Prior(maps[:n_seen], maps[n_seen:], part[:n_seen], part[n_seen:], loadings, name)


def _loadings(run: Run, slide: SlideCounts) -> Float64Array:
    """(G, J) shares of the slide's genes in the run's maps; NaN for genes of the slide alone."""
    values = np.eye(run.n_genes) if run.loadings is None else run.loadings.astype(np.float64)
    place = {gene: i for i, gene in enumerate(run.genes.all.ids)}
    found = np.full((len(slide.panel), values.shape[1]), np.nan)
    for g, gene in enumerate(slide.panel.ids):
        if gene in place:
            found[g] = values[place[gene]]
    if np.isnan(found[:, 0]).all():
        raise ConfigError(
            f"{run.path}: expected genes that the slide measured; found none in common; give a run "
            "with gene ids of the same annotation"
        )
    return found
