"""Handling of Ctrl-C and SIGTERM (which schedulers send before they kill a job)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM; a `KeyboardInterrupt`, so that the same code cleans up after both."""


def exit_code(interrupt: BaseException) -> int:
    """Exit code after an interruption, 128 + signal: 143 after SIGTERM, 130 after Ctrl-C."""
    is_terminated = isinstance(interrupt, Terminated) or isinstance(interrupt.__cause__, Terminated)
    return 128 + (signal.SIGTERM if is_terminated else signal.SIGINT)


def raise_on_sigterm() -> None:
    """Make SIGTERM raise `Terminated`, unless the parent process had SIGTERM ignored."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


class Stop:
    """True once a signal has asked the job to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def interrupt(self) -> KeyboardInterrupt:
        """The exception to raise when the job has stopped."""
        return Terminated() if self.signal == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def stop_when_ready(say: Callable[[], None]) -> Iterator[Stop]:
    """Only record the first Ctrl-C or SIGTERM; a second one interrupts at once.

    Has no effect outside the main thread, which alone receives signals, or if the program has
    installed its own handler.

    Args:
        say: called at the first signal, to tell that it was heard.
    """
    stop = Stop()
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    ours = (
        [number for number, handler in usual.items() if signal.getsignal(number) is handler]
        if threading.current_thread() is threading.main_thread()
        else []
    )

    def restore() -> None:
        for number in ours:
            signal.signal(number, usual[number])

    def remember(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()
        say()

    for number in ours:
        signal.signal(number, remember)
    try:
        yield stop
    finally:
        restore()
