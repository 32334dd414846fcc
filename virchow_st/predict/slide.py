"""Whole-slide prediction from an image file to rates on disk, in one function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from virchow_st.config import PredictConfig
from virchow_st.field.bins import LEVELS
from virchow_st.field.he_image import CHUNK_PX, Picture, add_picture
from virchow_st.field.ngff import FLAVOURS, Folder
from virchow_st.field.read import open_field
from virchow_st.metrics.appearance import MOST_PATCHES, appearance, matching_factors
from virchow_st.models.encoders.stain import STAINS, UNMIX
from virchow_st.output.export.convert import convert
from virchow_st.output.export.field import write_genes
from virchow_st.output.export.tables import check_format
from virchow_st.predict.features import (
    PatchFeatures,
    check_replaceable,
    features_file,
    made_by,
    mean_rates,
    write_features,
)
from virchow_st.predict.image import (
    OVERVIEW_LEVEL,
    check_tissue,
    grid_shape,
    on_cells,
    picture_factor,
    predict_patches,
    scaling,
    tissue_on,
)
from virchow_st.predict.journal import RESULT, ZARR, Journal
from virchow_st.predict.lattice import covered, lay_over
from virchow_st.predict.provenance import fingerprint, provenance
from virchow_st.predict.quality import SlideQuality, slide_quality
from virchow_st.predict.rates import RateImages
from virchow_st.predict.runs import LoadedRuns, load_runs
from virchow_st.predict.trained_on import check_not_trained_on
from virchow_st.run.panel import Panel
from virchow_st.runtime.atomic import check_absent, new_output, remove, written_whole
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.slide.choice import ORIENTATIONS
from virchow_st.slide.image import SlideImage
from virchow_st.slide.mpp import describe_mpp, mpp_warning, slide_mpp
from virchow_st.slide.patches import PatchTable
from virchow_st.slide.restain import Restain
from virchow_st.slide.sample import sample_patches
from virchow_st.slide.tissue import Tissue, find_tissue
from virchow_st.store.format import as_stored
from virchow_st.types import BIN_UM, CELL_BINS

_ENDINGS = (".ome.zarr", ".zarr", ".h5ad", ".npz")


@dataclass(frozen=True)
class Prediction:
    """Outcome of `predict_slide`: the result, the picture of the tissue, and a few numbers."""

    path: Path
    picture: Path
    n_patches: int
    covered: float
    quality: SlideQuality
    most_open_blocks: int


def predict_slide(
    run_paths: Sequence[Path],
    image_path: Path,
    out: Path,
    config: PredictConfig,
    progress: Progress = SILENT,
    loaded: LoadedRuns | None = None,
) -> Prediction:
    """Predict the rates of an H&E slide that has no counts.

    A prediction that was killed or stopped leaves ``.NAME.part`` beside ``out``; the same call goes
    on there, and the result has the same bytes.

    Args:
        run_paths: one run, or several of the same encoder and panel, for their mean and spread.
        image_path: the slide image.
        out: what to write; it is written completely or not at all.
        config: options.
        progress: receives notes, warnings and step counts.
        loaded: the runs of ``run_paths``, to be shared by several slides; loaded if None.

    Raises:
        ConfigError, SlideError: a run, its encoder's weights, or the image is missing, damaged or
            does not fit; a run is given twice, or one of several was trained on the slide; no µm
            per pixel; no tissue; rates that are NaN, infinite, or impossible in more than 1 % of
            the bins; or ``out`` is there already.
    """
    check_absent(out)
    check_format(config.format)
    loaded = loaded or load_runs(run_paths, config, progress)
    runs, loadings = loaded.runs, loaded.loadings
    with SlideImage.open(image_path) as image:
        check_not_trained_on(runs, image, progress)
        if config.features:
            vectors_to = features_file(Path(config.features), image_path)
            check_replaceable(vectors_to, image.fingerprint())
        places = image.choice.mpp_places
        mpp = slide_mpp(image_path, places, config.mpp)
        for warning in (*image.choice.warnings, *_remarks(image, config.mpp)):
            progress.warn(f"{image_path}: {warning}")
        encoder = loaded.with_encoder(config, progress)
        progress.note(
            f"{image_path}: {image.describe()}; {mpp:.4g} µm/px {describe_mpp(places, config.mpp)}"
        )
        picture = tissue_picture(out)
        with new_output(out, goes_on=True) as aside, _restored_on_failure(picture):
            made_from = fingerprint(runs, encoder, image, mpp, config)
            journal = Journal(aside, made_from, out, progress)
            flavour = config.format if config.format in FLAVOURS else FLAVOURS[0]
            zarr_path = aside / ZARR
            to_px = np.array([[1 / mpp, 0, 0], [0, 1 / mpp, 0]])
            folder = Folder(zarr_path, flavour, {}, um_to_px=to_px)
            pyramid = write_picture(folder, image, mpp, journal)
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
            images, masks = sample_patches(
                image, scaling(mpp), patches, tissue_on(cells), MOST_PATCHES
            )
            look = appearance([as_stored(i) for i in images], masks, UNMIX[:, :2])
            quality = slide_quality(look, cells, overview, um_per_px, tissue.mask, loaded.training)
            progress.note(f"{image_path}: {quality.describe()}")
            restain = None
            if config.match_stain:
                restain = Restain(*matching_factors(look, loaded.training), STAINS)
                progress.note(f"{image_path}: {restain.describe()}, as in the training slides")
            folder.add_labels("tissue", cells.shape, BIN_UM * CELL_BINS)[:] = cells
            written = RateImages(folder, loadings, len(runs), shape)
            stitcher = journal.stitcher(patches, config.overlap_um // BIN_UM, shape, written)
            features = (
                PatchFeatures(journal, aside, len(patches), encoder.dim)
                if config.features
                else None
            )
            predict_patches(
                loaded.maps, encoder, image, mpp, patches, stitcher, progress, features, restain
            )
            for warning in image.read_warnings():
                progress.warn(warning)
            about = provenance(runs, encoder, image, mpp, config, tissue, patches, share)
            about |= {"left_out_bins": stitcher.n_left_out, "quality": quality.as_dict()}
            if restain is not None:
                about["stain_factors"] = restain.factors()
            written.finish(about)
            if features is not None:
                write_features(
                    vectors_to, config.features_layout,
                    features.read(), image, mpp, patches, config.overlap_um, encoder,
                    mean_rates(zarr_path, cells), {**about, "made_by": made_by(about)},
                )  # fmt: skip
            if not loadings.is_direct and config.format not in FLAVOURS:
                zarr_path = _panel_alone(zarr_path, aside / "panel", loaded.panel, progress)
            name = image.path.name
            convert(zarr_path, aside / RESULT, config.format, loaded.panel, pyramid, name)
    return Prediction(out, picture, len(patches), share, quality, stitcher.most_open)


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


def _draw(path: Path, pyramid: Picture, tissue: Tissue, patches: PatchTable) -> None:
    from virchow_st.output.figures.tissue_check import LONGEST_PX, draw_tissue

    rgb, um_per_px = pyramid.read_small(LONGEST_PX)
    corners_um = BIN_UM * np.stack([patches.row0, patches.col0], axis=1)
    draw_tissue(path, rgb, um_per_px, tissue.mask, tissue.histogram, tissue.threshold, corners_um)


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


def write_picture(
    folder: Folder, image: SlideImage, mpp: float, journal: Journal | None = None
) -> Picture:
    """Write ``images/he`` in bands, then each coarser level from the one before.

    Args:
        folder: the Zarr folder to write to.
        image: the slide.
        mpp: µm per pixel of the slide.
        journal: of the prediction; the bands that it has are left as they are.

    Raises:
        SlideError: the image file is damaged.
    """
    factor = picture_factor(image, mpp)
    width, height = -(-image.width // factor), -(-image.height // factor)
    picture = add_picture(folder, height, width, factor * mpp, OVERVIEW_LEVEL + 1)
    for top in range(0, height, CHUNK_PX):
        rows = min(CHUNK_PX, height - top)
        if journal and journal.has_band(top, partial(picture.read_band, top, rows)):
            continue
        picture.remove_band(top)
        rgb, _, _ = image.read_region(0, top * factor, image.width, rows * factor, factor)
        picture.write(top, rgb)
        if journal:
            journal.band(top, picture.read_band(top, rows))
    picture.fill_coarser()
    return picture
