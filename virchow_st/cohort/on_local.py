"""Workers as processes of this machine, each with a GPU of its own where there are any."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from virchow_st.cohort.run import WorkerLostError
from virchow_st.runtime.devices import core_count
from virchow_st.runtime.interrupt import raise_on_sigterm

_TO_TIDY_S = 60.0
_THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class LocalExecutor:
    """Starts each worker as a process of its own; unlike a process pool, one that dies harms none.

    Processes are spawned, since CUDA and threads do not survive a fork. A worker whose parent dies
    stops as if it had got SIGTERM.

    Args:
        n_workers: the most that run at a time; the cores are divided among them.
        gpus: names of CUDA devices as in ``CUDA_VISIBLE_DEVICES``; each worker sees one of them.
    """

    def __init__(self, n_workers: int, gpus: Sequence[str] = ()) -> None:
        self._gpus = gpus
        self._started: list[LocalWorker] = []
        self._slots = list(range(n_workers))
        self._environment = {
            name: str(max(1, core_count() // n_workers))
            for name in _THREADS
            if n_workers > 1 and name not in os.environ
        }

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> LocalWorker:
        """Call a function in a new process."""
        slot = self._slots.pop(0)
        environment = dict(self._environment)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        payload = pickle.dumps((function, arguments))
        return LocalWorker(payload, environment, self._started, lambda: self._slots.append(slot))

    def shutdown(self) -> None:
        """Stop the workers that still run, and wait for them."""
        running = list(self._started)
        for worker in running:
            worker.cancel()
        for worker in running:
            worker.process.join(_TO_TIDY_S)


class LocalWorker(Future[Any]):
    """A process that calls a function, as a future; `cancel` sends it SIGTERM."""

    def __init__(
        self,
        payload: bytes,
        environment: dict[str, str],
        started: list[LocalWorker],
        ended: Callable[[], None],
    ) -> None:
        super().__init__()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, payload, environment), daemon=True
        )
        # A worker that is just starting would end with a traceback at Ctrl-C.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
            started.append(self)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        self._started, self._ended = started, ended
        threading.Thread(target=self._watch, args=(ours,), daemon=True).start()

    def cancel(self) -> bool:
        """Ask the worker to stop; it gives its items back."""
        if self.done():
            return False
        self.process.terminate()
        return True

    def _watch(self, pipe: Connection) -> None:
        answer: tuple[bool, Any] | None = None
        wait([pipe, self.process.sentinel])
        with contextlib.suppress(EOFError, OSError, pickle.PickleError):
            if pipe.poll():
                answer = pipe.recv()
        self.process.join()
        self._started.remove(self)
        self._ended()
        if answer is None:
            code = self.process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self.set_exception(WorkerLostError(f"worker {self.process.pid} {how}"))
        elif answer[0]:
            self.set_result(answer[1])
        else:
            self.set_exception(answer[1])


def _serve(pipe: Connection, payload: bytes, environment: dict[str, str]) -> None:
    """Call the function and send what it returns or raises."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops all
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        raise_on_sigterm()
        os.environ.update(environment)  # before torch and CUDA are loaded by what is unpickled
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        try:
            function, arguments = pickle.loads(payload)
            answer = True, function(*arguments)
        except Exception as e:
            answer = False, _sendable(e)
        # From here on a signal has nothing to interrupt but Python's own end, which would tell of
        # it in a traceback.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        pipe.send(answer)
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(128 + signal.SIGTERM)


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of a class that cannot be made anew from its message
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
