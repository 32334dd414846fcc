"""``vst extract --manifest``: a list of slides, one store each."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from virchow_st.config import ExtractConfig
from virchow_st.errors import ConfigError, VirchowSTError
from virchow_st.extract import extract, open_encoder
from virchow_st.progress import SILENT, Progress

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
    """Extract every slide of the list; one that fails is reported and the others go on."""
    slides, outcomes = read_cohort(path), []
    encoder = open_encoder(config, progress)
    for slide in slides:
        progress.note(f"{slide.patient}: {slide.outs}")
        try:
            store = extract(
                slide.outs, slide.image, slide.store, slide.patient, config, progress, encoder
            )
        except VirchowSTError as e:
            progress.warn(str(e))
            outcomes.append(Outcome(slide.patient, slide.store, None, str(e)))
        else:
            outcomes.append(Outcome(slide.patient, slide.store, len(store), "complete"))
    return outcomes
