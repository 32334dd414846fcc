"""Reads stores that may be damaged; a script that reads each store in a forked process.

``damaged_reader.py WHOLE STORE...`` prints one word per store: ``right`` (all records equal those
of the store WHOLE), ``named`` (damaged records raise `StoreError` and `verify` lists them),
``refused`` (opening raises `StoreError`), or the fault of the reader, such as ``wrong data``.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from virchow_st.errors import StoreError
from virchow_st.store.format import Kind
from virchow_st.store.reader import Patch, Store, open_store, verify

MEMORY = 1 << 30  # limit of additional memory while reading, bytes
SECONDS = 30
FINE = ("right", "named", "refused")
WORDS = (*FINE, "unclear message", "wrong data", "verify saw nothing", "unforeseen error")


def contents(patch: Patch) -> list[str]:
    """One word per record: a hash of the value read, or ``StoreError``."""
    read = {
        Kind.PATCH: lambda: repr(patch.info).encode(),
        Kind.TISSUE_MASK: lambda: patch.tissue_mask.tobytes(),
        Kind.VALIDITY_MASK: lambda: patch.validity_mask.tobytes(),
        Kind.COUNTS: lambda: patch.counts().toarray().tobytes(),
        Kind.IMAGE: lambda: patch.image.tobytes(),
        Kind.CLASS_TOKEN: lambda: patch.cls.tobytes(),
        Kind.TOKENS: lambda: patch.tokens.tobytes(),
    }
    words = []
    for kind in Kind:
        try:
            words.append(hashlib.md5(read[kind]()).hexdigest())
        except StoreError:
            words.append("StoreError")
    return words


def judge(path: str, expected: list[list[str]]) -> str:
    try:
        store: Store = open_store(path)
    except StoreError as e:
        return "refused" if path in str(e) and "\n" not in str(e) else "unclear message"
    found = [contents(patch) for patch in store]
    faults = verify(store)
    if found == expected and not faults:
        return "right"
    pairs = [pair for row in zip(found, expected, strict=True) for pair in zip(*row, strict=True)]
    if any(actual not in ("StoreError", want) for actual, want in pairs):
        return "wrong data"
    return "named" if faults else "verify saw nothing"


def judge_in_a_child(path: str, expected: Any, judge: Callable[[str, Any], str] = judge) -> str:
    child = os.fork()
    if not child:
        word = "unforeseen error"
        try:
            pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
            limit = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(SECONDS)
            word = judge(path, expected)
        except BaseException as e:
            print(f"{path}: {e!r}", file=sys.stderr)
        os._exit(WORDS.index(word))
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return WORDS[os.WEXITSTATUS(status)]


if __name__ == "__main__":
    whole = [contents(patch) for patch in open_store(sys.argv[1])]
    for path in sys.argv[2:]:
        print(judge_in_a_child(path, whole), flush=True)
