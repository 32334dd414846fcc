"""Ctrl-C and SIGTERM, which schedulers send before they kill, that wait for a good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be: what tidies up after the one does after the other."""


def exit_code(interrupt: BaseException) -> int:
    """128 and the signal's number, as shells have it: 143 after SIGTERM, 130 after Ctrl-C."""
    is_terminated = isinstance(interrupt, Terminated) or isinstance(interrupt.__cause__, Terminated)
    return 128 + (signal.SIGTERM if is_terminated else signal.SIGINT)


def raise_on_sigterm() -> None:
    """Let SIGTERM raise `Terminated`, unless whoever started the process had it ignored."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


class Stop:
    """Whether a signal asked the job to stop; false until then."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def interrupt(self) -> KeyboardInterrupt:
        """What to raise when the job has stopped."""
        return Terminated() if self.signal == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def stop_when_ready(say: Callable[[], None]) -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM only be remembered; the second interrupts as ever.

    It changes nothing outside the main thread, which alone gets signals, nor where the program has
    a handler of its own.

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
