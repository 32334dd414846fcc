"""The folder in which the workers of a cohort meet, and the table of what became of each item.

It lies on a disk that all workers share, or in object storage (`virchow_st.cohort.files`).
``claims/`` holds who does what (`virchow_st.cohort.lease`), ``marks/`` one file per item that is
done or failed, written whole by the worker that did it, and ``cohort.jsonl`` the same in one table,
a line per item. Only the marks count; the table is made from them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

from virchow_st.cohort.files import files_at
from virchow_st.cohort.job import Item, Outcome
from virchow_st.errors import ConfigError
from virchow_st.names import file_names
from virchow_st.schema import check, parse_json

T = TypeVar("T")
TABLE, _MARKS = "cohort.jsonl", "marks"


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
    """The state of a cohort.

    Args:
        folder: made if it is not there; on a disk that all workers share, or a URL.
        items: of the cohort.
        settings: of the job, see `Job.settings`.

    Raises:
        ConfigError: two items have one key, or the folder cannot be written.
        StorageError: the storage cannot be reached, or writes over claims.
    """

    def __init__(self, folder: Path, items: Sequence[Item], settings: Mapping[str, Any]) -> None:
        keys = [item.key for item in items]
        if repeated := [key for key, times in Counter(keys).items() if times > 1]:
            raise ConfigError(f"{folder}: expected a name per item; {repeated[0]} comes twice")
        self.folder, self.items = folder, items
        self.file_of = dict(zip(keys, file_names(keys), strict=True))
        self.fingerprint_of = {item.key: item.fingerprint(settings) for item in items}
        self.claims, self._files = folder / "claims", files_at(folder)
        self._files.make("claims", _MARKS)

    # --- marks ----------------------------------------------------------------------------------

    def settled(self) -> set[str]:
        """File names of the items that are done or failed."""
        return {
            name.removesuffix(".json")
            for name in self._files.names(_MARKS)
            if name.endswith(".json")
        }

    def is_settled(self, key: str) -> bool:
        """Whether an item is done or failed."""
        return self._files.read(self._mark(key)) is not None

    def read(self, key: str) -> Outcome | None:
        """What became of an item; None if it is not settled, or was with another content."""
        if (content := self._files.read(self._mark(key))) is None:
            return None
        try:
            found: _Mark = check(parse_json(content.decode()), _Mark)
        except ValueError:  # of a writer on a full disk, or of someone else: done anew
            return None
        if found["item"] != key or found["fingerprint"] != self.fingerprint_of[key]:
            return None
        return Outcome(
            key, found["state"], found["text"], found["result"], tuple(found["warnings"]),
            found["host"], found["process"], found["seconds"], found["attempt"], found["call"],
        )  # fmt: skip

    def each(self, function: Callable[[str], T], keys: Sequence[str]) -> list[T]:
        """Call a function that reads an item's mark with each key, see `Files.each`."""
        return self._files.each(function, keys)

    def write(self, outcome: Outcome) -> None:
        """Mark an item as done or failed; the mark is there for good when this returns."""
        content = {**asdict(outcome), "fingerprint": self.fingerprint_of[outcome.item]}
        text = json.dumps(content, ensure_ascii=True)
        self._files.write(self._mark(outcome.item), text.encode())

    def forget(self, key: str) -> None:
        """Take away an item's mark, so that it is done again."""
        self._files.remove(self._mark(key))

    def _mark(self, key: str) -> str:
        return f"{_MARKS}/{self.file_of[key]}.json"

    # --- the table ------------------------------------------------------------------------------

    def write_table(self, outcomes: Sequence[Outcome]) -> None:
        """Write ``cohort.jsonl``; of several calls at once the last one's stays."""
        lines = [json.dumps({**asdict(outcome)}, ensure_ascii=False) for outcome in outcomes]
        self._files.write(TABLE, "".join(f"{line}\n" for line in lines).encode())
