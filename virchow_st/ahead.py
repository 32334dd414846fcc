"""Batches made by a thread, one ahead of who uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")
Made = TypeVar("Made")


def ahead(
    pool: ThreadPoolExecutor, batches: Sequence[Batch], make: Callable[[Batch], Made]
) -> Iterator[tuple[Batch, Made]]:
    """Each batch with what ``make`` makes of it, the next one already under way in ``pool``."""
    coming: Future[Made] | None = pool.submit(make, batches[0]) if batches else None
    for i, batch in enumerate(batches):
        assert coming is not None
        made = coming.result()
        coming = pool.submit(make, batches[i + 1]) if i + 1 < len(batches) else None
        yield batch, made
