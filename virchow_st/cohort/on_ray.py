"""Workers as Ray tasks, on a Ray cluster or on this machine (https://docs.ray.io)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from virchow_st.cohort.run import WorkerLostError
from virchow_st.errors import ConfigError


class RayExecutor:
    """Starts each worker as a task of Ray Core.

    Ray itself starts a task again whose process or node died; what it gives up is started again by
    `virchow_st.cohort.run_cohort`.

    Args:
        address: of a cluster, ``auto`` for the one that this node belongs to, or empty to start
            Ray on this machine.
        gpus: GPUs per worker where there are any; with 0.5 two workers share one.
        n_workers: number of workers; 0 for as many as the GPUs suffice for, or 1 without any.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str, gpus: float, n_workers: int) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError:
            raise ConfigError(
                "--executor: ray needs Ray; pip install 'virchow_st[cluster]'"
            ) from None
        self._ray = ray
        handler = signal.getsignal(signal.SIGTERM)
        self._is_own = not ray.is_initialized()
        if self._is_own:
            where: dict[str, Any] = {"address": address} if address else {
                "num_cpus": max(n_workers, os.cpu_count() or 1), "include_dashboard": False
            }  # fmt: skip
            try:
                ray.init(**where, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as e:
                said = " ".join(str(e).split())
                raise ConfigError(
                    f"--executor: Ray at {address or 'this machine'} cannot be reached "
                    f"({said:.200}); give the cluster's --ray-address, or leave it out to start "
                    "Ray here"
                ) from None
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place
        there = float(ray.cluster_resources().get("GPU", 0.0))
        gpus = gpus if there else 0.0
        self.n_workers = n_workers or (max(1, int(there / gpus)) if gpus else 1)
        self._options = {"num_gpus": gpus, "num_cpus": 1, "max_retries": 3}

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> RayWorker:
        """Call a function in a task."""
        task = self._ray.remote(function).options(**self._options)
        return RayWorker(self._ray, task.remote(*arguments))

    def shutdown(self) -> None:
        """Leave the cluster, or stop the one that was started here."""
        if self._is_own:
            self._ray.shutdown()


class RayWorker:
    """A task as a future."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def done(self) -> bool:
        """Whether the task has ended."""
        return bool(self._ray.wait([self._reference], timeout=0)[0])

    def exception(self) -> BaseException | None:
        """What the task ended with."""
        errors = self._ray.exceptions
        try:
            self.result()
        except (
            errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError,
            errors.ObjectLostError, errors.TaskCancelledError,
        ) as e:  # fmt: skip
            return WorkerLostError(f"Ray: {type(e).__name__}")
        except errors.RayTaskError as e:
            return e.cause if isinstance(e.cause, Exception) else e
        except Exception as e:
            return e
        return None

    def result(self) -> Any:
        """What the function returned."""
        return self._ray.get(self._reference)

    def cancel(self) -> None:
        """Interrupt the task as Ctrl-C would; it gives its items back."""
        self._ray.cancel(self._reference, force=False)
