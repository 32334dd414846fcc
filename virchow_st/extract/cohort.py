"""``vst extract --manifest``: a list of slides → one store per slide."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from virchow_st.cloud.place import Url, name_from, place_in, whole_name
from virchow_st.cloud.storage import content_at, size_and_tag, together
from virchow_st.cloud.whole import is_there
from virchow_st.cohort.choose import chosen_executor, state_folder
from virchow_st.cohort.job import Done, Item
from virchow_st.cohort.run import run_cohort
from virchow_st.config import CohortConfig, ExtractConfig
from virchow_st.errors import ConfigError, SlideError, StorageError
from virchow_st.extract.remote import RemoteSlide, outs_files
from virchow_st.extract.slide import open_encoder
from virchow_st.models.encoders.base import Encoder
from virchow_st.names import csv_name
from virchow_st.runtime.distributed import Processes
from virchow_st.runtime.lists import read_columns
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.schema import MismatchError, Name, check
from virchow_st.slide.space_ranger import find_files
from virchow_st.store.manifest import MANIFEST
from virchow_st.store.patients import alike_warnings, patient_name

COLUMNS = ("patient", "outs", "image", "store")
_HINT = "extract the slide alone with --debug to see where"


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
        path: text separated by commas, semicolons or tabs (see `virchow_st.runtime.lists`), on disk
            or at a URL. Spaces
            around values are stripped, and so is the ``'`` that protects a value from being
            computed by a spreadsheet; paths are relative to the file's folder, and ``~`` is the
            user's home folder; URLs in object storage are places too.

    Raises:
        ConfigError: the file cannot be read, a column or a value is missing, it lists no slides,
            or two slides have the same store.
        StorageError: the storage of a URL cannot be reached.
    """
    folder, slides = path.parent, []
    rows = read_columns(path, "a list of slides", COLUMNS, data=content_at(path))
    for number, values in rows:
        row = {name: csv_name(value) for name, value in values.items()}
        try:
            check(row, dict[str, Name])
        except MismatchError as e:
            raise ConfigError(f"{path}: line {number}: {e}; give another name") from None
        places = (place_in(folder, row[name]) for name in COLUMNS[1:])
        slides.append(CohortSlide(patient_name(row["patient"]), *places))
    if not slides:
        raise ConfigError(f"{path}: expected a slide per line; there is none")
    stores = Counter(whole_name(slide.store) for slide in slides)
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
        other = first.setdefault(_real_name(slide.outs), slide)
        if other is not slide:
            whose = " and ".join(dict.fromkeys((other.patient, slide.patient)))
            warnings.append(
                f"{path}: {slide.outs} is listed twice, for {whose}; vst train refuses to use both "
                f"stores together"
            )
    return warnings


def extract_cohort(
    path: Path,
    config: ExtractConfig,
    progress: Progress = SILENT,
    cohort: CohortConfig | None = None,
) -> list[Outcome]:
    """Extract every slide of a list; a slide that fails is reported and the others continue.

    While a slide is encoded, the next one is opened and its counts are read. Slides that are
    finished are left as they are; see `virchow_st.cohort.run_cohort` for workers and resumption.

    Args:
        path: the list, as for `read_cohort`.
        config: encoder and options.
        progress: receives notes, warnings and step counts.
        cohort: where the slides are worked on; by default in this process.

    Returns:
        The outcome of each slide, in the list's order; in processes of torchrun other than the
        first of a machine, an empty list.

    Raises:
        ConfigError: the list cannot be read, or the encoder is not available.

    Example:
        >>> outcomes = extract_cohort(Path("slides.csv"), ExtractConfig())  # doctest: +SKIP
    """
    cohort = cohort or CohortConfig()
    processes = Processes.here()
    if processes.size > 1:
        if processes.local_rank:
            return []
        cohort = replace(cohort, executor="local", workers=processes.local_size)
        progress.warn(
            f"torchrun is no longer needed to share out a list; give --executor local --workers "
            f"{processes.local_size} instead, once on every machine"
        )
    if cohort.executor != "none":
        path = path.absolute()  # workers may start in another folder
    slides = read_cohort(path)
    for warning in doubtful(path, slides):
        progress.warn(warning)
    job, name = ExtractJob(config, path.parent), uuid.uuid4().hex
    items = together(job.item, slides)
    folder = state_folder(path)
    with chosen_executor(cohort, config.device, folder) as (executor, n_workers):
        outcomes = run_cohort(
            items, job, executor, folder, n_workers=n_workers, progress=progress, name=name,
            hint=_HINT,
        )  # fmt: skip
    return [
        Outcome(
            slide.patient,
            slide.store,
            found.result.get("n_patches"),
            "was complete" if found.state == "done" and found.call != name else found.text,
        )
        for slide, found in zip(slides, outcomes, strict=True)
    ]


@dataclass
class ExtractJob:
    """Extraction of a slide, as a `virchow_st.cohort.Job`.

    Attributes:
        config: encoder and options.
        folder: of the list, which the items' paths start from.
        encoder: loaded once a worker.
    """

    config: ExtractConfig
    folder: Path
    encoder: Encoder | None = field(default=None, repr=False)

    def item(self, slide: CohortSlide) -> Item:
        """A slide as an item; its key is the store's path from the list's folder, or its URL."""
        paths = {name: name_from(self.folder, getattr(slide, name)) for name in COLUMNS[1:]}
        image = size_and_tag(slide.image)
        matrix = _matrix_size_and_tag(slide.outs, self.config.matrix)
        content = {"patient": slide.patient, **paths, "files": [*image, *matrix]}
        return Item(paths["store"], content, image[0], f"{slide.patient}: {slide.outs}", slide)

    def settings(self) -> Mapping[str, Any]:
        """The options, without those that leave the result as it is."""
        return {name: v for name, v in asdict(self.config).items() if name != "device"}

    def is_there(self, item: Item) -> bool:
        """Whether the finished store is there."""
        slide: CohortSlide = item.data
        if isinstance(slide.store, Url):
            return is_there(slide.store)
        return (slide.store / MANIFEST).is_file()

    def begin(self, progress: Progress) -> None:
        """Load the encoder."""
        if self.encoder is None:
            self.encoder = open_encoder(self.config, progress)

    def prepare(self, item: Item, progress: Progress) -> RemoteSlide:
        """Open and check the slide, and read its counts."""
        slide: CohortSlide = item.data
        return RemoteSlide(
            slide.outs, slide.image, slide.store, slide.patient, self.config, progress, self.encoder
        )

    def do(self, item: Item, prepared: RemoteSlide, attempt: int, progress: Progress) -> Done:
        """Encode the slide and write its store, or go on with one that was begun."""
        with prepared as slide:
            text, n_patches, _ = slide.extract(progress)
            return Done(text, {"n_patches": n_patches})


def _real_name(path: Path) -> str:
    return str(path) if isinstance(path, Url) else os.path.realpath(path)


def _matrix_size_and_tag(outs: Path, matrix: str) -> tuple[int, int | str]:
    """`size_and_tag` of the count matrix; what is wrong is reported when the slide is opened."""
    try:
        if not isinstance(outs, Url):
            return size_and_tag(find_files(outs, matrix).matrix)
        found = [one for name, one in outs_files(outs, matrix).items() if name.endswith(".h5")]
    except (SlideError, StorageError):
        return 0, 0
    return (found[0].size, found[0].tag) if len(found) == 1 else (0, 0)
