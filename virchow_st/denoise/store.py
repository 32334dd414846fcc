"""Denoises the slide of a store, from its counts and the H&E of a run, and writes its field."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.config import DenoiseConfig
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.fit import Rates
from virchow_st.denoise.prior import Prior
from virchow_st.denoise.provenance import about_errors, provenance
from virchow_st.denoise.score import score_slide
from virchow_st.denoise.slide import LEAST_UMIS, SlideCounts, read_slide
from virchow_st.denoise.sources import source_maps
from virchow_st.denoise.table import write_table
from virchow_st.denoise.uncertainty import rate_errors
from virchow_st.errors import ConfigError
from virchow_st.field.loadings import Loadings
from virchow_st.field.write import Block, SourceBlock, write_field
from virchow_st.output.export.sources import PX_PER_BIN, StoreSource, homography
from virchow_st.output.export.tables import check_format
from virchow_st.runtime.atomic import check_absent, remove
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.reader import Store, open_store
from virchow_st.types import (
    BIN_UM,
    BLOCK_BINS,
    PATCH_BINS,
    BoolArray,
    Float32Array,
    UInt8Array,
)


@dataclass(frozen=True)
class Denoised:
    """Outcome of `denoise_store`.

    Attributes:
        path: The field; None if none was asked for.
        n_genes: Number of genes in it.
        n_factors: Number of factors; 0 without a field.
        width_um: Final standard deviation of the Gaussian, µm; 0 without a field.
        scores: Scores on held-out UMIs, see docs/denoise.md; None if none were asked for.
    """

    path: Path | None
    n_genes: int
    n_factors: int
    width_um: float
    scores: dict[str, Any] | None


def denoise_store(
    path: Path | str,
    out: Path | None,
    config: DenoiseConfig | None = None,
    score: bool = False,
    progress: Progress = SILENT,
    *,
    run: Path | str | None = None,
    failed: Path | None = None,
    h5ad: Path | None = None,
) -> Denoised:
    """Estimate the rates of a measured slide at 2 µm from its counts, and write them as a field.

    The counts are described by factors, which all genes share: loadings from a Poisson
    factorisation at 16 µm, and the factors of each 2 µm bin by EM with smoothing
    (`virchow_st.denoise.ems`). With a run of other patients, what it predicts from the H&E image is
    a prior of the factors (`virchow_st.denoise.prior`). Rows and columns without counts are found
    and filled (`virchow_st.denoise.failed`).

    Args:
        path: A finished store.
        out: Folder of the field, NAME.zarr, written completely or not at all; None for none.
        config: Options; the defaults if None.
        score: Score the method on this slide: one half of the UMIs is denoised and compared with
            the other half, beside simpler ways.
        progress: Receives notes and step counts.
        run: Run whose predictions are the prior; trained on other patients, with the encoder of
            the store. None for the counts alone.
        failed: Image that marks failed bins, see `virchow_st.denoise.failed.read_mask`.
        h5ad: AnnData file of denoised 8 µm bins, with the counts in a layer; None for none.

    Raises:
        ConfigError: ``out`` is there already or being written, nothing is asked for, the store
            has too few counts, the run was trained on the store's patient or slide or with another
            encoder, or the mask does not fit.
        StoreError: The store is missing, unfinished or damaged.

    Example:
        >>> done = denoise_store("P1.vst", Path("P1.zarr"))  # doctest: +SKIP
        >>> open_field(done.path).gene("PIGR").shape  # doctest: +SKIP
        (3328, 3328)
    """
    config = config or DenoiseConfig()
    if out is None and h5ad is None and not score:
        raise ConfigError("--out: expected a field to write, or --score; got neither; give one")
    for path_out in (out, h5ad):
        if path_out is not None:
            check_absent(path_out)
    if h5ad is not None:
        check_format("h5ad")
    store = open_store(path)
    if run is not None and config.leave_blocks_out:
        raise ConfigError("run: expected either a run or leave_blocks_out; got both; give one")
    trained = None
    if run is not None:
        from virchow_st.denoise.run_prior import load_other  # torch is loaded with a run only

        trained = load_other(run, store)
    slide = read_slide(store, progress, failed)
    if config.factors > len(slide.panel):
        raise ConfigError(
            f"factors: expected at most {len(slide.panel)}, the genes of {store.path} with "
            f"{LEAST_UMIS} UMIs or more; got {config.factors}"
        )
    prior = None
    if trained is not None:
        from virchow_st.denoise.run_prior import predict_prior

        prior = predict_prior([trained], store, slide, np.zeros(len(store), np.int64), progress)
    if not config.leave_blocks_out:
        return _denoise(store, slide, prior, config, out, h5ad, score, progress)
    from virchow_st.denoise.folds import train_folds

    folder = _folder(out or h5ad)
    try:
        prior = train_folds(store, slide, config, folder, progress)
        done = _denoise(store, slide, prior, config, out, h5ad, score, progress)
    finally:
        if out is None and h5ad is None:
            remove(folder)
    remove(folder)
    return done


def _folder(out: Path | None) -> Path:
    """Where the runs of folds are until the output is whole."""
    if out is None:
        return Path(tempfile.mkdtemp(prefix="vst-folds-"))
    return out.with_name(out.name + ".folds")


def _denoise(
    store: Store,
    slide: SlideCounts,
    prior: Prior | None,
    config: DenoiseConfig,
    out: Path | None,
    h5ad: Path | None,
    score: bool,
    progress: Progress,
) -> Denoised:
    scores = score_slide(slide, config.factors, config.seed, progress, prior) if score else None
    if out is None and h5ad is None:
        return Denoised(None, len(slide.panel), 0, 0.0, scores)
    found = estimate(slide, config.factors, config.seed, progress, prior)
    recipe = found.recipe
    if h5ad is not None:
        about = provenance(store, slide, found, config, scores)
        write_table(h5ad, slide, found.rates, store.path.stem, about)
    if out is None:
        return Denoised(None, len(slide.panel), recipe.n_factors, recipe.width_um, scores)
    errors, widening = rate_errors(slide, found, prior, config.seed, progress)
    source, covered = StoreSource(store, ""), _covered(store, slide)
    corner_um = float(BIN_UM * slide.corner[1]), float(BIN_UM * slide.corner[0])
    write_field(
        out,
        _blocks(slide, found.rates.factors, found.rates.filled, covered),
        Loadings(slide.panel, found.rates.loadings.astype(np.float32)),
        slide.tissue,
        provenance(store, slide, found, config, scores) | about_errors(found, prior, widening),
        picture=(_picture(source), BIN_UM / PX_PER_BIN),
        corner_um=corner_um,
        um_to_px=homography(source).um_to_px(*slide.corner, *slide.tissue.shape)[0],
        failed=_failed(slide) if len(slide.unseen) else None,
        sources=_source_blocks(slide, found.rates, covered),
        errors=errors,
    )
    return Denoised(out, len(slide.panel), recipe.n_factors, recipe.width_um, scores)


def _failed(slide: SlideCounts) -> BoolArray:
    """(R, C) bool, the tissue bins that were filled."""
    failed = np.zeros_like(slide.tissue)
    failed.ravel()[slide.unseen] = True
    return failed


def _covered(store: Store, slide: SlideCounts) -> BoolArray:
    """(R, C) bool, the bins of the patches."""
    covered = np.zeros_like(slide.tissue)
    for info in store.patch_table:
        row, col = info.row0 - slide.corner[0], info.col0 - slide.corner[1]
        covered[row : row + PATCH_BINS, col : col + PATCH_BINS] = True
    return covered


def _blocks(
    slide: SlideCounts, observed: Float32Array, filled: Float32Array, covered: BoolArray
) -> Iterator[Block]:
    """Values of observed bins (n, K) and filled ones (m, K) by block.

    They are 0 beside the tissue of a patch, NaN where there is no patch.
    """
    number = np.full(slide.tissue.shape, -1, np.int64)
    n = len(slide.place)
    number.ravel()[slide.place] = np.arange(n)
    number.ravel()[slide.unseen] = np.arange(n, n + len(slide.unseen))
    for row in range(0, covered.shape[0], BLOCK_BINS):
        for col in range(0, covered.shape[1], BLOCK_BINS):
            at = slice(row, row + BLOCK_BINS), slice(col, col + BLOCK_BINS)
            if not covered[at].any():
                continue
            maps = np.full((observed.shape[1], *covered[at].shape), np.nan, np.float32)
            maps[:, covered[at]] = 0
            of = number[at]
            is_seen, is_filled = (of >= 0) & (of < n), of >= n
            maps[:, is_seen] = observed[of[is_seen]].T
            maps[:, is_filled] = filled[of[is_filled] - n].T
            yield row, col, maps


def _source_blocks(
    slide: SlideCounts, found: Rates, covered: BoolArray
) -> Iterator[SourceBlock] | None:
    if found.sources is None:
        return None
    columns = found.sources.columns, found.sources.filled
    blocks = _blocks(slide, *columns, covered)
    return ((row, col, *source_maps(maps)) for row, col, maps in blocks)


def _picture(source: StoreSource) -> UInt8Array:
    """The stored H&E of all patches at 1 µm/px, (2R, 2C, 3) uint8, white elsewhere."""
    n_rows, n_cols = source.tissue_mask.shape
    picture = np.empty((PX_PER_BIN * n_rows, PX_PER_BIN * n_cols, 3), np.uint8)
    for row in range(0, n_rows, PATCH_BINS):
        band = source.read_image(slice(row, row + PATCH_BINS))
        picture[PX_PER_BIN * row : PX_PER_BIN * row + len(band)] = band
    return picture
