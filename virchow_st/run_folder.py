"""A run directory of ``vst train``: begun whole or not at all, and resumed only as it was begun."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from virchow_st.config import TrainConfig, from_toml, to_toml
from virchow_st.errors import ConfigError
from virchow_st.folds import Split
from virchow_st.panel import Panel
from virchow_st.runtime.atomic import (
    finish_replacing,
    remove_leftovers,
    settled,
    whole_folder,
    write_text,
)
from virchow_st.runtime.lock import NAME, Lock, locked
from virchow_st.store.reader import Store

CHECKPOINTS = "checkpoints"
RESULTS_SEAL = "metrics.json"
"""Of the files that an evaluation leaves, the one without which the others are not read."""
_ELSEWHERE = ("device", "compile")  # settings that a resumed run may have otherwise


def is_begun(run: Path) -> bool:
    """Whether there is a run to resume."""
    return settled(run / CHECKPOINTS / "last").exists()


class RunLock(ExitStack):
    """The lock of a run directory, for as long as the context lasts: one writer at a time.

    Every command that writes into a run holds it; those that only read it do not, since all that a
    run holds is replaced whole.
    """

    def take(self, run: Path) -> None:
        """Lock a run that is there, and tidy up what a writer that was killed left in it.

        Raises:
            ConfigError: another process is writing it, or it cannot be written.
        """
        if not run.is_dir():  # the caller says what is missing
            return
        self.enter_context(locked(run, run / NAME))
        if not any((run / name).is_file() for name in ("config.toml", RESULTS_SEAL)):
            return  # of someone else
        finish_replacing(run, RESULTS_SEAL)
        for folder in (run, run / "maps", run / "figures", run / CHECKPOINTS):
            remove_leftovers(folder)

    def take_new(self, run: Path) -> None:
        """Lock the name of a run that is not there yet, for `new_run`.

        Raises:
            ConfigError: something is there already, or another process is beginning it.
        """
        check_new(run)
        run.parent.mkdir(parents=True, exist_ok=True)
        self.enter_context(locked(run))
        check_new(run)  # another process may have begun and ended it meanwhile

    @contextmanager
    def new_run(self, run: Path) -> Iterator[Path]:
        """A folder to fill, which becomes the run when it is whole, locked from the first moment.

        So a run that is there can be resumed, whenever its writer was killed.
        """
        with whole_folder(run) as aside:
            lock = Lock(run, aside / NAME)
            self.callback(lock.release)
            yield aside
        lock.moved(run / NAME)


def check_new(run: Path) -> None:
    """Raise `ConfigError` where something is there already."""
    if run.exists():
        raise ConfigError(f"{run}: is already there; give another --run, or --resume it")


def check_resumable(run: Path, config: TrainConfig, split: Split) -> None:
    """Raise `ConfigError` unless a run was begun there with these settings and stores."""
    if not is_begun(run):
        raise nothing_to_resume(run)
    check_same_options(run, config)
    if Split.read(run / "split.json") != split:
        raise ConfigError(f"{run}: a store was written anew since it was begun; train anew")


def check_same_options(run: Path, config: TrainConfig) -> None:
    """Raise `ConfigError` unless the directory was begun with these settings."""
    if not (run / "config.toml").is_file():
        raise nothing_to_resume(run)
    begun = from_toml(TrainConfig, run / "config.toml")
    if replace(begun, **{name: getattr(config, name) for name in _ELSEWHERE}) != config:
        raise ConfigError(
            f"{run}: was begun with other options; repeat those, or give another --run"
        )


def nothing_to_resume(run: Path) -> ConfigError:
    """The error where no run was begun."""
    return ConfigError(f"{run}: nothing to resume there; delete it and train without --resume")


def begin(
    run: Path,
    config: TrainConfig,
    split: Split,
    stores: Sequence[Store],
    panel: Panel,
    save: Callable[[Path], None],
    lock: RunLock,
) -> None:
    """Write all that a run begins with; ``save`` writes the first checkpoints into a folder.

    Args:
        run: directory to write; it is there whole or not at all.
        config, split, stores, panel: what fixes the run.
        save: writes ``checkpoints`` into the folder that it is given.
        lock: that has taken the run's name.

    Raises:
        ConfigError: it cannot be written; nothing is left.
    """
    text = f"{to_toml(config)}\n# Hash of split.json: {split.xxh64(stores)}\n"
    try:
        with lock.new_run(run) as aside:
            write_text(aside / "config.toml", text)
            split.write(aside / "split.json", stores)
            panel.write(aside / "panel.tsv")
            save(aside)
    except OSError as e:
        raise ConfigError(
            f"{run}: cannot be written ({e.strerror}); nothing was begun; make room or give "
            "another --run, and train again"
        ) from None
