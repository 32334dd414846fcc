"""What a command leaves: the content of its files, and how it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def digest(folder: Path) -> dict[str, str]:
    """Path → hash of the content of every file below a folder, without recorded times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "tensorboard/" in name:
            continue
        if not path.is_file():
            found[name] = ""
            continue
        content = path.read_bytes()
        if path.name == "history.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            for line in lines:
                del line["seconds"], line["patches_per_s"]
            content = json.dumps(lines).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def difference(a: dict[str, str], b: dict[str, str]) -> str:
    names = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    return ", ".join(
        f"{name} {'missing' if name not in b else 'added' if name not in a else 'changed'}"
        for name in names[:4]
    )


def check_refusal(code: int, err: str, problems: list[str]) -> None:
    """Check that a command that could not do its work ended with exit code 2 and one line."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    if code != 2:
        problems.append(f"exit {code}")
    if len(lines) != 1:
        problems.append(f"{len(lines)} error lines")
    if "Traceback" in err or "Exception" in err:
        problems.append("traceback")
    if any("fault of virchow_st" in line for line in lines):
        problems.append(lines[0])
