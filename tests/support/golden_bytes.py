"""Golden bytes of the store format."""

from __future__ import annotations

from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> bytes:
    """Bytes of a golden file: hexadecimal, ``ff*3`` for repeats, comments after ``#``."""
    data = b""
    for line in (GOLDEN / f"{name}.hex").read_text("utf-8").splitlines():
        for word in line.split("#")[0].split():
            byte, _, times = word.partition("*")
            data += bytes.fromhex(byte) * int(times or 1)
    return data
