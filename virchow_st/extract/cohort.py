"""``vst extract --manifest``: a list of slides → one store per slide."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from virchow_st.config import ExtractConfig
from virchow_st.errors import ConfigError, VirchowSTError
from virchow_st.extract.slide import OpenedSlide, open_encoder, open_slide
from virchow_st.names import csv_name
from virchow_st.runtime.distributed import Processes, SharedWork
from virchow_st.runtime.lists import read_columns
from virchow_st.runtime.prefetch import ahead
from virchow_st.runtime.progress import SILENT, Progress, Recording
from virchow_st.schema import MismatchError, Name, check
from virchow_st.store.patients import alike_warnings, patient_name

COLUMNS = ("patient", "outs", "image", "store")


@dataclass(frozen=True)
class CohortSlide:
    """A line of the list of slides.

    Attributes:
        patient: the patient's name.
        outs: Space Ranger's folder.
        image: the microscope image.
        store: the folder to write.
    """

    patient: str
    outs: Path
    image: Path
    store: Path


@dataclass(frozen=True)
class Outcome:
    """The outcome of one slide.

    Attributes:
        patient: the patient's name.
        store: the folder of the store.
        n_patches: number of patches, or None if the slide failed.
        text: ``"complete"``, ``"was complete"``, or the error.
    """

    patient: str
    store: Path
    n_patches: int | None
    text: str


def read_cohort(path: Path) -> list[CohortSlide]:
    """Read a list of slides: a table with the columns patient, outs, image and store.

    Args:
        path: text separated by commas, semicolons or tabs (see `virchow_st.runtime.lists`). Spaces
            around values are stripped, and so is the ``'`` that protects a value from being
            computed by a spreadsheet; paths are relative to the file's folder, and ``~`` is the
            user's home folder.

    Raises:
        ConfigError: the file cannot be read, a column or a value is missing, it lists no slides,
            or two slides have the same store.
    """
    folder, slides = path.parent, []
    for number, values in read_columns(path, "a list of slides", COLUMNS):
        row = {name: csv_name(value) for name, value in values.items()}
        try:
            check(row, dict[str, Name])
        except MismatchError as e:
            raise ConfigError(f"{path}: line {number}: {e}; give another name") from None
        places = (folder / os.path.expanduser(row[name]) for name in COLUMNS[1:])
        slides.append(CohortSlide(patient_name(row["patient"]), *places))
    if not slides:
        raise ConfigError(f"{path}: expected a slide per line; there is none")
    stores = Counter(os.path.abspath(slide.store) for slide in slides)
    if repeated := [store for store, times in stores.items() if times > 1]:
        raise ConfigError(f"{path}: expected a store per slide; {repeated[0]} is named twice")
    return slides


def doubtful(path: Path, slides: Sequence[CohortSlide]) -> list[str]:
    """Warnings about probable mistakes in a list of slides, one line each.

    Args:
        path: the list, for the messages.
        slides: its slides.
    """
    warnings = alike_warnings(slide.patient for slide in slides)
    first: dict[str, CohortSlide] = {}
    for slide in slides:
        other = first.setdefault(os.path.realpath(slide.outs), slide)
        if other is not slide:
            whose = " and ".join(dict.fromkeys((other.patient, slide.patient)))
            warnings.append(
                f"{path}: {slide.outs} is listed twice, for {whose}; vst train refuses to use both "
                f"stores together"
            )
    return warnings


def extract_cohort(path: Path, config: ExtractConfig, progress: Progress = SILENT) -> list[Outcome]:
    """Extract every slide of a list; a slide that fails is reported and the others continue.

    While a slide is encoded, the next one is opened and its counts are read. Under torchrun the
    ranks share the list: each takes the next slide when it has finished one, the largest image
    first.

    Args:
        path: the list, as for `read_cohort`.
        config: encoder and options.
        progress: receives notes, warnings and step counts.

    Returns:
        The outcome of each slide, in the list's order; on ranks other than 0, an empty list.

    Raises:
        ConfigError: the list cannot be read, or the encoder is not available.

    Example:
        >>> outcomes = extract_cohort(Path("slides.csv"), ExtractConfig())  # doctest: +SKIP
    """
    slides, processes = read_cohort(path), Processes.here()
    if processes.rank == 0:
        for warning in doubtful(path, slides):
            progress.warn(warning)
    order = list(range(len(slides)))
    if processes.size > 1:
        order.sort(key=lambda i: _file_size(slides[i].image), reverse=True)
        config = replace(config, device=processes.device(config.device))
    # The licence is shown by the first rank only.
    encoder = open_encoder(config, progress if processes.rank == 0 else SILENT)
    if processes.size > 1:
        progress = _OneOfMany(progress, processes)
    work = SharedWork(processes)

    def prepare(item: int) -> _Prepared:
        slide, recording = slides[order[item]], Recording()
        try:
            opened = open_slide(
                slide.outs, slide.image, slide.store, slide.patient, config, recording, encoder
            )
        except Exception as e:
            return _Prepared(recording, e)
        return _Prepared(recording, opened)

    with ThreadPoolExecutor(1, "next-slide") as pool:
        for item, prepared in ahead(pool, work.take(len(slides)), prepare):
            slide = slides[order[item]]
            progress.note(f"{slide.patient}: {slide.outs}")
            prepared.messages.repeat(progress)
            n_patches, text = _finish(prepared.slide, progress)
            if n_patches is None:
                progress.warn(text)
            elif processes.size > 1:
                progress.note(f"{slide.store}: {text}")
            work.answer(order[item], json.dumps([n_patches, text]))
            del prepared  # its counts may take a gigabyte
    if processes.rank != 0:
        return []
    return [
        Outcome(slide.patient, slide.store, *json.loads(answer))
        for slide, answer in zip(slides, work.collect(len(slides)), strict=True)
    ]


@dataclass(frozen=True)
class _Prepared:
    """The messages collected while a slide was opened, and the slide or the error."""

    messages: Recording
    slide: OpenedSlide | Exception


def _finish(slide: OpenedSlide | Exception, progress: Progress) -> tuple[int | None, str]:
    """Extract an opened slide; returns the number of patches (None if it failed) and a text."""
    try:
        if isinstance(slide, Exception):
            raise slide
        with slide:
            text = "was complete" if slide.counts is None else "complete"
            return len(slide.extract(progress)), text
    except VirchowSTError as e:
        return None, str(e)
    except Exception as e:  # an unexpected error in one slide must not end the whole job
        return None, f"{type(e).__name__}: {e}; extract the slide alone with --debug to see where"


_LINE_EVERY_S = 30.0


class _OneOfMany:
    """Prefixes messages with the rank, because several ranks write to one terminal."""

    def __init__(self, progress: Progress, processes: Processes) -> None:
        self._progress, self._name = progress, f"rank {processes.rank}"
        self._last_line = time.monotonic()

    def note(self, text: str) -> None:
        self._progress.note(f"{self._name}: {text}")

    def warn(self, text: str) -> None:
        self._progress.warn(f"{self._name}: {text}")

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        if (now := time.monotonic()) - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            self.note(f"{done}/{total} {unit} {detail}".rstrip())


def _file_size(path: Path) -> int:
    """Size in bytes; 0 for a missing file, which is reported when its slide is opened."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
