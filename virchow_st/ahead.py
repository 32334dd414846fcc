"""Batches made by threads, ahead of who uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")
Made = TypeVar("Made")


def ahead(
    pool: ThreadPoolExecutor,
    batches: Sequence[Batch],
    make: Callable[[Batch], Made],
    n_ahead: int = 1,
) -> Iterator[tuple[Batch, Made]]:
    """Each batch with what ``make`` makes of it, the next ``n_ahead`` under way in ``pool``."""
    coming: deque[Future[Made]] = deque(pool.submit(make, batch) for batch in batches[:n_ahead])
    for i, batch in enumerate(batches):
        made = coming.popleft().result()
        if i + n_ahead < len(batches):
            coming.append(pool.submit(make, batches[i + n_ahead]))
        yield batch, made
