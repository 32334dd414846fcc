"""Creates the run directory of ``vst train``, and checks that a resumed run is unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError, to_write_or
from virchow_st.metrics.appearance import Appearance
from virchow_st.run.appearance import write_appearance
from virchow_st.run.exposure import CohortExposure
from virchow_st.run.integrity import check_files, file_hashes
from virchow_st.run.lock import CHECKPOINTS, RunLock
from virchow_st.run.split import Split
from virchow_st.run.state import read_state
from virchow_st.run.transcriptome import RunGenes
from virchow_st.runtime.atomic import settled, write_text
from virchow_st.settings import from_toml, to_toml
from virchow_st.store.reader import Store

_ELSEWHERE = ("device", "compile")  # settings that a resumed run may have otherwise


def is_begun(run: Path) -> bool:
    """Whether the folder holds a run that can be resumed."""
    return settled(run / CHECKPOINTS / "last").exists()


def check_resumable(run: Path, config: TrainConfig, split: Split) -> None:
    """Raise `ConfigError` unless the folder is a run with these settings and stores."""
    if not is_begun(run):
        raise nothing_to_resume(run)
    check_same_options(run, config)
    check_files(run, read_state(run / CHECKPOINTS / "last"))
    if Split.read(run / "split.json") != split:
        raise ConfigError(f"{run}: a store was extracted again after the run began; train again")


def check_same_options(run: Path, config: TrainConfig) -> None:
    """Raise `ConfigError` unless the run was started with these settings."""
    if not (run / "config.toml").is_file():
        raise nothing_to_resume(run)
    begun = from_toml(TrainConfig, run / "config.toml")
    if replace(begun, **{name: getattr(config, name) for name in _ELSEWHERE}) != config:
        raise ConfigError(
            f"{run}: was begun with other options; repeat those, or give another --run"
        )


def nothing_to_resume(run: Path) -> ConfigError:
    """The error for a folder without a run to resume."""
    return ConfigError(f"{run}: nothing to resume there; delete it and train without --resume")


def begin(
    run: Path,
    config: TrainConfig,
    split: Split,
    stores: Sequence[Store],
    genes: RunGenes,
    save: Callable[[Path, dict[str, str], str | None], None],
    lock: RunLock,
    exposure: CohortExposure | None = None,
    looks: Sequence[Appearance] = (),
) -> None:
    """Create a run directory with all files that a run starts with.

    ``save`` writes the first checkpoints into a folder, with the hashes of the run's files and of
    its exposure.

    Args:
        run: directory to write; it is there whole or not at all.
        config, split, stores, genes: what fixes the run.
        save: writes ``checkpoints`` into the folder that it is given.
        lock: that has taken the run's name.
        exposure: of the training slides; None for 1 in all tissue.
        looks: how the slides of each training patient look; nothing is written of none.

    Raises:
        ConfigError: it cannot be written; nothing is left.
    """
    text = f"{to_toml(config)}\n# Hash of split.json: {split.xxh64(stores)}\n"
    try:
        with lock.new_run(run) as aside:
            write_text(aside / "config.toml", text)
            split.write(aside / "split.json", stores)
            genes.write(aside)
            if looks:
                write_appearance(aside, looks)
            of_exposure = None if exposure is None else exposure.write(aside, stores)
            save(aside, file_hashes(aside), of_exposure)
    except OSError as e:
        raise ConfigError(
            f"{run}: cannot be written ({e.strerror}); no run was started; "
            f"{to_write_or(e, 'give another --run')}, and train again"
        ) from None
