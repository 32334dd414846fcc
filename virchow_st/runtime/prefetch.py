"""Things made by threads, ahead of who uses them."""

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
    """Each item with what ``make`` makes of it, the next ``n_ahead`` under way in ``pool``.

    Items are taken from ``items`` as they get under way, not all at once.
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
