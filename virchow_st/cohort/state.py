"""The folder in which the workers of a cohort meet, and the table of what became of each item.

``claims/`` holds who does what (`virchow_st.cohort.lease`), ``marks/`` one file per item that is
done or failed, written whole by the worker that did it, and ``cohort.jsonl`` the same in one table,
a line per item. Only the marks count; the table is made from them.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from virchow_st.cohort.job import Item, Outcome
from virchow_st.errors import ConfigError, to_write_or
from virchow_st.names import file_names
from virchow_st.runtime.atomic import write_text
from virchow_st.runtime.lock import BusyError, locked
from virchow_st.schema import check, parse_json

TABLE = "cohort.jsonl"


class _Mark(TypedDict):
    item: str
    state: Literal["done", "failed"]
    text: str
    fingerprint: str
    call: str
    result: dict[str, Any]
    warnings: list[str]
    host: str
    process: int
    seconds: float
    attempt: int
    finished: NotRequired[str]


class CohortState:
    """The state of a cohort on disk.

    Args:
        folder: made if it is not there; on a disk that all workers share.
        items: of the cohort.
        settings: of the job, see `Job.settings`.

    Raises:
        ConfigError: two items have one key, or the folder cannot be written.
    """

    def __init__(self, folder: Path, items: Sequence[Item], settings: Mapping[str, Any]) -> None:
        keys = [item.key for item in items]
        if repeated := [key for key, times in Counter(keys).items() if times > 1]:
            raise ConfigError(f"{folder}: expected a name per item; {repeated[0]} comes twice")
        self.folder, self.items = folder, items
        self.file_of = dict(zip(keys, file_names(keys), strict=True))
        self.fingerprint_of = {item.key: item.fingerprint(settings) for item in items}
        self.claims, self._marks = folder / "claims", folder / "marks"
        try:
            for path in (self.claims, self._marks):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigError(
                f"{folder}: cannot be written ({e.strerror}); {to_write_or(e)}"
            ) from None

    # --- marks ----------------------------------------------------------------------------------

    def settled(self) -> set[str]:
        """File names of the items that are done or failed."""
        return {
            name.removesuffix(".json")
            for name in os.listdir(self._marks)
            if name.endswith(".json") and not name.startswith(".")
        }

    def is_settled(self, key: str) -> bool:
        """Whether an item is done or failed."""
        return self._mark(key).exists()

    def read(self, key: str) -> Outcome | None:
        """What became of an item; None if it is not settled, or was with another content."""
        try:
            found: _Mark = check(parse_json(self._mark(key).read_text("utf-8")), _Mark)
        except (OSError, ValueError):  # of a writer on a full disk, or of someone else: done anew
            return None
        if found["item"] != key or found["fingerprint"] != self.fingerprint_of[key]:
            return None
        return Outcome(
            key, found["state"], found["text"], found["result"], tuple(found["warnings"]),
            found["host"], found["process"], found["seconds"], found["attempt"], found["call"],
        )  # fmt: skip

    def write(self, outcome: Outcome) -> None:
        """Mark an item as done or failed; the mark is on the disk when this returns."""
        content = {**asdict(outcome), "fingerprint": self.fingerprint_of[outcome.item]}
        path = self._mark(outcome.item)
        aside = path.with_name(f".{uuid.uuid4().hex}")
        try:
            with open(aside, "w", encoding="utf-8") as opened:
                json.dump(content, opened, ensure_ascii=True)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(aside, path)
        except OSError as e:
            aside.unlink(missing_ok=True)
            raise ConfigError(
                f"{self.folder}: cannot be written ({e.strerror}); {to_write_or(e)}"
            ) from None

    def forget(self, key: str) -> None:
        """Take away an item's mark, so that it is done again."""
        self._mark(key).unlink(missing_ok=True)

    def _mark(self, key: str) -> Path:
        return self._marks / f"{self.file_of[key]}.json"

    # --- the table ------------------------------------------------------------------------------

    def write_table(self, outcomes: Sequence[Outcome]) -> None:
        """Write ``cohort.jsonl``, unless another call is writing it just now."""
        lines = [json.dumps({**asdict(outcome)}, ensure_ascii=False) for outcome in outcomes]
        path = self.folder / TABLE
        with contextlib.suppress(BusyError), locked(path):
            write_text(path, "".join(f"{line}\n" for line in lines))
