"""Computes items in threads, ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(
    pool: ThreadPoolExecutor,
    items: Iterable[Item],
    make: Callable[[Item], Made],
    n_ahead: int = 1,
) -> Iterator[tuple[Item, Made]]:
    """Yield each item with ``make(item)``; the next ``n_ahead`` are computed in ``pool`` meanwhile.

    Items are taken from ``items`` only when their computation starts.
    """
    coming: deque[tuple[Item, Future[Made]]] = deque()
    for item in items:
        coming.append((item, pool.submit(make, item)))
        if len(coming) > n_ahead:
            first, made = coming.popleft()
            yield first, made.result()
    while coming:
        first, made = coming.popleft()
        yield first, made.result()
