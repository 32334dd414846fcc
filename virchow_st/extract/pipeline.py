"""The pipeline of an extraction: renders, encodes and writes patches at the same time.

While a batch is encoded, the images of the next ones are read and warped, and the previous one is
packed and written. Batches are committed as a whole. A killed extraction therefore resumes at the
start of a batch and encodes the same batches as an uninterrupted one, which matters because the
last bits of a patch's tokens may depend on the size of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError, StoreError
from virchow_st.models.encoders.base import Encoder, Tokens
from virchow_st.runtime.interrupt import stop_when_ready
from virchow_st.runtime.progress import Progress
from virchow_st.slide.render import PatchImages
from virchow_st.store.background import BackgroundWriter
from virchow_st.store.writer import PatchRecord, StoreWriter

_STOPPING = "stopping after this batch; press Ctrl-C again to stop at once"

MakeRecord = Callable[[int, PatchImages, Tokens, int], PatchRecord]


@dataclass(frozen=True)
class Batches:
    """The sizes of the batches in which patches are encoded.

    Attributes:
        steps: pairs (first patch, patches per batch), rising from patch 0. There is more than one
            pair if memory ran out during the extraction.

    Example:
        >>> Batches(((0, 32), (64, 16))).size(64)
        16
    """

    steps: tuple[tuple[int, int], ...]

    def size(self, patch: int) -> int:
        """Number of patches in the batch that starts with ``patch``."""
        return next(size for first, size in reversed(self.steps) if first <= patch)

    def shrunk(self, patch: int, size: int) -> Batches:
        """The same batches up to ``patch``, and batches of ``size`` patches from there on."""
        return Batches((*(step for step in self.steps if step[0] < patch), (patch, size)))


def encoding_for(encoder: Encoder, store: Path, begun: dict[str, Any] | None) -> dict[str, Any]:
    """Precision and batches for the job: those of an unfinished store, or else the encoder's.

    Args:
        encoder: the encoder in use.
        store: the store's folder.
        begun: the job of an unfinished store, or None for a new store.

    Raises:
        StoreError: the store was begun in another precision than the encoder's.
    """
    fresh = {"precision": encoder.precision, "batches": [[0, encoder.batch]]}
    before = fresh if begun is None else begun.get("encoding", fresh)
    if before["precision"] != encoder.precision:
        raise StoreError(
            f"{store}: was begun in {before['precision']}; here {encoder.name} runs in "
            f"{encoder.precision}, which gives different tokens; continue on the device where it "
            "was begun (--device), or delete it and start again"
        )
    return before


def write_patches(
    writer: StoreWriter,
    rendered: Iterator[PatchImages],
    n_patches: int,
    encoder: Encoder,
    make_record: MakeRecord,
    progress: Progress,
) -> None:
    """Encode and commit the patches that a store still lacks.

    Args:
        writer: writer of the store, whose job lists the batches.
        rendered: images of the patches from ``writer.next_index`` on; closed at the end.
        n_patches: number of patches of the whole store.
        encoder: the encoder.
        make_record: makes a record from a patch's index, its images, the tokens of its batch and
            the patch's index in that batch.
        progress: receives notes, warnings and step counts.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the batches in progress have been committed.
        ConfigError: even a single patch does not fit the device's memory.
    """
    batches = Batches(tuple((first, size) for first, size in writer.job["encoding"]["batches"]))
    at, taken = writer.next_index, list[PatchImages]()
    running: _Running | None = None
    with (
        closing(rendered),  # type: ignore[type-var]
        stop_when_ready(lambda: progress.note(_STOPPING)) as stop,
        BackgroundWriter(writer) as background,
    ):

        def finish(batch: _Running) -> None:
            tokens = batch.wait()
            background.append(
                [
                    make_record(batch.first + place, images, tokens, place)
                    for place, images in enumerate(batch.images)
                ]
            )
            progress.step(batch.first + len(batch.images), n_patches, "patches")

        while at < n_patches and not stop:
            size = min(batches.size(at), n_patches - at)
            taken += islice(rendered, max(0, size - len(taken)))
            images = taken[:size]
            try:
                wait = encoder.launch(np.stack([image.encoded for image in images]))
            except MemoryError:
                if running is not None:  # first free the memory of the previous batch
                    finish(running)
                    running = None
                    continue
                if size == 1:
                    raise ConfigError(
                        f"{encoder.name}: a single patch does not fit the free memory; end other "
                        "programs on the device, or give another --device"
                    ) from None
                batches = batches.shrunk(at, size // 2)
                _amend(writer, batches)
                progress.warn(
                    f"out of memory at {size} patches per batch; continuing with {size // 2} from "
                    f"patch {at} on"
                )
                continue
            del taken[:size]
            if running is not None:
                finish(running)
            running = _Running(at, images, wait)
            at += size
        if running is not None:
            finish(running)
    if stop:
        progress.note(
            f"{writer.path}: stopped after {writer.next_index} of {n_patches} patches; the same "
            "command resumes there"
        )
        raise stop.interrupt()


@dataclass(frozen=True)
class _Running:
    """A batch that the encoder is working on."""

    first: int
    images: list[PatchImages]
    wait: Callable[[], Tokens]


def _amend(writer: StoreWriter, batches: Batches) -> None:
    encoding = {**writer.job["encoding"], "batches": [list(step) for step in batches.steps]}
    writer.amend({**writer.job, "encoding": encoding})
