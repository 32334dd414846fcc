"""``vst evaluate``: a run and its test patient → metrics.json, per_gene.csv and maps."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.dataset import PatchDataset
from virchow_st.files import write_json
from virchow_st.folds import Member
from virchow_st.maps import SlideMaps, write_maps
from virchow_st.metrics import ScaleAccumulator, ScaleScores
from virchow_st.predict import Run, load_run
from virchow_st.progress import SILENT, Progress
from virchow_st.store.reader import Store, open_store
from virchow_st.types import BIN_UM, SCALES_UM, Float64Array

FORMAT = "virchow_st.metrics/1"
_PER_GENE = (
    "mean", "nonzero", "pcc", "pcc_ceiling", "pcc_shuffled", "ssim", "ssim_shuffled",
    "ssim_all_zero", "d2_poisson", "calibration",
)  # fmt: skip


def evaluate(run_path: Path, device: str = "auto", progress: Progress = SILENT) -> dict[str, Any]:
    """Score a run's best decoder on its test patient.

    Args:
        run_path: a run directory of ``vst train``.
        device: where to predict.
        progress: who listens.

    Returns:
        The content of ``metrics.json``, which is written last: it is there only if all else is.

    Raises:
        ConfigError, StoreError: the run or one of its stores is missing or does not fit.
    """
    run = load_run(run_path, device)
    stores = [open_store(path) for path in run.config.stores]
    for store in stores:
        run.check_store(store)
    run.split.check_stores(stores)
    (run_path / "metrics.json").unlink(missing_ok=True)
    n_genes, rate = len(run.panel), run.train_rate
    scores = {s: ScaleAccumulator(n_genes, s, rate) for s in SCALES_UM}
    baseline = {s: ScaleAccumulator(n_genes, s, rate) for s in SCALES_UM}

    tested = sorted({member.store for member in run.split.test})
    n_done, n_total = 0, len(run.split.test)
    for i in tested:
        members = [member for member in run.split.test if member.store == i]
        name = stores[i].patient if len(tested) == 1 else f"{stores[i].patient}-{i}"
        with write_maps(run_path / "maps" / f"{name}.h5", stores[i], run.panel) as maps:
            _predict(run, stores, members, maps)
            for place, member in enumerate(members):
                _score(run, stores, members, place, maps, scores, baseline)
                n_done += 1
                progress.step(n_done, n_total, "patches", stores[member.store].patient)

    computed = {s: accumulator.compute() for s, accumulator in scores.items()}
    tissue_bins = sum(stores[i].manifest["tissue_bins"]["slide"] for i in tested)
    metrics = {
        "format": FORMAT,
        "test_patients": sorted({stores[i].patient for i in tested}),
        "n_patches": n_total,
        "n_genes": n_genes,
        "loss": run.config.loss,
        "decoder": run.config.decoder,
        "epoch": run.state["epoch"],
        "encoder": run.state["encoder"],
        "scales": {str(s): _summary(computed[s], tissue_bins) for s in SCALES_UM},
        "baselines": {
            "gene_mean": {str(s): _summary(baseline[s].compute(), tissue_bins) for s in SCALES_UM}
        },
    }
    _write_per_gene(run_path / "per_gene.csv", run, computed)
    write_json(run_path / "metrics.json", metrics)
    return metrics


def _predict(run: Run, stores: Sequence[Store], members: Sequence[Member], maps: SlideMaps) -> None:
    """Predict every patch into the maps, from which all figures are then computed."""
    dataset = PatchDataset(stores, run.panel, wants_image=True)
    for batch in dataset.batches(members, batch_size=8):
        image = batch.image if run.decoder.wants_image else None
        rates = run.rates(batch.tokens, image)
        assert batch.image is not None
        for i, member in enumerate(batch.members):
            info = stores[member.store].patch_table[member.patch]
            maps.write(info, rates[i], batch.counts[i], batch.tissue_mask[i], batch.image[i])


def _score(
    run: Run,
    stores: Sequence[Store],
    members: Sequence[Member],
    place: int,
    maps: SlideMaps,
    scores: dict[int, ScaleAccumulator],
    baseline: dict[int, ScaleAccumulator],
) -> None:
    """Add one patch to the accumulators: its own prediction, another patch's, and gene means."""
    member = members[place]
    patch = stores[member.store][member.patch]
    mask = patch.tissue_mask
    counts = patch.counts(run.panel.indices(stores[member.store])).toarray()
    counts = counts.reshape(-1, *mask.shape)
    rate = maps.read_rate(patch.info)
    other = _another(members, place)
    shuffled = None
    if other is not None:
        shuffled = maps.read_rate(stores[other.store].patch_table[other.patch])
    constant = np.broadcast_to(run.train_rate.astype(np.float32)[:, None, None], rate.shape)
    for scale in SCALES_UM:
        scores[scale].update(rate, counts, mask, shuffled)
        baseline[scale].update(constant, counts, mask, None)


def _another(members: Sequence[Member], place: int) -> Member | None:
    """The patch whose prediction stands in for this one's under the shuffled null.

    A fixed random cycle through the slide's patches, so that none stands in for itself.
    """
    if len(members) < 2:
        return None
    cycle = np.random.default_rng(0).permutation(len(members))
    at = int(np.flatnonzero(cycle == place)[0])
    return members[int(cycle[(at + 1) % len(cycle)])]


def _summary(scores: ScaleScores, tissue_bins: int) -> dict[str, Any]:
    scored_bins = scores.n_bins * (scores.scale_um // BIN_UM) ** 2
    return {"coverage": scored_bins / tissue_bins, **scores.summary()}


def _write_per_gene(path: Path, run: Run, computed: dict[int, ScaleScores]) -> None:
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f, lineterminator="\n")
        rows.writerow(["gene_id", "symbol", "scale_um", *_PER_GENE])
        for g, (gene, symbol) in enumerate(zip(run.panel.ids, run.panel.symbols, strict=True)):
            for scale, scores in computed.items():
                figures = (_text(getattr(scores, name), g) for name in _PER_GENE)
                rows.writerow([gene, symbol, scale, *figures])
    os.replace(aside, path)


def _text(values: Float64Array, gene: int) -> str:
    return "" if np.isnan(values[gene]) else f"{values[gene]:.6g}"
