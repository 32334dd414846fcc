"""Predictions that go to object storage: made in scratch, then uploaded as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virchow_st.cloud.place import Url
from virchow_st.cloud.scratch import held_folder, workplace
from virchow_st.cloud.whole import is_there, peek_root, put_whole
from virchow_st.config import PredictConfig
from virchow_st.errors import ConfigError
from virchow_st.predict.load import Run
from virchow_st.predict.provenance import is_recorded
from virchow_st.predict.runs import load_runs
from virchow_st.predict.slide import predict_slide, tissue_picture
from virchow_st.runtime.atomic import remove
from virchow_st.runtime.progress import SILENT, Progress


def is_output(out: Path) -> bool:
    """Whether something lies at the place of an output, on disk or in object storage."""
    return is_there(out) if isinstance(out, Url) else out.exists()


def recorded_at(
    out: Path, runs: Sequence[Run], image: Path, config: PredictConfig
) -> dict[str, Any] | None:
    """`is_recorded`, of an output on disk or in object storage."""
    if not isinstance(out, Url):
        return is_recorded(out, runs, image, config)
    with held_folder() as folder:
        return is_recorded(peek_root(out, folder), runs, image, config)


@contextmanager
def predicted_at(
    out: Path,
    runs: Sequence[Run],
    image: Path,
    config: PredictConfig,
    progress: Progress = SILENT,
) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Where a prediction is made that goes to ``out``; on leaving, one for a URL is uploaded.

    Args:
        out: the output.
        runs, image, config: of the prediction.
        progress: receives the number of files that are uploaded.

    Yields:
        ``out``, or a path in scratch for a URL; and what `is_recorded` gives of the finished
        prediction that an earlier process left in scratch, None if there is none.

    Raises:
        ConfigError: something lies at the URL.
        StorageError: its storage cannot be reached; the prediction stays in scratch.
    """
    if not isinstance(out, Url):
        yield out, None
        return
    if is_there(out):
        raise ConfigError(f"{out}: is already there; delete it or give another --out")
    with workplace(out) as local:
        picture = tissue_picture(local)
        found = is_recorded(local, runs, image, config) if local.exists() else None
        if found is None:
            remove(local)
            remove(picture)
        else:
            progress.note(f"{out}: was predicted by an earlier command; the upload goes on")
        yield local, found
        put_whole(local, out, progress, {picture.name: picture} if picture.exists() else {})


def predict_to(
    run_paths: Sequence[Path],
    image: Path,
    out: Path,
    config: PredictConfig,
    progress: Progress = SILENT,
) -> tuple[int, float]:
    """`predict_slide` to a path or a URL.

    Returns:
        The number of patches, and the share of the tissue in them.

    Raises:
        ConfigError, SlideError: as for `predict_slide`.
        StorageError: the storage of a URL cannot be reached; what is finished is kept in scratch.
    """
    if not isinstance(out, Url):
        done = predict_slide(run_paths, image, out, config, progress)
        return done.n_patches, done.covered
    loaded = load_runs(run_paths, config, progress)
    with predicted_at(out, loaded.runs, image, config, progress) as (local, found):
        if found is not None:
            return found["n_patches"], found["covered"]
        done = predict_slide(run_paths, image, local, config, progress, loaded)
        return done.n_patches, done.covered
