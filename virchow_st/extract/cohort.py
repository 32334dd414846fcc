"""``vst extract --manifest``: a list of slides, one store each."""

from __future__ import annotations

import csv
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from virchow_st.config import ExtractConfig
from virchow_st.errors import ConfigError, VirchowSTError
from virchow_st.extract.slide import OpenedSlide, open_encoder, open_slide
from virchow_st.runtime.prefetch import ahead
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.runtime.ranks import Rank, SharedWork

COLUMNS = ("patient", "outs", "image", "store")


@dataclass(frozen=True)
class CohortSlide:
    """A line of the list; paths are relative to the list's folder."""

    patient: str
    outs: Path
    image: Path
    store: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a slide: its number of patches, or None and the reason."""

    patient: str
    store: Path
    n_patches: int | None
    text: str


def read_cohort(path: Path) -> list[CohortSlide]:
    """Slides of a CSV file with the columns patient, outs, image and store."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:  # Excel begins with a mark
            rows = csv.DictReader(f)
            if missing := [c for c in COLUMNS if c not in (rows.fieldnames or ())]:
                raise ConfigError(
                    f"{path}: expected the columns {','.join(COLUMNS)}; {missing[0]} is missing"
                )
            folder = path.parent
            slides = []
            for row in rows:
                if empty := [c for c in COLUMNS if not row[c]]:
                    raise ConfigError(
                        f"{path}: line {rows.line_num}: expected a value in every column; "
                        f"{empty[0]} is empty"
                    )
                patient, *places = (row[c] for c in COLUMNS)
                slides.append(CohortSlide(patient, *(folder / place for place in places)))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise ConfigError(f"{path}: cannot be read as CSV ({e})") from None
    if not slides:
        raise ConfigError(f"{path}: expected a slide a line; there is none")
    stores = [slide.store for slide in slides]
    if repeated := [store for store in stores if stores.count(store) > 1]:
        raise ConfigError(f"{path}: expected a store a slide; {repeated[0]} is named twice")
    return slides


def extract_cohort(path: Path, config: ExtractConfig, progress: Progress = SILENT) -> list[Outcome]:
    """Extract every slide of the list; one that fails is reported and the others go on.

    While a slide is encoded, the next one is opened and its counts are read. Under torchrun the
    ranks take slides from one list, the largest image first, each when it is ready for another.

    Returns:
        What became of each slide, in the list's order; of a rank but the first, nothing.
    """
    slides, rank = read_cohort(path), Rank.here()
    order = list(range(len(slides)))
    if rank.count > 1:
        order.sort(key=lambda i: _file_size(slides[i].image), reverse=True)
        config = replace(config, device=rank.device(config.device))
    # The licence is shown once, by the first.
    encoder = open_encoder(config, progress if rank.number == 0 else SILENT)
    if rank.count > 1:
        progress = _OneOfMany(progress, rank)
    work = SharedWork(rank)

    def prepare(item: int) -> _Prepared:
        slide, said = slides[order[item]], _Later()
        try:
            opened = open_slide(
                slide.outs, slide.image, slide.store, slide.patient, config, said, encoder
            )
        except Exception as e:
            return _Prepared(said, e)
        return _Prepared(said, opened)

    with ThreadPoolExecutor(1, "next-slide") as pool:
        for item, prepared in ahead(pool, work.take(len(slides)), prepare):
            slide = slides[order[item]]
            progress.note(f"{slide.patient}: {slide.outs}")
            prepared.said.repeat(progress)
            n_patches, text = _finish(prepared.slide, progress)
            if n_patches is None:
                progress.warn(text)
            elif rank.count > 1:
                progress.note(f"{slide.store}: {text}")
            work.answer(order[item], json.dumps([n_patches, text]))
            del prepared  # its counts may take a gigabyte
    if rank.number != 0:
        return []
    return [
        Outcome(slide.patient, slide.store, *json.loads(answer))
        for slide, answer in zip(slides, work.collect(len(slides)), strict=True)
    ]


class _Later:
    """Keeps what a job says until it may be heard."""

    def __init__(self) -> None:
        self._said: list[tuple[bool, str]] = []

    def note(self, text: str) -> None:
        self._said.append((False, text))

    def warn(self, text: str) -> None:
        self._said.append((True, text))

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        pass

    def repeat(self, progress: Progress) -> None:
        for is_warning, text in self._said:
            (progress.warn if is_warning else progress.note)(text)


@dataclass(frozen=True)
class _Prepared:
    """What was said while a slide was opened, and the slide, or why it cannot be had."""

    said: _Later
    slide: OpenedSlide | Exception


def _finish(slide: OpenedSlide | Exception, progress: Progress) -> tuple[int | None, str]:
    """Number of patches and what became of the slide; None where it failed."""
    try:
        if isinstance(slide, Exception):
            raise slide
        with slide:
            text = "was complete" if slide.counts is None else "complete"
            return len(slide.extract(progress)), text
    except VirchowSTError as e:
        return None, str(e)
    except Exception as e:  # a fault met in one slide must not cost the others their night
        return None, f"{type(e).__name__}: {e}; extract the slide alone with --debug to see where"


_LINE_EVERY_S = 30.0


class _OneOfMany:
    """Plain lines that say which rank they are of, as several write to one terminal."""

    def __init__(self, progress: Progress, rank: Rank) -> None:
        self._progress, self._name = progress, f"rank {rank.number}"
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
    """Bytes; 0 for a file that is not there, which is found out in its turn."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
