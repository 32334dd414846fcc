"""A writer to be killed: run as a script, in a process of its own, until it finishes the store.

``killed_writer.py STORE [FUNCTION NTH WHEN]``: with the last three, the process ends without any
tidying just before or after the ``NTH`` call of a function of ``os``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from tiny_store import JOB, make_manifest, make_records

from virchow_st.store.writer import StoreWriter, finished_job, remove_leftovers

N_PATCHES, BATCH = 12, 2
DIED = 77


def main(path: Path) -> None:
    """Write a store in the same steps as `virchow_st.extract.slide.extract_slide`."""
    records = make_records(N_PATCHES, grid=4, dim=512)
    print("ready", flush=True)
    if finished_job(path) == JOB:
        remove_leftovers(path)
        return
    with StoreWriter(path, JOB) as writer:
        while writer.next_index < N_PATCHES:
            writer.append(records[writer.next_index : writer.next_index + BATCH])
            print(writer.next_index, flush=True)
            time.sleep(0.01)  # as long as a commit, so that not every death comes after the last
        writer.finish(make_manifest(records, 6))


def die_at(function: str, nth: int, when: str) -> None:
    real, calls = getattr(os, function), 0

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and when == "before":
            os._exit(DIED)
        result = real(*arguments, **keywords)
        if calls == nth:
            os._exit(DIED)
        return result

    setattr(os, function, call)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        die_at(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    main(Path(sys.argv[1]))
