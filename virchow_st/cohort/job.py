"""What a cohort is made of: items, the job that is done for each, and what became of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from virchow_st.runtime.progress import Progress

State = Literal["done", "failed", "preempted"]


@dataclass(frozen=True)
class Item:
    """One job of a cohort, such as a slide.

    Attributes:
        key: a name that no other item of the cohort has.
        content: all that determines the result beside the job's settings; anything that JSON takes.
            An item whose content has changed is done anew.
        size: a guess of the work, in any unit; several workers take the largest first.
        title: what is shown when the item is begun; the key if empty.
        data: what the job needs beside, which does not change the result, such as the places of
            files as they were given.
    """

    key: str
    content: Mapping[str, Any]
    size: int = 0
    title: str = ""
    data: Any = None

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Digest of the item and of the job's settings, 16 hexadecimal digits.

        >>> Item("P1", {"image": "a.svs"}).fingerprint({"overlap_um": 32})
        '768c773a99eba080'
        """
        text = json.dumps([self.key, self.content, settings], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Done:
    """What a job returns for an item.

    Attributes:
        text: one line for the table, such as ``"complete"``.
        result: further values for `cohort.jsonl`; anything that JSON takes.
    """

    text: str
    result: Mapping[str, Any] = field(default_factory=dict)


class Job(Protocol):
    """The work on one item. It goes to the workers by pickle, before `begin`.

    `do` has to be idempotent: it may be called again for an item that an earlier worker began or
    even finished, and then goes on or says that it is done. It leaves nothing half-written that
    looks whole.
    """

    def settings(self) -> Mapping[str, Any]:
        """What determines the results beside the items; anything that JSON takes."""

    def is_there(self, item: Item) -> bool:
        """Whether the result of an item that was done once is still where it was written."""

    def begin(self, progress: Progress) -> None:
        """Load what all items need, once a worker; a `VirchowSTError` ends the whole cohort."""

    def prepare(self, item: Item, progress: Progress) -> Any:
        """Read ahead in a thread while the item before is done; its result goes to `do`."""

    def do(self, item: Item, prepared: Any, attempt: int, progress: Progress) -> Done:
        """Do the item.

        Args:
            item: the item.
            prepared: what `prepare` returned for it.
            attempt: 1, or more where earlier workers began the item and were lost.
            progress: receives notes, warnings and step counts.
        """


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        item: the item's key.
        state: ``done``, ``failed``, or ``preempted``: begun and not finished, or not begun at all.
        text: one line: what the job says, or the reason of the failure.
        result: further values of the job.
        warnings: lines that the job reported while it did the item.
        host, process, seconds, attempt: where, how long and in which attempt it was done.
        call: the call of `run_cohort` in which it was done.
    """

    item: str
    state: State
    text: str
    result: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    host: str = ""
    process: int = 0
    seconds: float = 0.0
    attempt: int = 0
    call: str = ""
