"""Checks and measures this package on one GPU, in less than eight minutes: ``make gpu``.

It needs what the package needs, and no data, weights or network. Every part (`gpu_parts.py`,
`gpu_training.py`) runs in a process of its own, because an error on a GPU may spoil the process
that made it; a part that fails, or takes too long, is named, and the others go on. The tables go to
the screen and, with ``--json``, to a file that is written anew after every part.

    python benchmarks/gpu.py [--json FILE] [--parts loss,encoder] [--minutes 8]
    python benchmarks/gpu.py --tiny        the same code at sizes that take seconds, on the CPU

Exit code 0 if every part succeeded, 1 if one failed or there was no time for it, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_parts
import torch
from report import Table, aligned, machine, machine_line

from virchow_st.errors import ConfigError
from virchow_st.runtime.atomic import write_json
from virchow_st.runtime.devices import pick_device

_LEAST_SECONDS = 5.0  # with less left, a part is not begun


@dataclass(frozen=True)
class Part:
    """What a part runs, and the seconds after which it is stopped."""

    measure: Callable[[torch.device, bool], list[Table]]
    limit_s: float


def _of_training(name: str) -> Callable[[torch.device, bool], list[Table]]:
    """A part of `gpu_training`, which is imported when the part runs."""

    def measure(device: torch.device, tiny: bool) -> list[Table]:
        import gpu_training

        return getattr(gpu_training, name)(device, tiny)

    return measure


PARTS = {
    "loss": Part(gpu_parts.loss, 60),
    "factors": Part(gpu_parts.factors, 45),
    "encoder": Part(gpu_parts.encoder, 60),
    "transcriptome": Part(_of_training("transcriptome"), 90),
    "pipeline": Part(_of_training("pipeline"), 120),
    "tests": Part(gpu_parts.tests, 90),
    "encoder-compiled": Part(gpu_parts.encoder_compiled, 150),
    "gains": Part(_of_training("gains"), 240),
}
"""In order: what is most wanted first, what compiles longest last."""


def main() -> None:
    options = read_options()
    device = "cpu" if options.tiny else "cuda"
    if options.part:
        run_part(options.part, device, options.tiny, options.json)
        return
    try:
        pick_device(device)
    except ConfigError as e:
        print(f"gpu: {e}; --tiny runs on the CPU", file=sys.stderr)
        raise SystemExit(2) from None
    sys.exit(run_all(options, device))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and measure the package on one GPU.")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--minutes", type=float, default=8.0, help="longest time of all parts")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"--parts: expected some of {', '.join(PARTS)}; got {', '.join(unknown)}")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: expected a file in a folder that is there; got {options.json}")
    return options


def run_all(options: argparse.Namespace, device: str) -> int:
    """Run the parts one after another, tiny ones two at a time; returns the exit code."""
    ends = time.monotonic() + 60 * options.minutes
    content: dict[str, Any] = {"name": "gpu", "machine": {}, "tables": [], "parts": {}}
    with ThreadPoolExecutor(2 if options.tiny else 1) as pool:
        started = [pool.submit(start_part, name, options.tiny, ends) for name in options.parts]
        for name, running in zip(options.parts, started, strict=True):
            outcome, seconds, tables = running.result()
            content["parts"][name] = {"outcome": outcome, "seconds": round(seconds, 1)}
            content["tables"] += tables
            print(f"\n{name}: {outcome}, {seconds:.0f} s", flush=True)
            for table in tables:
                show(Table(**table))
            content["machine"] = machine("triton", "timm")
            if options.json:
                write_json(options.json, content)
    print(f"\n{machine_line(content['machine'])}, on {device}")
    failed = [name for name, part in content["parts"].items() if part["outcome"] not in _FINE]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


_FINE = {"done", "left out: pytest is not installed"}


def start_part(name: str, tiny: bool, ends: float) -> tuple[str, float, list[dict[str, Any]]]:
    """Run a part in a process of its own; returns outcome in words, seconds, and tables."""
    began = time.monotonic()
    limit = ends - began
    if not tiny:  # which may run on a busy machine
        limit = min(limit, PARTS[name].limit_s)
    if limit < _LEAST_SECONDS:
        return "not run: no time left", 0.0, []
    outcome, tables = _in_process(name, tiny, limit)
    return outcome, time.monotonic() - began, tables


def _in_process(name: str, tiny: bool, limit: float) -> tuple[str, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory(prefix="vst-gpu-") as folder:
        out = Path(folder) / "part.json"
        command = [sys.executable, __file__, "--part", name, "--json", str(out)]
        environment = os.environ | {"GOMP_SPINCOUNT": "10000"}  # as vst sets it for itself
        try:
            done = subprocess.run(
                command + ["--tiny"] * tiny,
                capture_output=True, text=True, timeout=limit, cwd=folder, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"failed: not done after {limit:.0f} s", []
        if done.returncode or not out.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            print("\n".join(lines[-20:]), file=sys.stderr, flush=True)
            last = lines[-1] if lines else f"exit code {done.returncode}"
            return f"failed: {last}", []
        found = json.loads(out.read_text("utf-8"))
    return found["outcome"], found["tables"]


def run_part(name: str, device: str, tiny: bool, out: Path) -> None:
    """Run a part in this process, whose working directory is an empty folder for its files."""
    if tiny:
        torch.set_num_threads(1)
    try:
        tables = PARTS[name].measure(torch.device(device), tiny)
        outcome = "done"
    except gpu_parts.LeftOutError as e:
        tables, outcome = [], f"left out: {e}"
    write_json(out, {"outcome": outcome, "tables": [table.content() for table in tables]})


def show(table: Table) -> None:
    print(f"\n{table.title}")
    print(aligned([list(table.columns), *table.texts()]))
    for note in table.notes:
        print(note)


if __name__ == "__main__":
    main()
