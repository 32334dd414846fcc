"""The lock of a run directory: one writer at a time, which cleans up after a killed one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from virchow_st.errors import ConfigError
from virchow_st.runtime.atomic import finish_replacing, remove_leftovers, settle, whole_folder
from virchow_st.runtime.lock import LOCK_NAME, Lock, locked, remove_dead_lock

CHECKPOINTS, FIGURES = "checkpoints", "figures"
RESULTS_SEAL = "metrics.json"
"""Of the files that an evaluation leaves, the one without which the others are not read."""
FIGURES_SEAL = "visualization_metrics.json"
"""The file of all numbers printed in the figures, which belongs to them."""


def check_new(run: Path) -> None:
    """Raise `ConfigError` if the path exists already."""
    if run.exists():
        raise ConfigError(f"{run}: is already there; give another --run, or --resume it")


class RunLock(ExitStack):
    """The lock of a run directory, for as long as the context lasts: one writer at a time.

    Every command that writes into a run holds it. Commands that only read do not need it, because
    files are replaced as a whole.
    """

    def take(self, run: Path) -> None:
        """Lock an existing run, and clean up what a killed writer left in it.

        Raises:
            ConfigError: another process is writing it, or it cannot be written.
        """
        if not run.is_dir():  # the caller says what is missing
            return
        self.enter_context(locked(run, run / LOCK_NAME))
        if not any((run / name).is_file() for name in ("config.toml", RESULTS_SEAL)):
            return  # of someone else
        finish_replacing(run, RESULTS_SEAL)
        finish_replacing(run / FIGURES, FIGURES_SEAL)
        for folder in (run, run / "maps", run / FIGURES, run / CHECKPOINTS):
            remove_leftovers(folder)
        for name in ("last", "best"):  # after the last epoch, no later checkpoint would do it
            settle(run / CHECKPOINTS / name)
        remove_dead_lock(run)  # of the process that began it

    def take_new(self, run: Path) -> None:
        """Lock the name of a run that does not exist yet, for `new_run`.

        Raises:
            ConfigError: something is there already, or another process is beginning it.
        """
        check_new(run)
        run.parent.mkdir(parents=True, exist_ok=True)
        self.enter_context(locked(run))
        check_new(run)  # another process may have begun and ended it meanwhile

    @contextmanager
    def new_run(self, run: Path) -> Iterator[Path]:
        """Yield a folder to fill, locked from the start, which is renamed to the run when complete.

        Any run directory that exists can therefore be resumed, even if its writer was killed.
        """
        with whole_folder(run) as aside:
            lock = Lock(run, aside / LOCK_NAME)
            self.callback(lock.release)
            yield aside
        lock.moved(run / LOCK_NAME)
