"""``vst extract``: one slide and its image → one store. The encoder sees every patch once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from virchow_st.ahead import ahead
from virchow_st.config import ExtractConfig
from virchow_st.encoders import load_encoder
from virchow_st.encoders.base import Encoder, Tokens
from virchow_st.errors import ConfigError, StoreError
from virchow_st.patches import (
    PatchTable,
    bin_validity,
    lay_patches,
    leftover_tissue_bins,
    render_patch,
)
from virchow_st.progress import SILENT, Progress
from virchow_st.registration import RegistrationCheck, describe
from virchow_st.slide.counts import PatchCounts
from virchow_st.slide.image import SlideImage
from virchow_st.slide.visium_hd import VisiumHDSlide
from virchow_st.store.background import BackgroundWriter
from virchow_st.store.format import MAX_GENES, Kind, PatchInfo, unpack_image, unpack_mask
from virchow_st.store.reader import Store, open_store
from virchow_st.store.writer import PatchRecord, StoreWriter, finished_job, remove_leftovers
from virchow_st.types import (
    BIN_UM,
    PATCH_BINS,
    PATCH_POSITIONS,
    STORED_IMAGE_PX,
    BoolArray,
    UInt8Array,
)

# Patches encoded and committed together. Resuming starts at a multiple of it, so that the encoder
# sees the same batches as in an uninterrupted run and gives the same bytes.
_BATCH_PATCHES = 16
_SOFTWARE = ("virchow_st", "numpy", "opencv-python-headless", "lmdb", "torch", "timm")


def extract(
    outs: Path,
    image_path: Path,
    store_path: Path,
    patient: str,
    config: ExtractConfig,
    progress: Progress = SILENT,
    encoder: Encoder | None = None,
) -> Store:
    """Write the store of a slide, or finish the one that an earlier run began.

    Args:
        outs: Space Ranger's ``outs/``, ``binned_outputs/`` or ``square_002um/``.
        image_path: the microscope image that Space Ranger was given.
        store_path: folder to write.
        patient: whose slide it is.
        config: encoder and options.
        progress: who listens.
        encoder: the loaded encoder of ``config``, for several slides in one go.

    Returns:
        The finished store.

    Raises:
        SlideError, StoreError, ConfigError: nothing is written before slide, image, counts and
            encoder have been found sound; damage met later leaves a store that can be resumed.
    """
    if not patient:
        raise ConfigError("patient: expected a name; give --patient")
    slide = VisiumHDSlide.open(outs, config.matrix)
    if len(slide.genes.ids) > MAX_GENES:
        raise StoreError(
            f"{slide.matrix_path}: expected at most {MAX_GENES} genes; got {len(slide.genes.ids)}"
        )
    with SlideImage.open(image_path) as image:
        slide.check_image(image)
        patches = lay_patches(slide.tissue_mask, config.min_tissue, config.lattice)
        leftover = leftover_tissue_bins(slide.tissue_mask, patches)
        n_tissue = int(slide.tissue_mask.sum())
        progress.note(
            f"{slide.folder}: {slide.grid_shape[0]}×{slide.grid_shape[1]} bins, "
            f"{slide.mpp:.3f} µm/px, homography within {slide.homography.residual_px:.1e} px"
        )
        progress.note(
            f"{len(patches)} patches from bin {patches.offset} on hold "
            f"{1 - leftover / n_tissue:.1%} of {n_tissue:,} tissue bins; {leftover:,} at the "
            f"border or in thin tissue are left out"
        )
        if encoder is None:
            encoder = open_encoder(config, progress)
        job = _job(slide, image, patches, patient, encoder, config)
        if (finished := finished_job(store_path)) is not None:
            if finished != job:
                raise StoreError(
                    f"{store_path}: is finished, but was made from other inputs or options; "
                    f"delete it or give another --store"
                )
            remove_leftovers(store_path)
            progress.note(f"{store_path}: already complete")
            return open_store(store_path)
        counts = slide.read_counts(patches)  # before the store is begun: a bad matrix leaves none
        with StoreWriter(store_path, job, config.token_dtype) as writer:
            if writer.next_index:
                progress.note(f"{store_path}: resuming after {writer.next_index} patches")
            _write_patches(writer, slide, image, patches, counts, encoder, progress)
            slide_id = store_path.name.removesuffix(".vst")
            manifest = _manifest(slide, patches, counts, encoder, n_tissue, n_tissue - leftover)
            registration = _check_registration(writer, slide, patches, counts, progress)
            writer.finish(
                {"patient": patient, "slide": slide_id, **manifest, "registration": registration}
            )
    return open_store(store_path)


def open_encoder(config: ExtractConfig, progress: Progress) -> Encoder:
    """Load the encoder and show what its licence asks."""
    encoder = load_encoder(config.encoder, weights=config.weights, device=config.device)
    if encoder.licence:
        progress.warn(f"{encoder.name}: {encoder.licence}")
    return encoder


def _write_patches(
    writer: StoreWriter,
    slide: VisiumHDSlide,
    image: SlideImage,
    patches: PatchTable,
    counts: PatchCounts,
    encoder: Encoder,
    progress: Progress,
) -> None:
    """Batch by batch: one is rendered and one committed while another is encoded."""
    starts = range(writer.next_index, len(patches), _BATCH_PATCHES)
    batches = [range(s, min(s + _BATCH_PATCHES, len(patches))) for s in starts]
    # One thread to render, as an image handle belongs to one; and one to write.
    with BackgroundWriter(writer) as background, ThreadPoolExecutor(1) as renderer:
        for batch, rendered in ahead(
            renderer, batches, lambda batch: _render(slide, image, patches, batch, encoder)
        ):
            tokens = encoder.encode(rendered.encoder_images)
            background.append(
                [
                    _record(slide, patches, counts, index, rendered, tokens, place)
                    for place, index in enumerate(batch)
                ]
            )
            progress.step(batch.stop, len(patches), "patches")


@dataclass(frozen=True)
class _Rendered:
    """Images of a batch: for the store, for the encoder, and which bins they show."""

    stored_images: UInt8Array  # (B, 256, 256, 3)
    encoder_images: UInt8Array  # (B, S, S, 3)
    validity_masks: BoolArray  # (B, 128, 128)


def _render(
    slide: VisiumHDSlide, image: SlideImage, patches: PatchTable, batch: range, encoder: Encoder
) -> _Rendered:
    stored, encoded, valid = [], [], []
    for i in batch:
        sizes = (STORED_IMAGE_PX, encoder.image_px)
        (rgb, on_image), (rgb_encoder, _) = render_patch(
            image, slide.homography, int(patches.row0[i]), int(patches.col0[i]), sizes
        )
        stored.append(rgb)
        encoded.append(rgb_encoder)
        valid.append(bin_validity(on_image))
    return _Rendered(np.stack(stored), np.stack(encoded), np.stack(valid))


def _record(
    slide: VisiumHDSlide,
    patches: PatchTable,
    counts: PatchCounts,
    index: int,
    rendered: _Rendered,
    tokens: Tokens,
    place: int,
) -> PatchRecord:
    row0, col0 = int(patches.row0[index]), int(patches.col0[index])
    gene, position, count = counts[index]
    return PatchRecord(
        info=PatchInfo(
            row0=row0,
            col0=col0,
            corners_px=slide.homography.patch_corners_px(row0, col0),
            tissue_fraction=float(patches.tissue_fraction[index]),
            total_umi=int(count.sum(dtype=np.int64)),
        ),
        tissue_mask=slide.tissue_mask[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS],
        validity_mask=rendered.validity_masks[place],
        gene=gene,
        position=position,
        count=count,
        image=rendered.stored_images[place],
        class_token=tokens.cls[place],
        tokens=tokens.tokens[place],
    )


def _check_registration(
    writer: StoreWriter,
    slide: VisiumHDSlide,
    patches: PatchTable,
    counts: PatchCounts,
    progress: Progress,
) -> dict[str, Any]:
    """Compare image and counts of all patches; warn, and draw, where they lie apart.

    The images are those of the store, so that a resumed extraction finds the same figures.
    """
    check = RegistrationCheck()
    for index, (_, position, count) in enumerate(counts):
        row0, col0 = int(patches.row0[index]), int(patches.col0[index])
        umi = np.bincount(position, count, PATCH_POSITIONS).reshape(PATCH_BINS, PATCH_BINS)
        check.add(
            unpack_image(writer.read(index, Kind.IMAGE)),
            unpack_mask(writer.read(index, Kind.VALIDITY_MASK)),
            umi,
            slide.tissue_mask[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS],
        )
        progress.step(index + 1, len(patches), "patches compared with their image")
    found = check.result()
    said = found.to_manifest()
    if found.verdict != "shifted" or check.example is None:
        progress.note(f"registration {describe(said)}")
        return said
    from virchow_st.figures.registration import draw_registration  # matplotlib, seldom needed

    try:
        picture = draw_registration(
            writer.path / "registration",
            found.correlation,
            found.shift_um,
            check.example.haematoxylin,
            check.example.umi,
            check.example.tissue_mask,
        )
    except OSError as e:
        raise StoreError(
            f"{writer.path}: registration.png cannot be written ({e.strerror}); free disk space "
            f"and run the same command again, all {len(patches)} patches are safe"
        ) from None
    progress.warn(
        f"{picture}: registration {describe(said)}; look at the image alignment in Space Ranger's "
        f"web_summary.html, align by hand in Loupe Browser, run Space Ranger again with "
        f"--loupe-alignment, and extract anew"
    )
    return said


def _job(
    slide: VisiumHDSlide,
    image: SlideImage,
    patches: PatchTable,
    patient: str,
    encoder: Encoder,
    config: ExtractConfig,
) -> dict[str, Any]:
    """What decides the bytes of the records; a store is resumed only under the same."""
    options = {k: v for k, v in asdict(config).items() if k not in ("device", "weights")}
    return {
        "patient": patient,
        "options": options,
        "encoder": _encoder_id(encoder),
        "inputs": {
            "matrix": {"name": slide.matrix_path.name, "fingerprint": slide.fingerprint()},
            "image": {"name": image.path.name, "fingerprint": image.fingerprint()},
            "homography": slide.homography.matrix.tolist(),
            "tissue_mask": xxhash.xxh64(np.packbits(slide.tissue_mask).data).hexdigest(),
            "lattice": list(patches.offset),
            "n_patches": len(patches),
        },
    }


def _encoder_id(encoder: Encoder) -> dict[str, str]:
    return {"name": encoder.name, "weights": encoder.weights_hash, "licence": encoder.licence}


def _manifest(
    slide: VisiumHDSlide,
    patches: PatchTable,
    counts: PatchCounts,
    encoder: Encoder,
    n_tissue: int,
    n_covered: int,
) -> dict[str, Any]:
    totals = np.zeros(len(slide.genes.ids), np.int64)
    for gene, _, count in counts:
        totals += np.bincount(gene, count, len(totals)).astype(np.int64)  # exact below 2⁵³
    return {
        "grid": encoder.grid,
        "dim": encoder.dim,
        "token_um": PATCH_BINS * BIN_UM // encoder.grid,
        "token_layout": [list(block) for block in encoder.layout],
        "genes": {
            "id": list(slide.genes.ids),
            "symbol": list(slide.genes.symbols),
            "total": totals.tolist(),
        },
        "homography": slide.homography.matrix.tolist(),
        "mpp": float(slide.mpp),
        "bin_um": BIN_UM,
        "patch_bins": PATCH_BINS,
        "grid_shape": list(slide.grid_shape),
        "lattice": list(patches.offset),
        "tissue_bins": {"slide": n_tissue, "patches": n_covered},
        "encoder": _encoder_id(encoder),
        "software": {name: version(name) for name in _SOFTWARE},
    }
