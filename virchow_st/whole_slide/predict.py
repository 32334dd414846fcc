"""The whole way from an image to its rates on disk, one visible function."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from virchow_st.ahead import ahead
from virchow_st.config import PredictConfig, to_toml
from virchow_st.encoders import load_encoder
from virchow_st.encoders.base import Encoder
from virchow_st.errors import ConfigError
from virchow_st.files import sync_folder
from virchow_st.patches import PatchTable, render_patch
from virchow_st.predict import Run, load_run
from virchow_st.progress import SILENT, Progress
from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.slide.resolution import slide_mpp
from virchow_st.store.format import pack_image, unpack_image
from virchow_st.tissue import Tissue, find_tissue
from virchow_st.types import (
    BIN_UM,
    PATCH_UM,
    STORED_IMAGE_PX,
    BoolArray,
    UInt8Array,
)
from virchow_st.whole_slide.convert import check_format, convert
from virchow_st.whole_slide.lattice import CELL_BINS, covered, lay_over
from virchow_st.whole_slide.ngff import FLAVOURS, Folder
from virchow_st.whole_slide.overview import OVERVIEW_LEVEL, Picture, write_picture
from virchow_st.whole_slide.rates import LEVELS, RateImages
from virchow_st.whole_slide.stitch import Stitcher

FORMAT = "virchow_st.prediction/1"
_BATCH_PATCHES = 16
_SOFTWARE = ("virchow_st", "numpy", "opencv-python-headless", "torch", "timm", "zarr")


@dataclass(frozen=True)
class Prediction:
    """What `predict_slide` left: the result, the picture of the tissue, and a few numbers."""

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
        run_paths: one run, or several of the same encoder and panel, whose mean and spread it is.
        image_path: the slide.
        out: what to write; it is there whole or not at all.
        config: options.
        progress: who listens.

    Raises:
        ConfigError, SlideError: a run, its encoder's weights, or the image is missing, damaged or
            does not fit; no µm per pixel; no tissue; or ``out`` is there already.
    """
    if out.exists():
        raise ConfigError(f"{out}: is already there; delete it or give another --out")
    check_format(config.format)
    runs = [load_run(path, config.device) for path in run_paths]
    _check_alike(runs)
    with SlideImage.open(image_path) as image:
        mpp = slide_mpp(image_path, config.mpp)
        encoder = _open_encoder(runs[0], config, progress)
        progress.note(f"{image_path}: {image.width}×{image.height} px, {mpp:.4g} µm/px")
        with _written_aside(out) as (aside, picture):
            flavour = config.format if config.format in FLAVOURS else FLAVOURS[0]
            zarr_path = aside / "zarr"
            folder = Folder(zarr_path, flavour, {})
            pyramid = write_picture(folder, image, mpp)
            overview, um_per_px = pyramid.read(OVERVIEW_LEVEL)
            tissue = find_tissue(overview, um_per_px)
            shape = _grid_shape(image, mpp)
            cells = _on_cells(tissue.mask, um_per_px, shape)
            patches = lay_over(cells, config.min_tissue, config.overlap_um // BIN_UM)
            _draw(picture, pyramid, tissue, patches)
            share = covered(cells, patches)
            progress.note(
                f"{cells.mean():.1%} of the slide is tissue, {share:.1%} of that in "
                f"{len(patches)} patches: see {picture}; a lower --min-tissue takes in more"
            )
            folder.add_labels("tissue", cells.shape, BIN_UM * CELL_BINS)[:] = cells
            written = RateImages(folder, runs[0].panel, len(runs), shape)
            stitcher = Stitcher(patches, config.overlap_um // BIN_UM, shape, written.write)
            _predict(runs, encoder, image, mpp, patches, stitcher, progress)
            folder.finish(
                virchow_st=_provenance(runs, encoder, image, mpp, config, tissue, patches, share)
            )
            convert(zarr_path, aside / "result", config.format)
    return Prediction(out, picture, len(patches), share, stitcher.most_open)


def _predict(
    runs: Sequence[Run],
    encoder: Encoder,
    image: SlideImage,
    mpp: float,
    patches: PatchTable,
    stitcher: Stitcher,
    progress: Progress,
) -> None:
    """Batch by batch; one is rendered while another is encoded and decoded."""
    homography = scaling(mpp)
    wants_image = any(run.decoder.wants_image for run in runs)
    sizes = (encoder.image_px, STORED_IMAGE_PX)[: 1 + wants_image]

    def render(batch: range) -> list[UInt8Array]:
        rendered = [
            render_patch(image, homography, int(patches.row0[i]), int(patches.col0[i]), sizes)
            for i in batch
        ]
        return [np.stack([images[k][0] for images in rendered]) for k in range(len(sizes))]

    n = len(patches)
    size = min(_BATCH_PATCHES, encoder.batch)  # that of a GPU with little memory is small
    batches = [range(s, min(s + size, n)) for s in range(0, n, size)]
    with ThreadPoolExecutor(1) as renderer:  # one thread, as an image handle belongs to one
        for batch, images in ahead(renderer, batches, render):
            # As a store keeps them, so that the decoder sees what it was trained on.
            tokens = encoder.encode(images[0]).tokens.astype(np.float16)
            stored = None
            if wants_image:
                stored = np.stack([unpack_image(memoryview(pack_image(i))) for i in images[1]])
            rates = np.concatenate(
                [run.rates(tokens, stored if run.decoder.wants_image else None) for run in runs],
                axis=1,
            )
            for i, of_patch in zip(batch, rates, strict=True):
                stitcher.add(int(patches.row0[i]), int(patches.col0[i]), of_patch)
            progress.step(batch.stop, n, "patches")


def scaling(mpp: float) -> Homography:
    """Bins to px where bin (0, 0) lies in the image's corner: no turn, no mirror."""
    pitch = BIN_UM / mpp
    return Homography(np.array([[pitch, 0, pitch / 2], [0, pitch, pitch / 2], [0, 0, 1]]))


def _grid_shape(image: SlideImage, mpp: float) -> tuple[int, int]:
    """Rows and columns of the 2 µm grid: the whole image, up to what halves for the pyramid."""
    side = BIN_UM << (LEVELS - 1)
    rows, cols = (
        max(1, int(np.ceil(size * mpp / side - 1e-9))) * (side // BIN_UM)
        for size in (image.height, image.width)
    )
    return rows, cols


def _on_cells(mask: BoolArray, um_per_px: float, shape: tuple[int, int]) -> BoolArray:
    """The tissue mask on cells of 8 µm over a grid of ``shape`` bins: the pixel at their centre."""
    side = BIN_UM * CELL_BINS
    row, col = (
        ((np.arange(bins // CELL_BINS) + 0.5) * side / um_per_px).astype(int) for bins in shape
    )
    inside = np.outer(row < mask.shape[0], col < mask.shape[1])
    row, col = np.minimum(row, mask.shape[0] - 1), np.minimum(col, mask.shape[1] - 1)
    return mask[np.ix_(row, col)] & inside


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if any(run.state[key] != first.state[key] for key in ("encoder", "grid", "dim")):
            raise ConfigError(
                f"{run.path}: expected a run on tokens of {_named(first.state['encoder'])}, as "
                f"{first.path}; got {_named(run.state['encoder'])}; give runs of one encoder"
            )
        if run.panel.ids != first.panel.ids:
            raise ConfigError(
                f"{run.path}: expected the genes of {first.path} in their order; got others; give "
                "runs with one --panel file"
            )


def _open_encoder(run: Run, config: PredictConfig, progress: Progress) -> Encoder:
    """The encoder of the run's stores, or an error: no other would make the same tokens."""
    wanted, grid = run.state["encoder"], run.state["grid"]
    encoder = load_encoder(
        wanted["name"],
        weights=config.weights,
        device=config.device,
        token_um=PATCH_UM // grid,
    )
    if (encoder.weights_hash, encoder.grid, encoder.dim) != (
        wanted["weights"], grid, run.state["dim"],
    ):  # fmt: skip
        raise ConfigError(
            f"{config.weights or encoder.name}: expected the weights of {_named(wanted)}, on whose "
            f"tokens {run.path} was trained; got {encoder.weights_hash}; give those with --weights"
        )
    if encoder.licence:
        progress.warn(f"{encoder.name}: {encoder.licence}")
    return encoder


def _named(encoder: dict[str, str]) -> str:
    return f"{encoder['name']} {encoder['weights']}"


def _draw(path: Path, pyramid: Picture, tissue: Tissue, patches: PatchTable) -> None:
    from virchow_st.figures.tissue import LONGEST_PX, draw_tissue

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
    panel = runs[0].panel
    return {
        "format": FORMAT,
        "unit": "expected UMIs a bin",
        "runs": [
            {
                "path": str(run.path),
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
        },
        "tissue": {"saturation_threshold": tissue.threshold, "covered": share},
        "n_patches": len(patches),
        "options": {k: v for k, v in asdict(config).items() if k not in ("device", "weights")},
        "software": {name: version(name) for name in _SOFTWARE},
    }


@contextmanager
def _written_aside(out: Path) -> Iterator[tuple[Path, Path]]:
    """A folder whose ``result`` becomes ``out`` at the end, and the path of the picture beside it.

    Whatever happens before leaves neither.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.part")
    picture = out.with_name(f"{out.name.partition('.')[0]}_tissue.png")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    aside.mkdir()
    try:
        yield aside, picture
        (aside / "result").rename(out)
    except BaseException:
        picture.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(out.parent)
