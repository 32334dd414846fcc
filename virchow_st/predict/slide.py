"""Whole-slide prediction from an image file to rates on disk, in one function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from virchow_st.config import PredictConfig, to_toml
from virchow_st.errors import ConfigError
from virchow_st.field.bins import LEVELS
from virchow_st.field.he_image import CHUNK_PX, Picture, add_picture
from virchow_st.field.ngff import FLAVOURS, Folder
from virchow_st.field.read import open_field
from virchow_st.models.encoders.base import Encoder
from virchow_st.output.export.convert import convert
from virchow_st.output.export.field import write_genes
from virchow_st.output.export.tables import check_format
from virchow_st.predict.factors import maps_of, panel_of_all
from virchow_st.predict.image import (
    OVERVIEW_LEVEL,
    check_tissue,
    grid_shape,
    named,
    on_cells,
    open_encoder,
    picture_factor,
    predict_patches,
)
from virchow_st.predict.lattice import covered, lay_over
from virchow_st.predict.load import Run, load_run
from virchow_st.predict.rates import RateImages
from virchow_st.predict.stitch import Stitcher
from virchow_st.predict.trained_on import check_not_trained_on
from virchow_st.run.panel import Panel
from virchow_st.runtime.atomic import check_absent, new_output, remove, written_whole
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.runtime.software import versions
from virchow_st.slide.choice import ORIENTATIONS
from virchow_st.slide.image import SlideImage
from virchow_st.slide.mpp import describe_mpp, mpp_warning, slide_mpp
from virchow_st.slide.patches import PatchTable
from virchow_st.slide.tissue import Tissue, find_tissue
from virchow_st.store.genes import same_ids
from virchow_st.types import BIN_UM, CELL_BINS

FORMAT = "virchow_st.prediction/1"
_NOT_OF_THE_RATES = ("device", "weights", "keep_paths")
_ENDINGS = (".ome.zarr", ".zarr", ".h5ad", ".npz")
_SOFTWARE = ("virchow_st", "numpy", "opencv-python-headless", "torch", "timm", "zarr")


@dataclass(frozen=True)
class Prediction:
    """Outcome of `predict_slide`: the result, the picture of the tissue, and a few numbers."""

    path: Path
    picture: Path
    n_patches: int
    covered: float
    most_open_blocks: int


def predict_slide(
    run_paths: Sequence[Path],
    image_path: Path,
    out: Path,
    config: PredictConfig,
    progress: Progress = SILENT,
) -> Prediction:
    """Predict the rates of an H&E slide that has no counts.

    Args:
        run_paths: one run, or several of the same encoder and panel, for their mean and spread.
        image_path: the slide image.
        out: what to write; it is written completely or not at all.
        config: options.
        progress: receives notes, warnings and step counts.

    Raises:
        ConfigError, SlideError: a run, its encoder's weights, or the image is missing, damaged or
            does not fit; a run is given twice, or one of several was trained on the slide; no µm
            per pixel; no tissue; rates that are NaN, infinite, or impossible in more than 1 % of
            the bins; or ``out`` is there already.
    """
    check_absent(out)
    check_format(config.format)
    runs = [load_run(path, config.device) for path in run_paths]
    _check_alike(runs)
    panel = panel_of_all(runs)
    given, loadings = maps_of(runs)
    if len(loadings.genes) < len(runs[0].genes.all):
        progress.note(f"{len(loadings.genes):,} genes are predicted by all runs")
    with SlideImage.open(image_path) as image:
        check_not_trained_on(runs, image, progress)
        places = image.choice.mpp_places
        mpp = slide_mpp(image_path, places, config.mpp)
        for warning in (*image.choice.warnings, *_remarks(image, config.mpp)):
            progress.warn(f"{image_path}: {warning}")
        encoder = open_encoder(runs[0], config.weights, config.device)
        if encoder.licence:
            progress.warn(f"{encoder.name}: {encoder.licence}")
        progress.note(
            f"{image_path}: {image.describe()}; {mpp:.4g} µm/px {describe_mpp(places, config.mpp)}"
        )
        picture = tissue_picture(out)
        with new_output(out) as aside, _restored_on_failure(picture):
            flavour = config.format if config.format in FLAVOURS else FLAVOURS[0]
            zarr_path = aside / "zarr"
            to_px = np.array([[1 / mpp, 0, 0], [0, 1 / mpp, 0]])
            folder = Folder(zarr_path, flavour, {}, um_to_px=to_px)
            pyramid = write_picture(folder, image, mpp)
            overview, um_per_px = pyramid.read(OVERVIEW_LEVEL)
            tissue = find_tissue(overview, um_per_px, str(image_path))
            shape = grid_shape(image, mpp, 1 << (LEVELS - 1))
            cells = on_cells(tissue.mask, um_per_px, shape)
            patches = lay_over(cells, config.min_tissue, config.overlap_um // BIN_UM)
            _draw(picture, pyramid, tissue, patches)
            check_tissue(image, mpp, patches, cells, image_path)
            share = covered(cells, patches)
            progress.note(
                f"{cells.mean():.1%} of the slide is tissue, {share:.1%} of that in "
                f"{len(patches)} patches: see {picture}; a lower --min-tissue takes in more"
            )
            folder.add_labels("tissue", cells.shape, BIN_UM * CELL_BINS)[:] = cells
            written = RateImages(folder, loadings, len(runs), shape)
            stitcher = Stitcher(patches, config.overlap_um // BIN_UM, shape, written.write)
            predict_patches(given, encoder, image, mpp, patches, stitcher, progress)
            for warning in image.read_warnings():
                progress.warn(warning)
            written.finish(
                _provenance(runs, encoder, image, mpp, config, tissue, patches, share)
                | {"left_out_bins": stitcher.n_left_out}
            )
            if not loadings.is_direct and config.format not in FLAVOURS:
                zarr_path = _panel_alone(zarr_path, aside / "panel", panel, progress)
            convert(zarr_path, aside / "result", config.format, panel, pyramid, image.path.name)
    return Prediction(out, picture, len(patches), share, stitcher.most_open)


def _remarks(image: SlideImage, given_mpp: float) -> list[str]:
    """Lines about what the file says and the prediction does not follow."""
    remarks = []
    if (mpp := mpp_warning(image.choice.mpp_places, given_mpp)) is not None:
        remarks.append(mpp)
    if (tag := image.choice.orientation) != 1:
        remarks.append(
            f"its Orientation tag asks for the picture {ORIENTATIONS[tag]}; it is read as stored, "
            "and the coordinates of the prediction are those of the stored pixels"
        )
    return remarks


def _panel_alone(path: Path, out: Path, panel: Panel, progress: Progress) -> Path:
    """A folder with the rates of the panel, out of a field by factors."""
    field = open_field(path)
    write_genes(field, panel, out, FLAVOURS[0], field.provenance, progress)
    return out


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if any(run.state[key] != first.state[key] for key in ("encoder", "grid", "dim")):
            raise ConfigError(
                f"{run.path}: expected a run on tokens of {named(first.state['encoder'])}, as "
                f"{first.path}; got {named(run.state['encoder'])}; give runs of one encoder"
            )
        if (run.loadings is None) != (first.loadings is None):
            kinds = [
                f"{'genes directly' if r.loadings is None else 'factors'}" for r in (first, run)
            ]
            raise ConfigError(
                f"{run.path}: expected a run that predicts {kinds[0]}, as {first.path}; got one "
                f"that predicts {kinds[1]}; give runs of one kind"
            )
        if first.loadings is None and not same_ids(run.panel.ids, first.panel.ids):
            raise ConfigError(
                f"{run.path}: expected the genes of {first.path} in their order; got others; give "
                "runs with one --panel file"
            )
    for i, run in enumerate(runs):
        for other in runs[:i]:
            if (run.config, run.split, run.state) == (other.config, other.split, other.state):
                raise ConfigError(
                    f"{run.path}: is the same run as {other.path}; their spread would be 0; give "
                    "runs of other folds or seeds"
                )


def _draw(path: Path, pyramid: Picture, tissue: Tissue, patches: PatchTable) -> None:
    from virchow_st.output.figures.tissue_check import LONGEST_PX, draw_tissue

    rgb, um_per_px = pyramid.read_small(LONGEST_PX)
    corners_um = BIN_UM * np.stack([patches.row0, patches.col0], axis=1)
    draw_tissue(path, rgb, um_per_px, tissue.mask, tissue.histogram, tissue.threshold, corners_um)


def _provenance(
    runs: Sequence[Run],
    encoder: Encoder,
    image: SlideImage,
    mpp: float,
    config: PredictConfig,
    tissue: Tissue,
    patches: PatchTable,
    share: float,
) -> dict[str, Any]:
    panel = runs[0].panel  # of factors, the table of loadings lists every gene
    return {
        "format": FORMAT,
        "unit": "expected UMIs a bin",
        "runs": [
            {
                "path": str(run.path) if config.keep_paths else run.path.resolve().name,
                "config": xxhash.xxh64(to_toml(run.config).encode()).hexdigest(),
                "decoder": run.config.decoder,
                "epoch": run.state["epoch"],
            }
            for run in runs
        ],
        "genes": {"id": list(panel.ids), "symbol": list(panel.symbols)},
        "encoder": runs[0].state["encoder"],
        "licence": encoder.licence,
        "image": {
            "name": image.path.name,
            "fingerprint": image.fingerprint(),
            "size_px": [image.width, image.height],
            "mpp": mpp,
            **image.provenance(),
        },
        "tissue": {"saturation_threshold": tissue.threshold, "covered": share},
        "n_patches": len(patches),
        "options": {k: v for k, v in asdict(config).items() if k not in _NOT_OF_THE_RATES},
        "software": versions(_SOFTWARE),
    }


def tissue_picture(out: Path) -> Path:
    """Where the picture of the tissue goes: beside ``out``, by its whole name but the format.

    >>> tissue_picture(Path("CRC.P1.zarr")).name
    'CRC.P1_tissue.png'
    """
    endings = (ending for ending in _ENDINGS if out.name.endswith(ending) and out.name != ending)
    return out.with_name(f"{out.name.removesuffix(next(endings, ''))}_tissue.png")


@contextmanager
def _restored_on_failure(picture: Path) -> Iterator[None]:
    """Leave the picture as it was found, mostly absent, where the job fails.

    One that was there is another result's: the same slide predicted in another format, say.
    """
    before = picture.read_bytes() if picture.is_file() else None
    try:
        yield
    except BaseException:
        if before is None:
            remove(picture)
        elif picture.read_bytes() != before:
            with written_whole(picture) as aside:
                aside.write_bytes(before)
        raise


def write_picture(folder: Folder, image: SlideImage, mpp: float) -> Picture:
    """Write ``images/he`` in bands, then each coarser level from the one before.

    Args:
        folder: the Zarr folder to write to.
        image: the slide.
        mpp: µm per pixel of the slide.

    Raises:
        SlideError: the image file is damaged.
    """
    factor = picture_factor(image, mpp)
    width, height = -(-image.width // factor), -(-image.height // factor)
    picture = add_picture(folder, height, width, factor * mpp, OVERVIEW_LEVEL + 1)
    for top in range(0, height, CHUNK_PX):
        rows = min(CHUNK_PX, height - top)
        rgb, _, _ = image.read_region(0, top * factor, image.width, rows * factor, factor)
        picture.write(top, rgb)
    picture.fill_coarser()
    return picture
