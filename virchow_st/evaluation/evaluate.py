"""``vst evaluate``: scores a run on its test patient and writes result files and maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from virchow_st.errors import ConfigError
from virchow_st.evaluation.all_genes import AllGenes, summary
from virchow_st.evaluation.baselines import ORACLES, fit_baselines
from virchow_st.evaluation.blocks import NOBODY, Blocks, cut_blocks, shifted_places, shuffled_places
from virchow_st.evaluation.by_scale import scale_scores
from virchow_st.evaluation.exposure import exposure_metrics, exposures
from virchow_st.evaluation.fields import SlideField
from virchow_st.evaluation.gene_sets import GeneSetScores
from virchow_st.evaluation.measured import MeasuredGenes
from virchow_st.evaluation.protocol import protocol
from virchow_st.evaluation.regions import region_scores
from virchow_st.evaluation.scoreboard import Scoreboard
from virchow_st.evaluation.slide import Slide
from virchow_st.evaluation.truth import TruthScores
from virchow_st.metrics.seams import SeamAccumulator, Seams
from virchow_st.names import file_names
from virchow_st.predict.load import Run, load_run
from virchow_st.run.all_genes import FIELDS, write_all_genes, write_factors
from virchow_st.run.blocks import RUN, RunBlocks, write_blocks
from virchow_st.run.compare import DRAWS, check_same_panel, differences, other_patches
from virchow_st.run.gene_sets import GENE_SETS
from virchow_st.run.lock import RESULTS_SEAL, RunLock
from virchow_st.run.maps import MAPS, SlideMaps, write_maps
from virchow_st.run.overview import slide_names, write_overview
from virchow_st.run.panel import Panel
from virchow_st.run.rates import check_left_out, left_out, left_out_warning
from virchow_st.run.regions import REGIONS_FILE, write_regions
from virchow_st.run.results import METRICS_FORMAT, write_metrics, write_per_gene
from virchow_st.run.score_table import BASELINES
from virchow_st.runtime.atomic import replaced_together
from virchow_st.runtime.devices import core_count
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import Store, open_store
from virchow_st.store.same_slide import check_different_slides
from virchow_st.training.dataset import PatchDataset
from virchow_st.types import PATCH_BINS, BoolArray, Float32Array


def evaluate_run(
    run_path: Path,
    device: str = "auto",
    progress: Progress = SILENT,
    truth: Path | None = None,
    gene_sets: Path | None = None,
    regions: Path | None = None,
) -> dict[str, Any]:
    """Score a run's best decoder and the baselines on the run's test patient.

    What an earlier evaluation left stays until all of the new one is written.

    Args:
        run_path: A run directory of ``vst train``.
        device: Device to predict on: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: Receives notes, warnings and step counts.
        truth: ``truth.h5`` of a simulated test slide, to compare with the true rates as well.
        gene_sets: GMT file whose sets are scored as well, each as the sum of its genes; for a run
            with factors.
        regions: Regions of the test slide with classes, such as QuPath's annotations as GeoJSON or
            a label image, within which the run is scored as well (docs/metrics.md, "Regions").

    Returns:
        The content of ``metrics.json``. It is written last, so it exists only if all other result
        files do.

    Raises:
        ConfigError: The run cannot be used, stores do not match it, or a prediction is
            not finite or impossible in more than 1 % of the bins.
        StoreError: A store is missing, damaged or not finished.
        SlideError: ``truth`` or ``regions`` does not belong to the test slide.
    """
    with RunLock() as lock:
        lock.take(run_path)
        run = load_run(run_path, device)
        with replaced_together(run_path, RESULTS_SEAL) as folder:
            metrics = _evaluate(run, folder, progress, truth, gene_sets, regions)
            maps = {path.name for path in (folder / MAPS).iterdir()}
        for path in (run_path / MAPS).glob("*.h5"):
            if path.name not in maps:
                path.unlink()  # under a name that an older version gave it
        for given, name in ((gene_sets, GENE_SETS), (regions, REGIONS_FILE)):
            if given is None:
                (run_path / name).unlink(missing_ok=True)  # of an evaluation before this one
        return metrics


def _evaluate(
    run: Run,
    folder: Path,
    progress: Progress,
    truth: Path | None,
    gene_sets: Path | None,
    regions: Path | None,
) -> dict[str, Any]:
    """Score a loaded run and write all results into a folder."""
    if gene_sets is not None and run.loadings is None:
        raise ConfigError(
            f"{run.path}: gene sets are scored from the factors of all genes, and this run "
            f"predicts {len(run.panel)} genes one by one; train it with --panel all"
        )
    stores = _open_stores(run)
    genes = MeasuredGenes.on(run.genes, _test_stores(run, stores))
    train_rate = run.train_rate[genes.of_panel]
    all_genes, set_scores = None, None
    if run.loadings is not None:
        of_all = genes.all, run.loadings[genes.of_all], run.all_train_rate[genes.of_all]
        all_genes = AllGenes(*of_all)
        if gene_sets is not None:
            set_scores = GeneSetScores(gene_sets, *of_all, progress)
    exposure, slides = exposures(run, stores, _test_slides(run, stores, genes.panel), progress)
    truth_scores = None if truth is None else _truth_scores(truth, slides, genes.panel)
    blocks = cut_blocks([slide.infos for slide in slides])
    of_regions = None
    if regions is not None:
        of_regions = region_scores(regions, slides, train_rate, blocks.n_blocks, progress)
    block_of = {
        member: int(block)
        for slide, of_patch in zip(slides, blocks.of_patch, strict=True)
        for member, block in zip(slide.members, of_patch, strict=True)
    }
    write_overview(folder / "overview.h5", stores, run.split, block_of, blocks.um)
    baselines = fit_baselines(stores, genes.panel, run.split, train_rate, progress, exposure)
    models = train_rate, baselines, blocks.n_blocks, slides
    board = Scoreboard(*models, truth_scores, of_regions)

    of_factors = [scores for scores in (all_genes, set_scores) if scores is not None]

    seams, true_seams = (
        SeamAccumulator(len(genes.panel), PATCH_BINS // run.state["grid"]) for _ in range(2)
    )
    n_done = n_left_out = 0
    n_bins = len(run.split.test) * PATCH_BINS**2
    with ThreadPoolExecutor(core_count()) as pool:
        for slide, block_of_patch in zip(slides, blocks.of_patch, strict=True):
            maps_path = folder / MAPS / f"{slide.file_name}.h5"
            placed = slide.infos, block_of_patch
            with write_maps(maps_path, slide.store, genes.panel, *placed, slide.name) as maps:
                field = None
                if all_genes is not None:
                    field = SlideField(folder / FIELDS / f"{slide.file_name}.zarr", run, slide)
                n_left_out += _predict(run, genes, stores, slide, maps, of_factors, field)
                check_left_out(n_left_out, n_bins, str(run.path))
                partners = shuffled_places(len(slide.infos)), shifted_places(slide.infos)
                for place, block in enumerate(block_of_patch.tolist()):
                    at = (place, *(int(places[place]) for places in partners))
                    rates = [_rate_at(maps, slide, p) for p in at]
                    jobs = board.jobs(slide, place, rates, block)
                    for done in [pool.submit(job) for job in jobs]:
                        done.result()
                    n_done += 1
                    progress.step(n_done, len(run.split.test), "patches", slide.store.patient)
                _add_seams(seams, slide, maps.read_rate)
                if truth_scores is not None:
                    _add_seams(true_seams, slide, truth_scores.rate)

    if n_left_out:
        progress.warn(left_out_warning(n_left_out, n_bins, str(run.path)))
    computed = {scale: accumulator.compute() for scale, accumulator in board.models[RUN].items()}
    write_per_gene(folder, genes.panel, computed)
    write_blocks(folder, RunBlocks(genes.panel.ids, board.block_sums()))
    metrics = _metrics(run, slides, blocks, board, baselines.ridge_penalty, seams.compute())
    if truth_scores is not None:
        metrics["seams_of_truth"] = _finite(true_seams.compute())
    metrics |= genes.metrics()
    if exposure is not None:
        metrics["exposure"] = exposure_metrics(exposure, slides, board, blocks)
    metrics["protocol"] = protocol(run, stores, blocks.n_blocks)
    if all_genes is not None:
        metrics |= _write_all_genes(run, folder, all_genes, set_scores)
    if of_regions is not None:
        metrics["regions"] = of_regions.compute()
        write_regions(folder, metrics["regions"])
    metrics["left_out_bins"] = n_left_out
    write_metrics(folder, metrics)
    return metrics


def check_comparable(run_paths: Sequence[Path]) -> None:
    """Raise `ConfigError` unless all runs predict the same genes in the same test patches.

    This check comes before hours of work; `compare_runs` also compares the counts.
    """
    if len({path.resolve() for path in run_paths}) < len(run_paths):
        raise ConfigError("runs: expected each once; leave out the one that is given twice")
    seen: tuple[Path, Panel, list[tuple[str, int, int]]] | None = None
    for path in run_paths:
        run = load_run(path, "cpu")
        stores = _open_stores(run)
        panel = MeasuredGenes.on(run.genes, _test_stores(run, stores)).panel
        slides = _test_slides(run, stores, panel)
        places = sorted(
            (str(slide.store.manifest["slide"]), info.row0, info.col0)
            for slide in slides
            for info in slide.infos
        )
        if seen is None:
            seen = path, panel, places
            continue
        check_same_panel(seen[0], seen[1].ids, path, panel.ids)
        if places != seen[2]:
            raise other_patches(seen[0], path)


def _open_stores(run: Run) -> list[Store]:
    stores = [open_store(path) for path in run.config.stores]
    for store in stores:
        run.check_store(store)
    run.split.check_stores(stores)
    check_different_slides(stores)  # runs of older versions may hold a slide twice
    return stores


def _test_stores(run: Run, stores: Sequence[Store]) -> list[Store]:
    return [stores[i] for i in sorted({member.store for member in run.split.test})]


def _test_slides(run: Run, stores: Sequence[Store], panel: Panel) -> list[Slide]:
    names, slides = slide_names(stores), []
    files = file_names(names)
    for i in sorted({member.store for member in run.split.test}):
        store = stores[i]
        members = [member for member in run.split.test if member.store == i]
        infos = [store.patch_table[member.patch] for member in members]
        slides.append(Slide(names[i], files[i], store, members, infos, panel.indices(store)))
    return slides


def _truth_scores(truth: Path, slides: Sequence[Slide], panel: Panel) -> TruthScores:
    if len(slides) > 1:
        raise ConfigError(
            f"{truth}: expected one test slide for one truth; the test patient has {len(slides)}; "
            f"leave out --truth"
        )
    return TruthScores(truth, slides[0].store, panel)


def _predict(
    run: Run,
    genes: MeasuredGenes,
    stores: Sequence[Store],
    slide: Slide,
    maps: SlideMaps,
    of_factors: Sequence[AllGenes | GeneSetScores],
    field: SlideField | None,
) -> int:
    """Predict every patch and write rates of the measured panel to the maps, to score them.

    What is scored from factors (``of_factors``: all genes, and gene sets) is scored here, since
    their rates are never written; the factors are, to the field.

    Returns:
        The number of bins left out.
    """
    n_left_out = 0
    places = None if run.loadings is None else genes.all.indices(slide.store)
    dataset = PatchDataset(stores, genes.panel, wants_image=True)
    predicted = run.predict_maps([slide.store[member.patch] for member in slide.members])
    for batch in dataset.batches(slide.members, batch_size=8):
        assert batch.image is not None
        for i, member in enumerate(batch.members):
            info = slide.store.patch_table[member.patch]
            found, image, tissue = next(predicted), batch.image[i], batch.tissue_mask[i]
            rates = found if run.loadings is None else run.rates_of(found[None])[0]
            rates = rates[genes.of_panel]
            maps.write(info, rates, batch.counts[i], tissue, image)
            if run.loadings is not None:
                assert field is not None
                assert places is not None
                counts = slide.store[member.patch].panel_counts(places)
                of_patch = None if slide.exposure is None else slide.exposure.of_patch(info)
                for scores in of_factors:
                    scores.add(counts, tissue, found, of_patch)
                field.add(info, found, tissue, image)
            n_left_out += int(left_out(rates).sum())
    for scores in of_factors:
        scores.finish_slide()
    if field is not None:
        field.finish(n_left_out)
    return n_left_out


def _write_all_genes(
    run: Run, folder: Path, all_genes: AllGenes, set_scores: GeneSetScores | None
) -> dict[str, Any]:
    """Write the tables of all genes, factors and gene sets; their entries of ``metrics.json``."""
    assert run.loadings is not None
    table, genes = all_genes.table(), run.genes.all
    write_all_genes(folder, table.among(genes))
    write_factors(folder, genes, run.loadings, all_genes.mean_factors)
    entries = {"all_genes": summary(table, run.loadings.shape[1], len(genes))}
    return (
        entries if set_scores is None else entries | {"gene_sets": set_scores.write(folder, table)}
    )


def _rate_at(maps: SlideMaps, slide: Slide, place: int) -> Float32Array | None:
    """Prediction of a partner patch, (G, 128, 128); None if there is no partner."""
    return None if place == NOBODY else maps.read_rate(slide.infos[place])


def _add_seams(
    seams: SeamAccumulator, slide: Slide, rate_of: Callable[[PatchInfo], Float32Array]
) -> None:
    """Add a slide's predicted or true rates, with the borders of patches that lie side by side."""
    places = {(info.row0, info.col0): place for place, info in enumerate(slide.infos)}

    def patch(place: int) -> tuple[Float32Array, BoolArray]:
        rate = rate_of(slide.infos[place])
        return rate, slide.store[slide.members[place].patch].tissue_mask & ~left_out(rate)

    for (row0, col0), place in places.items():
        this = patch(place)
        seams.update(*this)
        for is_below in (False, True):
            beside = (row0 + PATCH_BINS * is_below, col0 + PATCH_BINS * (not is_below))
            if beside in places:
                seams.update_border(*this, *patch(places[beside]), is_below=is_below)


def _metrics(
    run: Run,
    slides: Sequence[Slide],
    blocks: Blocks,
    board: Scoreboard,
    ridge_penalty: float,
    seams: Seams,
) -> dict[str, Any]:
    """Content of ``metrics.json``, as described in docs/metrics.md, "Files"."""
    tissue_bins = {slide.name: slide.store.manifest["tissue_bins"]["slide"] for slide in slides}
    all_tissue = sum(tissue_bins.values())
    of_models = {
        name: scale_scores(models, all_tissue, is_baseline=name != RUN)
        for name, models in board.models.items()
    }
    sums = board.block_sums()
    metrics: dict[str, Any] = {
        "format": METRICS_FORMAT,
        "test_patients": sorted({slide.store.patient for slide in slides}),
        "n_patches": len(run.split.test),
        "n_genes": len(slides[0].genes),
        "loss": run.config.loss,
        "decoder": run.config.decoder,
        "epoch": run.state["epoch"],
        "encoder": run.state["encoder"],
        "bootstrap": {"block_um": blocks.um, "n_blocks": blocks.n_blocks, "draws": DRAWS},
        "scales": of_models.pop(RUN),
        "baselines": of_models,
        "oracles": list(ORACLES),
        "ridge_penalty": ridge_penalty,
        "seams": _finite(seams),
        "differences": {name: differences(sums[RUN], sums[name]) for name in BASELINES},
    }
    if board.slides:
        metrics["slides"] = {
            name: scale_scores(accumulators, tissue_bins[name])
            for name, accumulators in board.slides.items()
        }
    if board.truth is not None:
        metrics["truth"] = board.truth.compute()
    return metrics


def _finite(seams: Seams) -> dict[str, float | None]:
    return {k: v if math.isfinite(v) else None for k, v in asdict(seams).items()}
