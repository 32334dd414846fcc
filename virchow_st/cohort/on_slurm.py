"""Workers as Slurm jobs, by way of submitit (https://github.com/facebookincubator/submitit)."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from virchow_st.cohort.run import WorkerLostError
from virchow_st.errors import ConfigError
from virchow_st.runtime.interrupt import raise_on_sigterm

_REQUEUED_AT_MOST = 1000
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class SlurmExecutor:
    """Starts each worker as a Slurm job, which is requeued before its time limit.

    submitit has Slurm send SIGUSR2 to a job 90 s before its limit. The worker then gives its items
    back, and the job is queued again. On SIGTERM, which comes with ``scancel`` and preemption, it
    gives them back and ends.

    Args:
        folder: for submitit's scripts, pickles and logs, on a disk that all nodes share.
        options: sbatch's options without ``--``, such as ``{"partition": "gpu", "gpus": "1"}``.
        cluster: ``slurm``, or ``local`` for jobs as processes of this machine, for tests.

    Raises:
        ConfigError: submitit or Slurm's commands are missing, or a time is none.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], cluster: str = "slurm") -> None:
        try:
            import submitit
        except ModuleNotFoundError:
            raise ConfigError(
                "--executor: slurm needs submitit; pip install 'virchow_st[cluster]'"
            ) from None
        given = dict(options)
        limit = minutes(given.pop("time", "4:00:00"))
        self._jobs: Any
        if cluster == "local":
            self._jobs = submitit.LocalExecutor(folder)
            self._jobs.update_parameters(timeout_min=limit)
            return
        if missing := [name for name in ("sbatch", "srun") if shutil.which(name) is None]:
            raise ConfigError(
                f"--executor: slurm needs {missing[0]}, which is not on the PATH; start the "
                "command on a login node of the cluster, or choose --executor local"
            )
        self._jobs = submitit.SlurmExecutor(folder, max_num_timeout=_REQUEUED_AT_MOST)
        given.setdefault("job-name", "vst")
        name = given.pop("job-name")
        self._jobs.update_parameters(job_name=name, time=limit, additional_parameters=given)

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> SlurmWorker:
        """Call a function in a new job."""
        return SlurmWorker(self._jobs.submit(Requeued(function), *arguments))


class Requeued:
    """A function that submitit queues again when its job is stopped before its time limit."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; SIGTERM interrupts it, where submitit would pass over it."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise_on_sigterm()
        try:
            return self._function(*arguments)
        except KeyboardInterrupt:
            os._exit(128 + signal.SIGTERM)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit queues in place of the job that is stopped: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


class SlurmWorker:
    """A job as a future."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self._is_cancelled = False

    def done(self) -> bool:
        """Whether the job has ended, or was cancelled; Slurm is asked about once a minute."""
        return self._is_cancelled or self._job.done()

    def exception(self) -> BaseException | None:
        """What the job ended with."""
        if not self._job.paths.result_pickle.exists():
            # submitit would wait for it; where it comes late, another worker is started in vain.
            return WorkerLostError(f"Slurm job {self._job.job_id} ended without a result")
        error = self._job.exception()
        if error is not None:
            last = str(error).strip().splitlines()[-1:] or [""]
            return RuntimeError(f"Slurm job {self._job.job_id}: {last[0]}")
        return None

    def result(self) -> Any:
        """What the function returned."""
        return self._job.result()

    def cancel(self) -> None:
        """Cancel the job; its worker gives its items back within Slurm's KillWait."""
        self._is_cancelled = True
        self._job.cancel(check=False)


def minutes(text: str) -> int:
    """A time of sbatch in minutes, rounded up.

    >>> minutes("90"), minutes("4:00:00"), minutes("1-12"), minutes("2:30")
    (90, 240, 2160, 3)

    Raises:
        ConfigError: it is none of sbatch's times.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"slurm: expected a time such as 90, 4:00:00 or 1-12; got {text!r}")
    days, *rest = (int(part) if part else None for part in found.groups())
    numbers = [number for number in rest if number is not None]
    units = (3600, 60, 1) if days is not None or len(numbers) == 3 else (60, 1)
    seconds = sum(number * unit for number, unit in zip(numbers, units, strict=False))
    return max(1, -(-(seconds + 86400 * (days or 0)) // 60))
