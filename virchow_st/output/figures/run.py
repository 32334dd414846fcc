"""Another run to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virchow_st.errors import ConfigError
from virchow_st.run.evaluated import RunResults, read_results


@dataclass(frozen=True)
class OtherRun:
    """The run to compare with, and the differences, first minus other."""

    results: RunResults
    differences: dict[str, Any]

    @classmethod
    def read(cls, first: RunResults, path: Path) -> OtherRun:
        """Read the run; `ConfigError` if it is the same run or has other genes or test patches."""
        from virchow_st.run.compare import compare_runs

        if path.resolve() == first.path.resolve():
            raise ConfigError(f"--against: expected another run than {path}; got the same")
        results = read_results(path)
        differences = compare_runs([first.path, path])["pairs"][0]["scales"]
        return cls(results, differences)
