"""``vst predict --manifest``: a list of H&E slides → one prediction per slide."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from virchow_st.cloud.place import name_from, place_in, whole_name
from virchow_st.cloud.storage import content_at, size_and_tag, together
from virchow_st.cohort.choose import chosen_executor, state_folder
from virchow_st.cohort.job import Done, Item
from virchow_st.cohort.run import run_cohort
from virchow_st.config import CohortConfig, PredictConfig
from virchow_st.errors import ConfigError
from virchow_st.names import csv_name
from virchow_st.predict.feature_table import write_feature_table
from virchow_st.predict.features import check_features, features_file
from virchow_st.predict.provenance import options_of
from virchow_st.predict.quality import SlideQuality
from virchow_st.predict.remote import is_output, predicted_at, recorded_at
from virchow_st.predict.runs import LoadedRuns, load_runs
from virchow_st.predict.slide import predict_slide
from virchow_st.run.split import read_split
from virchow_st.runtime.lists import read_columns
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.schema import MismatchError, Name, check
from virchow_st.store.patients import patient_name

COLUMNS, OPTIONAL = ("image", "out"), ("mpp", "patient")
_HINT = "predict the slide alone with --debug to see where"


@dataclass(frozen=True)
class PredictedSlide:
    """A line of a list of slides to predict.

    Attributes:
        image: the slide image.
        out: what to write.
        mpp: µm per pixel of the image; 0 to read it from the file.
        patient: the patient's name; empty where the list has none.
    """

    image: Path
    out: Path
    mpp: float
    patient: str


@dataclass(frozen=True)
class Outcome:
    """The outcome of one slide.

    Attributes:
        slide: the line of the list.
        is_done: whether the prediction is there.
        text: ``"complete"``, ``"was complete"``, or the error.
        n_patches: number of patches; None if it failed.
        covered: share of the tissue that lies in a patch; None if it failed.
        quality: of the slide; None if it failed, or was predicted by an older version.
    """

    slide: PredictedSlide
    is_done: bool
    text: str
    n_patches: int | None
    covered: float | None
    quality: SlideQuality | None


def read_slides(path: Path) -> list[PredictedSlide]:
    """Read a list of slides to predict.

    Args:
        path: a table with the columns image and out, and optionally mpp and patient, as
            `virchow_st.runtime.lists` reads it, on disk or at a URL. Paths are relative to the
            file's folder, and ``~`` is the user's home folder; URLs in object storage are places
            too.

    Raises:
        ConfigError: the file cannot be read, a column or a value is missing or is none, it lists no
            slides, or two slides have the same output.
        StorageError: the storage of a URL cannot be reached.
    """
    slides = []
    rows = read_columns(path, "a list of slides", COLUMNS, OPTIONAL, content_at(path))
    for number, values in rows:
        row = {name: csv_name(value) for name, value in values.items()}
        try:
            check({name: value for name, value in row.items() if value}, dict[str, Name])
        except MismatchError as e:
            raise ConfigError(f"{path}: line {number}: {e}; give another name") from None
        mpp = _mpp(row["mpp"])
        if mpp is None:
            raise ConfigError(
                f"{path}: line {number}: mpp: expected µm per pixel, or nothing to read it from "
                f"the file; got {row['mpp']!r:.80}"
            )
        image, out = (place_in(path.parent, row[name]) for name in COLUMNS)
        slides.append(PredictedSlide(image, out, mpp, patient_name(row["patient"])))
    if not slides:
        raise ConfigError(f"{path}: expected a slide per line; there is none")
    outs = Counter(whole_name(slide.out) for slide in slides)
    if repeated := [out for out, times in outs.items() if times > 1]:
        raise ConfigError(f"{path}: expected an output per slide; {repeated[0]} is named twice")
    return slides


def predict_cohort(
    run_paths: Sequence[Path],
    path: Path,
    config: PredictConfig,
    progress: Progress = SILENT,
    cohort: CohortConfig | None = None,
) -> list[Outcome]:
    """Predict every slide of a list; a slide that fails is reported and the others continue.

    Runs and encoder are loaded once a worker. Predictions that are there are left as they are; see
    `virchow_st.cohort.run_cohort` for workers and resumption.

    Args:
        run_paths: one run, or several of the same encoder and panel, for their mean and spread.
        path: the list, as for `read_slides`.
        config: options; ``mpp`` holds for slides for which the list has none. With ``features``,
            ``slides.csv`` in that folder has a row per slide at the end.
        progress: receives notes, warnings and step counts.
        cohort: where the slides are worked on; by default in this process.

    Returns:
        The outcome of each slide, in the list's order.

    Raises:
        ConfigError: the list, a run or the encoder cannot be read.

    Example:
        >>> outcomes = predict_cohort(  # doctest: +SKIP
        ...     [Path("run")], Path("slides.csv"), PredictConfig()
        ... )
    """
    cohort = cohort or CohortConfig()
    runs = [p if str(p).startswith("hf:") else p.absolute() for p in run_paths]
    if cohort.executor != "none":
        path = path.absolute()  # workers may start in another folder
    slides = read_slides(path)
    if config.features:
        config = replace(config, features=str(Path(config.features).absolute()))
        check_features(Path(config.features), [slide.image for slide in slides])
    job, name = PredictJob(tuple(runs), config, path.parent), uuid.uuid4().hex
    folder = state_folder(path)
    with chosen_executor(cohort, config.device, folder) as (executor, n_workers):
        outcomes = run_cohort(
            together(job.item, slides), job, executor, folder, n_workers=n_workers,
            progress=progress, name=name, hint=_HINT,
        )  # fmt: skip
    done = [
        Outcome(
            slide,
            found.state == "done",
            "was complete" if found.state == "done" and found.call != name else found.text,
            found.result.get("n_patches"),
            found.result.get("covered"),
            SlideQuality(**quality) if (quality := found.result.get("quality")) else None,
        )
        for slide, found in zip(slides, outcomes, strict=True)
    ]
    if config.features:
        rows = [
            (o.slide.image, o.slide.patient, o.n_patches or 0, o.quality) for o in done if o.is_done
        ]
        progress.note(f"{write_feature_table(Path(config.features), rows)}: {len(rows)} slides")
    return done


@dataclass
class PredictJob:
    """Prediction of a slide, as a `virchow_st.cohort.Job`.

    Attributes:
        run_paths: of the runs.
        config: options.
        folder: of the list, which the items' paths start from.
        loaded: the runs and their encoder, loaded once a worker.
        trained_on: names of the patients that the runs were trained on.
    """

    run_paths: tuple[Path, ...]
    config: PredictConfig
    folder: Path
    loaded: LoadedRuns | None = field(default=None, repr=False)
    trained_on: frozenset[str] = frozenset()

    def item(self, slide: PredictedSlide) -> Item:
        """A slide as an item; its key is the output's path from the list's folder, or its URL."""
        out, image = (name_from(self.folder, p) for p in (slide.out, slide.image))
        size, changed = size_and_tag(slide.image)
        content = {"image": image, "mpp": slide.mpp, "file": [size, changed]}
        return Item(out, content, size, f"{slide.image}", slide)

    def settings(self) -> Mapping[str, Any]:
        """The options, and the runs with their files."""
        return {"options": options_of(self.config), "runs": [_files(p) for p in self.run_paths]}

    def is_there(self, item: Item) -> bool:
        """Whether the prediction is there, with its features where they are wanted."""
        slide: PredictedSlide = item.data
        return is_output(slide.out) and self._has_features(slide)

    def _has_features(self, slide: PredictedSlide) -> bool:
        folder = self.config.features
        return not folder or features_file(Path(folder), slide.image).exists()

    def begin(self, progress: Progress) -> None:
        """Load the runs and the encoder."""
        if self.loaded is None:
            self.loaded = load_runs(self.run_paths, self.config, progress)
            self.loaded.with_encoder(self.config, progress)
            self.trained_on = frozenset(
                patient_name(patches["patient"])
                for run in self.loaded.runs
                for split in (read_split(run.path / "split.json"),)
                for patches in (*split["train"], *split["validation"])
            )

    def prepare(self, item: Item, progress: Progress) -> None:
        """Nothing: a slide is read as it is predicted."""

    def do(self, item: Item, prepared: None, attempt: int, progress: Progress) -> Done:
        """Predict the slide, or go on with a prediction that was begun."""
        assert self.loaded is not None
        slide: PredictedSlide = item.data
        config = replace(self.config, mpp=slide.mpp or self.config.mpp)
        if is_output(slide.out):
            if (found := recorded_at(slide.out, self.loaded.runs, slide.image, config)) is None:
                raise ConfigError(
                    f"{slide.out}: is already there, and is no prediction of this slide by these "
                    "runs and options; delete it or give another out"
                )
            if not self._has_features(slide):
                raise ConfigError(
                    f"{slide.out}: is already there, and was made without --features; delete it or "
                    "give another out"
                )
            return Done("was complete", found)
        if slide.patient in self.trained_on:
            progress.warn(
                f"{slide.patient} is a patient that the run was trained on; its rates say nothing "
                "about patients that the run has not seen"
            )
        runs = self.loaded.runs
        with predicted_at(slide.out, runs, slide.image, config, progress) as (out, found):
            if found is None:
                done = predict_slide(
                    self.run_paths, slide.image, out, config, progress, self.loaded
                )
        if found is not None:
            return Done("complete", found)
        return Done(
            "complete",
            {
                "patient": slide.patient,
                "n_patches": done.n_patches,
                "covered": round(done.covered, 6),
                "quality": done.quality.as_dict(),
            },
        )


def _mpp(text: str) -> float | None:
    """µm per pixel, 0 for an empty text; None if it is none."""
    try:
        mpp = float(text or 0)
    except ValueError:
        return None
    return mpp if math.isfinite(mpp) and mpp >= 0 else None


def _files(run: Path) -> list[Any]:
    """A run and the size and time of the files of its best checkpoint."""
    try:
        files = sorted((run / "checkpoints" / "best").iterdir())
        return [str(run), *([p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files)]
    except OSError:  # on the Hub; or missing, which loading reports
        return [str(run)]
