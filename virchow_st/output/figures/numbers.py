"""``visualization_metrics.json``: every number that is printed in a figure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from virchow_st.errors import ConfigError
from virchow_st.runtime.atomic import write_json
from virchow_st.schema import read_json

FORMAT = "virchow_st.visualization_metrics/1"


class _File(TypedDict):
    format: Literal["virchow_st.visualization_metrics/1"]
    metrics_sha256: str
    figures: dict[str, dict[str, Any]]


class NumbersFile:
    """``visualization_metrics.json``, written with the figures, so that both agree.

    The entries of figures from earlier calls are kept until the run is evaluated again.
    """

    def __init__(self, path: Path, run: Path) -> None:
        digest = hashlib.sha256((run / "metrics.json").read_bytes()).hexdigest()
        self.content: dict[str, Any] = {"format": FORMAT, "metrics_sha256": digest, "figures": {}}
        try:
            found = read_json(path, _File, "draw again")
        except ConfigError:  # none yet, or not ours: it is written anew
            return
        if found["metrics_sha256"] == digest:
            there = {file.stem for file in path.parent.glob("*.png")}
            numbers = found["figures"]
            self.content["figures"] = {stem: numbers[stem] for stem in numbers if stem in there}

    def add(self, stem: str, numbers: Mapping[str, Any]) -> None:
        """Add the numbers of a figure that is going to lie in the same folder."""
        self.content["figures"][stem] = _plain(numbers)

    def write(self, path: Path) -> None:
        """Write the file."""
        write_json(path, self.content)


def _plain(value: Any) -> Any:
    """Convert to JSON values: NaN and infinity become null, NumPy numbers plain numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
