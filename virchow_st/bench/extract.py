"""``vst bench extract``: images per second, time of each part, and the hardware limit."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virchow_st.bench.encoder import Timed, flops_of
from virchow_st.bench.limits import matmul_rate
from virchow_st.bench.samples import SimulatedSlide, simulate_slide, write_store
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.config import ExtractConfig
from virchow_st.extract.registration import RegistrationCheck
from virchow_st.extract.slide import extract_slide
from virchow_st.models.encoders import load_encoder
from virchow_st.models.encoders.base import Encoder
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable, lay_patches, render_patch
from virchow_st.slide.render import render_ahead, thread_count
from virchow_st.slide.visium_hd import VisiumHDSlide
from virchow_st.store.reader import Patch, Store
from virchow_st.store.writer import PatchRecord
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, STORED_IMAGE_PX, UInt8Array

if TYPE_CHECKING:
    from virchow_st.models.encoders.vit import ViTEncoder

# Sides of the simulated slide, bins. A ViT takes seconds per image on a CPU; a GPU encodes a
# thousand images per second.
SMALL, MIDDLE, LARGE = 384, 640, 1664
_GENES = 1000


def bins_for(encoder: Encoder) -> int:
    """Side of a slide, in bins, that the encoder processes within seconds to a minute."""
    device = getattr(encoder, "device", None)
    if device is None:
        return MIDDLE
    return LARGE if device.type == "cuda" else SMALL


def extracted_store(folder: Path, encoder: Encoder, bins: int, genes: int = _GENES) -> Store:
    """Extract a simulated slide to a new store in a scratch folder."""
    slide = simulate_slide(folder, bins, genes)
    store = folder / "extracted.vst"
    shutil.rmtree(store, ignore_errors=True)
    return extract_slide(slide.outs, slide.image, store, "P1", ExtractConfig(), encoder=encoder)


def measure(
    folder: Path,
    progress: Progress = SILENT,
    *,
    encoder: Encoder | None = None,
    bins: int | None = None,
    genes: int = _GENES,
    rounds: int = 3,
) -> list[Table]:
    """Measure a whole extraction, each of its parts alone, and the encoder against the hardware.

    Args:
        folder: Scratch folder.
        progress: Receives notes, warnings and step counts.
        encoder: Encoder; the stain encoder if None.
        bins: Side of the slide in bins; chosen by `bins_for` if None.
        genes: Number of genes.
        rounds: Timed passes over each part; the best time is used.
    """
    encoder = load_encoder("stain") if encoder is None else encoder
    bins = bins_for(encoder) if bins is None else bins
    progress.note(f"extract: drawing a slide of {bins}×{bins} bins")
    slide = simulate_slide(folder, bins, genes)
    extracted_store(folder, load_encoder("stain"), bins, genes)  # compiles all but the encoder
    visium, patches = _open(slide)
    images, _ = _images(slide, visium, patches, encoder)
    if bins == SMALL:  # a ViT on a CPU, which takes long and varies little
        rounds = 1
    encoder.encode(images[: encoder.batch if rounds > 1 else 1])
    progress.note(f"extract: {len(images)} patches through {encoder.name}")
    whole_s, encoding_s = np.inf, np.inf
    for _ in range(rounds):
        timed = Timed(encoder)
        start = time.perf_counter()
        store = extracted_store(folder, timed, bins, genes)
        if (seconds := time.perf_counter() - start) < whole_s:
            whole_s, encoding_s = seconds, timed.seconds
    whole_s, encoding_s = whole_s / len(store), encoding_s / len(store)
    progress.note("extract: its parts one by one")
    parts = _time_parts(folder, slide, store, encoder, images, rounds)
    tables = [_parts_table(encoder, store, parts, whole_s, encoding_s)]
    if hasattr(encoder, "model"):
        tables.append(_peak_table(encoder, images, parts.encode, whole_s))  # type: ignore[arg-type]
    return tables


@dataclass(frozen=True)
class _Parts:
    """Seconds per patch of each part, run alone."""

    counts: float
    read: float
    warp: float
    encode: float
    write: float
    register: float
    threads: float  # read and warp by all threads; not counted as a part

    @property
    def total(self) -> float:
        return self.counts + self.read + self.warp + self.encode + self.write + self.register


def _time_parts(
    folder: Path,
    slide: SimulatedSlide,
    store: Store,
    encoder: Encoder,
    images: UInt8Array,
    rounds: int,
) -> _Parts:
    batch = images[: encoder.batch]
    visium, patches = _open(slide)
    (encode_s,) = interleaved(lambda: encoder.encode(batch), rounds=rounds, warm_up=False)
    counts_s, register_s, threads_s = interleaved(
        lambda: _read_counts(slide),
        lambda: _register(store),
        lambda: _images_by_threads(slide, visium, patches, encoder),
        rounds=rounds,
    )
    render_s, read_s = np.inf, np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        _, reading_s = _images(slide, visium, patches, encoder)
        if (seconds := time.perf_counter() - start) < render_s:
            render_s, read_s = seconds, reading_s
    records = [_record_of(patch) for patch in store]
    write_s = np.inf
    for _ in range(rounds):
        write_s = min(write_s, write_store(folder / "written.vst", records))
        shutil.rmtree(folder / "written.vst")
    n = len(store)
    return _Parts(
        counts=counts_s / n,
        read=read_s / n,
        warp=(render_s - read_s) / n,
        encode=encode_s / len(batch),
        write=float(write_s) / n,
        register=register_s / n,
        threads=threads_s / n,
    )


def _open(slide: SimulatedSlide) -> tuple[VisiumHDSlide, PatchTable]:
    visium = VisiumHDSlide.open(slide.outs)
    return visium, lay_patches(visium.tissue_mask, ExtractConfig().min_tissue)


def _read_counts(slide: SimulatedSlide) -> None:
    visium, patches = _open(slide)
    visium.read_counts(patches)


def _images(
    slide: SimulatedSlide, visium: VisiumHDSlide, patches: PatchTable, encoder: Encoder
) -> tuple[UInt8Array, float]:
    """Read and warp every patch in one thread; returns the images and the seconds of reading."""
    sizes, reading_s = (STORED_IMAGE_PX, encoder.image_px), 0.0
    with SlideImage.open(slide.image) as image:
        read_region = image.read_region

        def clocked(*region: Any) -> Any:
            nonlocal reading_s
            start = time.perf_counter()
            actual = read_region(*region)
            reading_s += time.perf_counter() - start
            return actual

        image.read_region = clocked  # type: ignore[assignment, method-assign]
        images = [
            render_patch(image, visium.homography, int(row0), int(col0), sizes)[1][0]
            for row0, col0 in zip(patches.row0, patches.col0, strict=True)
        ]
    return np.stack(images), reading_s


def _images_by_threads(
    slide: SimulatedSlide, visium: VisiumHDSlide, patches: PatchTable, encoder: Encoder
) -> None:
    """Read and warp every patch with threads, as extraction does."""
    with SlideImage.open(slide.image) as image:
        for _ in render_ahead(image, visium.homography, patches, encoder.image_px):
            pass


def _register(store: Store) -> None:
    """Compare image and counts of every patch in one thread, as extraction does at the end."""
    check = RegistrationCheck()
    for patch in store:
        counts = patch.sparse_counts
        umi = np.bincount(counts.positions, counts.counts, PATCH_POSITIONS)
        umi = umi.reshape(PATCH_BINS, PATCH_BINS)
        check.add(patch.image, patch.validity_mask, umi, patch.tissue_mask)
    check.result()


def _record_of(patch: Patch) -> PatchRecord:
    counts = patch.sparse_counts
    return PatchRecord(
        info=patch.info,
        tissue_mask=patch.tissue_mask,
        validity_mask=patch.validity_mask,
        gene=np.repeat(counts.genes, np.diff(counts.indptr)),
        position=counts.positions,
        count=counts.counts,
        image=patch.image,
        class_token=patch.cls,
        tokens=patch.tokens,
    )


def _parts_table(
    encoder: Encoder, store: Store, parts: _Parts, whole_s: float, encoding_s: float
) -> Table:
    rows: list[list[Cell]] = [
        [name, 1e3 * seconds, 1 / seconds, seconds / whole_s]
        for name, seconds in (
            ("positions, matrix and counts", parts.counts),
            ("read the image, 1 thread", parts.read),
            ("warp it, 1 thread", parts.warp),
            ("encode", parts.encode),
            ("pack, commit and finish", parts.write),
            ("compare with counts, 1 thread", parts.register),
            ("these one after the other", parts.total),
            (f"read and warp, {thread_count()} threads", parts.threads),
            ("vst extract", whole_s),
            ("of which encoding", encoding_s),
        )
    ]
    device = getattr(encoder, "device", None)
    idle = max(0.0, 1 - encoding_s / whole_s)
    return Table(
        f"Extraction: {len(store)} patches, {encoder.name}, {encoder.batch} patches at once",
        ["", "ms per patch", "patches/s", "share of the whole"],
        rows,
        [
            f"vst extract runs at {parts.encode / whole_s:.0%} of the encoder alone and at "
            f"{parts.total / whole_s:.2f}× its parts one after the other; the "
            f"{'GPU idles' if device and device.type == 'cuda' else 'encoder waits'} {idle:.0%} of "
            "the time. On a slide as small as this, opening and closing weigh more than on a real "
            "one."
        ],
    )


def _peak_table(encoder: ViTEncoder, images: UInt8Array, encode_s: float, whole_s: float) -> Table:
    """Images per second, and the share of the matrix product rate of the machine."""
    flops = flops_of(encoder, images)
    peak = matmul_rate(encoder.device, precision=encoder.precision)
    rows: list[list[Cell]] = [
        [name, 1 / seconds, flops / seconds / 1e12, flops / seconds / peak]
        for name, seconds in (("encoder alone", encode_s), ("vst extract", whole_s))
    ]
    return Table(
        f"{encoder.name} on {encoder.device.type}, against the matrix product in "
        f"{encoder.precision}",
        ["", "images/s", "TFLOP/s", "share of the peak"],
        [*rows, ["matrix product", peak / flops, peak / 1e12, 1.0]],
        [f"{flops / 1e9:.0f} GFLOP per image, {min(encoder.batch, len(images))} images at once."],
    )
