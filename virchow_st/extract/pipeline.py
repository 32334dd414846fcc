"""The pipeline of an extraction: patches rendered ahead, encoded in batches, committed behind.

While a batch is encoded, the next ones are read and warped, and the one before is packed and
written. A batch is committed as a whole, so that a killed extraction goes on where a batch begins
and the encoder sees the batches that it would have seen: what it computes for a patch may depend,
in the last bits, on how many others are computed with it.
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

_STOPPING = "stopping when this batch is done; Ctrl-C again stops at once"

MakeRecord = Callable[[int, PatchImages, Tokens, int], PatchRecord]


@dataclass(frozen=True)
class Batches:
    """How many patches are encoded at once, and from which patch on.

    Attributes:
        steps: ``(first patch, patches a batch)``, rising from patch 0; more than one where memory
            ran out on the way.
    """

    steps: tuple[tuple[int, int], ...]

    def size(self, patch: int) -> int:
        """Patches of the batch that begins with a patch."""
        return next(size for first, size in reversed(self.steps) if first <= patch)

    def shrunk(self, patch: int, size: int) -> Batches:
        """The same up to a patch, and smaller batches from it on."""
        return Batches((*(step for step in self.steps if step[0] < patch), (patch, size)))


def encoding_for(encoder: Encoder, store: Path, begun: dict[str, Any] | None) -> dict[str, Any]:
    """Precision and batches, for the job: those of the store that was begun, else the encoder's.

    Args:
        encoder: at work now.
        store: the store's folder.
        begun: the job it was begun with, or None where it is new.

    Raises:
        StoreError: it was begun in another arithmetic than the encoder's.
    """
    fresh = {"precision": encoder.precision, "batches": [[0, encoder.batch]]}
    before = fresh if begun is None else begun.get("encoding", fresh)
    if before["precision"] != encoder.precision:
        raise StoreError(
            f"{store}: was begun in {before['precision']}; here {encoder.name} runs in "
            f"{encoder.precision}, which makes other tokens; go on where it was begun (--device), "
            "or delete it and begin anew"
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
    """Encode and commit the patches that a store lacks yet.

    Args:
        writer: of the store; its job says the batches.
        rendered: its patches from ``writer.next_index`` on; closed at the end.
        n_patches: of the whole store.
        encoder: the encoder.
        make_record: from a patch's index, its images, its batch's tokens and its place among them.
        progress: receives notes, warnings and step counts.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the batches under way have been committed.
        ConfigError: not even one patch fits the device's memory.
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
                if running is not None:  # its tokens take room too
                    finish(running)
                    running = None
                    continue
                if size == 1:
                    raise ConfigError(
                        f"{encoder.name}: a single patch does not fit the memory that is free; end "
                        "what else uses the device, or give another --device"
                    ) from None
                batches = batches.shrunk(at, size // 2)
                _amend(writer, batches)
                progress.warn(
                    f"out of memory at {size} patches a batch; going on with {size // 2} from "
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
            "command goes on from there"
        )
        raise stop.interrupt()


@dataclass(frozen=True)
class _Running:
    """A batch that has been given to the encoder."""

    first: int
    images: list[PatchImages]
    wait: Callable[[], Tokens]


def _amend(writer: StoreWriter, batches: Batches) -> None:
    encoding = {**writer.job["encoding"], "batches": [list(step) for step in batches.steps]}
    writer.amend({**writer.job, "encoding": encoding})
