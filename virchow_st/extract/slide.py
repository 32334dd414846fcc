"""``vst extract``: one slide and its image → one store. The encoder runs once on every patch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from virchow_st.config import ExtractConfig
from virchow_st.errors import ConfigError, StoreError
from virchow_st.extract.fit import (
    check_without_pictures,
    choose_orientation,
    images_that_fit,
    match_stain,
    stain_of,
)
from virchow_st.extract.pipeline import encoding_for, write_patches
from virchow_st.extract.provenance import check_same_job, job_of, manifest_of
from virchow_st.extract.registration import RegistrationCheck, describe
from virchow_st.models.encoders import load_encoder
from virchow_st.models.encoders.base import Encoder, Tokens
from virchow_st.run.appearance import known_appearance
from virchow_st.runtime.prefetch import ahead
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patch_counts import PatchCounts
from virchow_st.slide.patches import PatchTable, lay_patches, leftover_tissue_bins
from virchow_st.slide.render import PatchImages, render_ahead, thread_count
from virchow_st.slide.restain import Restain
from virchow_st.slide.visium_hd import VisiumHDSlide
from virchow_st.store.format import Kind, PatchInfo, unpack_image, unpack_mask
from virchow_st.store.patients import patient_name
from virchow_st.store.reader import Store, open_store
from virchow_st.store.writer import (
    PatchRecord,
    StoreWriter,
    begun_job,
    finished_job,
    remove_leftovers,
)
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS

_COMPARED_TOGETHER = 16  # patches per task of the threads that compare counts and image


def extract_slide(
    outs: Path,
    image_path: Path,
    store_path: Path,
    patient: str,
    config: ExtractConfig,
    progress: Progress = SILENT,
    encoder: Encoder | None = None,
) -> Store:
    """Write the store of a slide, or resume the one that an earlier run began.

    Nothing is written before slide, image, counts and encoder have been checked. If a file turns
    out to be damaged later, the unfinished store can be resumed.

    Args:
        outs: Space Ranger's ``outs/``, ``binned_outputs/`` or ``square_002um/``.
        image_path: the microscope image that Space Ranger got as ``--image``.
        store_path: folder to write.
        patient: the patient's name.
        config: encoder and options.
        progress: receives notes, warnings and step counts.
        encoder: the loaded encoder of ``config``, to be shared by several slides; loaded if None.

    Returns:
        The finished store.

    Raises:
        SlideError: the slide or the image is damaged, or they do not belong together.
        StoreError: the folder holds a store made from other inputs or options.
        ConfigError: the encoder is not available, or no patient is given.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the batches in progress have been committed.

    Example:
        >>> store = extract_slide(  # doctest: +SKIP
        ...     Path("outs"), Path("slide.btf"), Path("P1.vst"), "P1", ExtractConfig()
        ... )
    """
    with open_slide(outs, image_path, store_path, patient, config, progress, encoder) as opened:
        return opened.extract(progress)


@dataclass(frozen=True)
class OpenedSlide:
    """A slide that has been checked, with its counts read, ready to be encoded.

    It is a context manager that closes the image file.

    Attributes:
        store_path: folder to write.
        job: description of everything that determines the bytes of the records; a store is
            resumed only for an equal job.
        patient, config, encoder: as given to `open_slide`.
        slide, patches: the slide and its patches.
        image: the image, rotated or mirrored if its Orientation tag asks for it and the counts
            agree.
        opened: the image as stored, which owns the open file.
        counts: counts of the patches, or None if the store is finished already.
        restain: what changes the strength of the stains before encoding; None if nothing does.
    """

    store_path: Path
    job: dict[str, Any]
    patient: str
    config: ExtractConfig
    encoder: Encoder
    slide: VisiumHDSlide
    image: SlideImage
    opened: SlideImage
    patches: PatchTable
    counts: PatchCounts | None
    restain: Restain | None

    def __enter__(self) -> OpenedSlide:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def extract(self, progress: Progress = SILENT) -> Store:
        """Write the store, or open it if it is finished.

        Args:
            progress: receives notes, warnings and step counts.

        Raises:
            SlideError, StoreError, ConfigError, KeyboardInterrupt: as for `extract_slide`.
        """
        path, counts = self.store_path, self.counts
        if counts is None:
            remove_leftovers(path)
            progress.note(f"{path}: already complete")
            return open_store(path)
        slide, patches, encoder = self.slide, self.patches, self.encoder
        n_genes = len(slide.genes)
        with StoreWriter(path, self.job, self.config.token_dtype, n_genes) as writer:
            if writer.next_index:
                progress.note(f"{path}: resuming after {writer.next_index} patches")
            rendered = render_ahead(
                self.image, slide.homography, patches, encoder.image_px,
                first=writer.next_index, n_ahead=2 * encoder.batch, restain=self.restain,
            )  # fmt: skip
            make_record = partial(_record, slide, patches, counts)
            write_patches(writer, rendered, len(patches), encoder, make_record, progress)
            for warning in self.image.read_warnings():
                progress.warn(warning)
            n_tissue = int(slide.tissue_mask.sum())
            n_covered = n_tissue - leftover_tissue_bins(slide.tissue_mask, patches)
            manifest = manifest_of(slide, patches, counts, encoder, n_tissue, n_covered)
            registration = _check_registration(writer, slide, patches, counts, progress)
            slide_id = path.name.removesuffix(".vst")
            writer.finish(
                {
                    "patient": self.patient,
                    "slide": slide_id,
                    **manifest,
                    "registration": registration,
                }
            )
        return open_store(path)


def open_slide(
    outs: Path,
    image_path: Path,
    store_path: Path,
    patient: str,
    config: ExtractConfig,
    progress: Progress = SILENT,
    encoder: Encoder | None = None,
) -> OpenedSlide:
    """Open and check a slide and read its counts, so that its patches can be encoded.

    Nothing is written. Arguments and errors are those of `extract_slide`.
    """
    if not (patient := patient_name(patient)):
        raise ConfigError("patient: expected a name; give --patient")
    training = known_appearance(Path(config.match_stain)) if config.match_stain else ()
    slide = VisiumHDSlide.open(outs, config.matrix)
    with ExitStack() as stack:
        opened = stack.enter_context(SlideImage.open(image_path))
        for warning in opened.choice.warnings:
            progress.warn(f"{opened.path}: {warning}")
        size, faults = slide.expected_size()
        for fault in faults:
            progress.warn(fault)
        ways = images_that_fit(opened, slide)
        patches = lay_patches(slide.tissue_mask, config.min_tissue, config.lattice)
        leftover = leftover_tissue_bins(slide.tissue_mask, patches)
        n_tissue = int(slide.tissue_mask.sum())
        progress.note(f"{opened.path}: {opened.describe()}")
        progress.note(
            f"{slide.folder}: {slide.grid_shape[0]}×{slide.grid_shape[1]} bins, "
            f"{slide.mpp:.3f} µm/px, homography within {slide.homography.residual_px:.1e} px"
        )
        progress.note(
            f"{len(patches)} patches, starting from bin {patches.offset}, hold "
            f"{1 - leftover / n_tissue:.1%} of {n_tissue:,} tissue bins; {leftover:,} at the "
            f"border or in sparse tissue are left out"
        )
        finished, begun, counts = finished_job(store_path), None, None
        if finished is None:
            begun = begun_job(store_path)
        image = _way_before(ways, finished or begun)
        if image is None:
            counts = slide.read_counts(patches)
            image = choose_orientation(ways, slide, patches, counts, progress)
        if finished is None and begun is None:
            stain_of(image, slide, patches).raise_for(opened.path)
        if encoder is None:
            encoder = open_encoder(config, progress)
        restain = match_stain(image, slide, patches, training, progress) if training else None
        job = job_of(slide, image, patches, patient, encoder, config, restain)
        if finished is not None:
            check_same_job(store_path, "is finished, but was made from", finished, job)
            counts = None
        else:
            if begun is not None:
                check_same_job(store_path, "was begun with", begun, job)
            job["encoding"] = encoding_for(encoder, store_path, begun)
            if counts is None:
                counts = slide.read_counts(patches)  # a damaged matrix is found before writing
            if size is None:
                check_without_pictures(image, slide, patches, counts, progress)
        stack.pop_all()
    return OpenedSlide(
        store_path, job, patient, config, encoder, slide, image, opened, patches, counts, restain
    )


def _way_before(ways: list[SlideImage], job: dict[str, Any] | None) -> SlideImage | None:
    """The orientation of the image that is the only one, or that a store was begun with.

    None means that it has to be measured.
    """
    if ways[0].choice.orientation == 1:
        return ways[0]
    if job is None:
        return None
    before = job["inputs"]["image"].get("orientation", 1)
    return next((way for way in ways if way.orientation == before), None)


def open_encoder(config: ExtractConfig, progress: Progress) -> Encoder:
    """Load the encoder and show its licence's conditions as a warning.

    Raises:
        ConfigError: the encoder or its device is not available.
    """
    encoder = load_encoder(
        config.encoder, weights=config.weights, device=config.device, token_um=config.token_um
    )
    if encoder.licence:
        progress.warn(f"{encoder.name}: {encoder.licence}")
    return encoder


def _record(
    slide: VisiumHDSlide,
    patches: PatchTable,
    counts: PatchCounts,
    index: int,
    rendered: PatchImages,
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
        validity_mask=rendered.validity_mask,
        gene=gene,
        position=position,
        count=count,
        image=rendered.stored,
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
    """Compare image and counts of all patches; if they are shifted, warn and draw a figure.

    The images are read from the store, so that a resumed extraction gets the same result.
    """
    check, reading = RegistrationCheck(), Lock()

    def check_part(first: int) -> RegistrationCheck:
        part = RegistrationCheck()
        for index in range(first, min(first + _COMPARED_TOGETHER, len(patches))):
            with reading:
                image = writer.read(index, Kind.IMAGE)
                validity_mask = writer.read(index, Kind.VALIDITY_MASK)
            row0, col0 = int(patches.row0[index]), int(patches.col0[index])
            _, position, count = counts[index]
            umi = np.bincount(position, count, PATCH_POSITIONS).reshape(PATCH_BINS, PATCH_BINS)
            tissue_mask = slide.tissue_mask[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS]
            part.add(unpack_image(image), unpack_mask(validity_mask), umi, tissue_mask)
        return part

    # Parts have a fixed size and are added in order, so that the number of threads does not
    # change the result.
    parts = range(0, len(patches), _COMPARED_TOGETHER)
    with ThreadPoolExecutor(thread_count(), "compare") as pool:
        for first, part in ahead(pool, parts, check_part, n_ahead=thread_count()):
            check.merge(part)
            done = min(first + _COMPARED_TOGETHER, len(patches))
            progress.step(done, len(patches), "patches compared with their image")
    found = check.result()
    entry = found.to_manifest()
    if found.verdict != "shifted" or check.example is None:
        progress.note(f"registration {describe(entry)}")
        return entry
    from virchow_st.output.figures.registration_check import (
        draw_registration,  # matplotlib, seldom needed
    )

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
        f"{picture}: registration {describe(entry)}; check the image alignment in Space Ranger's "
        f"web_summary.html, align by hand in Loupe Browser, run Space Ranger again with "
        f"--loupe-alignment, and extract again"
    )
    return entry
