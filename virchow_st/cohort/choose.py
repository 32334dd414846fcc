"""The executor that a command's options ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virchow_st.cloud.place import Url
from virchow_st.cohort.run import Executor
from virchow_st.config import CohortConfig
from virchow_st.errors import ConfigError
from virchow_st.runtime.devices import visible_gpus


def state_folder(manifest: Path) -> Path:
    """Where the workers of a list of slides meet: beside the list.

    >>> state_folder(Path("study/slides.csv")).as_posix()
    'study/slides.cohort'
    """
    return manifest.with_name(f"{manifest.stem}.cohort")


@contextmanager
def chosen_executor(
    config: CohortConfig, device: str, folder: Path
) -> Iterator[tuple[Executor | None, int]]:
    """The executor, None for this process, and its number of workers.

    Args:
        config: what was asked for.
        device: of the job; ``auto`` and ``cuda`` give each worker of this machine its own GPU.
        folder: of the cohort's state, where Slurm's scripts and logs go; of a URL, a folder of the
            same name in the current one, since submitit needs a disk.

    Raises:
        ConfigError: the executor is not installed or not at hand, or a number of workers is
            missing.
    """
    if config.executor == "none":
        if config.workers > 1:
            raise ConfigError(
                f"workers: {config.workers} need an executor; give --executor local, slurm or ray"
            )
        yield None, 1
    elif config.executor == "local":
        from virchow_st.cohort.on_local import LocalExecutor

        gpus = visible_gpus() if device in ("auto", "cuda") else []
        n_workers = config.workers or max(1, len(gpus))
        local = LocalExecutor(n_workers, gpus)
        try:
            yield local, n_workers
        finally:
            local.shutdown()
    elif config.executor == "slurm":
        from virchow_st.cohort.on_slurm import SlurmExecutor

        if not config.workers:
            raise ConfigError("workers: expected the number of Slurm jobs; give --workers")
        on_disk = Path.cwd() / folder.name if isinstance(folder, Url) else folder
        yield SlurmExecutor(on_disk / "slurm", sbatch_options(config.slurm)), config.workers
    else:
        from virchow_st.cohort.on_ray import RayExecutor

        ray = RayExecutor(config.ray_address, config.ray_gpus, config.workers)
        try:
            yield ray, ray.n_workers
        finally:
            ray.shutdown()


def sbatch_options(given: tuple[str, ...]) -> dict[str, str]:
    """Options of sbatch by name.

    >>> sbatch_options(("partition=gpu", "--gpus=1"))
    {'partition': 'gpu', 'gpus': '1'}

    Raises:
        ConfigError: one is not NAME=VALUE.
    """
    found = {}
    for text in given:
        name, equals, value = text.strip().removeprefix("--").partition("=")
        if not (name and equals and value):
            raise ConfigError(f"slurm: expected NAME=VALUE, such as partition=gpu; got {text!r}")
        found[name] = value
    return found
