"""Denoises the slide of a store, from its counts alone, and writes its rate field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.config import DenoiseConfig
from virchow_st.denoise.estimate import Estimate, estimate
from virchow_st.denoise.score import score_slide
from virchow_st.denoise.slide import LEAST_UMIS, SlideCounts, read_slide
from virchow_st.errors import ConfigError
from virchow_st.field.loadings import Loadings
from virchow_st.field.write import Block, write_field
from virchow_st.output.export.sources import PX_PER_BIN, StoreSource, homography
from virchow_st.runtime.atomic import check_absent
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.runtime.software import versions
from virchow_st.store.reader import Store, open_store
from virchow_st.types import BIN_UM, BLOCK_BINS, PATCH_BINS, BoolArray, UInt8Array

FORMAT = "virchow_st.denoised/1"
_SOFTWARE = ("virchow_st", "numpy", "scipy", "numba", "opencv-python-headless", "zarr")


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
) -> Denoised:
    """Estimate the rates of a measured slide at 2 µm from its counts, and write them as a field.

    The counts are described by factors, which all genes share: loadings from a Poisson
    factorisation at 16 µm, and the factors of each 2 µm bin by EM with smoothing
    (`virchow_st.denoise.ems`). The H&E image is not used.

    Args:
        path: A finished store.
        out: Folder of the field, NAME.zarr, written completely or not at all; None for none.
        config: Options; the defaults if None.
        score: Score the method on this slide: one half of the UMIs is denoised and compared with
            the other half, beside simpler ways.
        progress: Receives notes and step counts.

    Raises:
        ConfigError: ``out`` is there already or being written, nothing is asked for, or the store
            has too few counts.
        StoreError: The store is missing, unfinished or damaged.

    Example:
        >>> done = denoise_store("P1.vst", Path("P1.zarr"))  # doctest: +SKIP
        >>> open_field(done.path).gene("PIGR").shape  # doctest: +SKIP
        (3328, 3328)
    """
    config = config or DenoiseConfig()
    if out is None and not score:
        raise ConfigError("--out: expected a field to write, or --score; got neither; give one")
    if out is not None:
        check_absent(out)
    store = open_store(path)
    slide = read_slide(store, progress)
    if config.factors > len(slide.panel):
        raise ConfigError(
            f"factors: expected at most {len(slide.panel)}, the genes of {store.path} with "
            f"{LEAST_UMIS} UMIs or more; got {config.factors}"
        )
    scores = score_slide(slide, config.factors, config.seed, progress) if score else None
    if out is None:
        return Denoised(None, len(slide.panel), 0, 0.0, scores)
    found = estimate(slide, config.factors, config.seed, progress)
    source = StoreSource(store, "")
    corner_um = float(BIN_UM * slide.corner[1]), float(BIN_UM * slide.corner[0])
    write_field(
        out,
        _blocks(slide, found, _covered(store, slide)),
        Loadings(slide.panel, found.loadings.astype(np.float32)),
        slide.tissue,
        _provenance(store, slide, found, config, scores),
        picture=(_picture(source), BIN_UM / PX_PER_BIN),
        corner_um=corner_um,
        um_to_px=homography(source).um_to_px(*slide.corner, *slide.tissue.shape)[0],
    )
    return Denoised(out, len(slide.panel), found.n_factors, found.width_um, scores)


def _covered(store: Store, slide: SlideCounts) -> BoolArray:
    """(R, C) bool, the bins of the patches."""
    covered = np.zeros_like(slide.tissue)
    for info in store.patch_table:
        row, col = info.row0 - slide.corner[0], info.col0 - slide.corner[1]
        covered[row : row + PATCH_BINS, col : col + PATCH_BINS] = True
    return covered


def _blocks(slide: SlideCounts, found: Estimate, covered: BoolArray) -> Iterator[Block]:
    """Factors by block: 0 beside the tissue of a patch, NaN where there is no patch."""
    number = np.full(slide.tissue.shape, -1, np.int64)
    number.ravel()[slide.place] = np.arange(len(slide.place))
    for row in range(0, covered.shape[0], BLOCK_BINS):
        for col in range(0, covered.shape[1], BLOCK_BINS):
            at = slice(row, row + BLOCK_BINS), slice(col, col + BLOCK_BINS)
            if not covered[at].any():
                continue
            maps = np.full((found.factors.shape[1], *covered[at].shape), np.nan, np.float32)
            maps[:, covered[at]] = 0
            inside = number[at] >= 0
            maps[:, inside] = found.factors[number[at][inside]].T
            yield row, col, maps


def _picture(source: StoreSource) -> UInt8Array:
    """The stored H&E of all patches at 1 µm/px, (2R, 2C, 3) uint8, white elsewhere."""
    n_rows, n_cols = source.tissue_mask.shape
    picture = np.empty((PX_PER_BIN * n_rows, PX_PER_BIN * n_cols, 3), np.uint8)
    for row in range(0, n_rows, PATCH_BINS):
        band = source.read_image(slice(row, row + PATCH_BINS))
        picture[PX_PER_BIN * row : PX_PER_BIN * row + len(band)] = band
    return picture


def _provenance(
    store: Store,
    slide: SlideCounts,
    found: Estimate,
    config: DenoiseConfig,
    scores: dict[str, Any] | None,
) -> dict[str, Any]:
    manifest = store.manifest
    return {
        "format": FORMAT,
        "source": "counts",
        "store": store.path.resolve().name,
        "patient": manifest["patient"],
        "slide": manifest["slide"],
        "records_xxh64": manifest["records_xxh64"],
        "homography": manifest["homography"],
        "n_patches": len(store),
        "n_tissue_bins": len(slide.place),
        "n_umis": int(slide.rows.count.sum(dtype=np.float64)),
        "genes": {"id": list(slide.panel.ids), "symbol": list(slide.panel.symbols)},
        "least_umis": LEAST_UMIS,
        "n_factors": found.n_factors,
        "width_um": found.width_um,
        "own_genes": [
            {
                "id": slide.panel.ids[ratio.gene],
                "width_um": ratio.width_um,
                "prior_umis": ratio.prior_umis,
                "gain": ratio.gain,
            }
            for ratio in found.own
        ],
        "held_out_gain": {f"{width:g}": gain for width, gain in found.held_out.items()},
        "scores": scores,
        "options": asdict(config),
        "software": versions(_SOFTWARE),
    }
