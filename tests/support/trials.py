"""Every command, disturbed: killed, run twice at once, out of disk, on a read-only disk.

``python tests/support/trials.py FOLDER [--commands a,b] [--kinds killed,twice,disk,read-only]
[--times N] [--seed S]`` makes small simulated slides, their stores and a run in FOLDER once, then
disturbs each command as often as asked and repeats it undisturbed. A trial holds if the disturbed
command ended as it should, left what was there before as it was, and the repeated one leaves the
same result as one that nothing happened to, with nothing beside it. The table that it prints is the
one in docs/reliability.md.

As root, a full and a read-only disk are a small tmpfs; for other users the largest size of a file
and the folders' permissions stand in for them. Commands run in forks of this process, which has
loaded the libraries, and end as processes of their own do.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from trial_commands import COMMANDS, Command, World
from trial_processes import Running, ended, start
from trial_result import check_refusal, difference, digest

os.environ.setdefault("OMP_NUM_THREADS", "1")

KINDS = ("killed", "twice", "disk", "read-only")
IS_ROOT = os.geteuid() == 0
LOG = 4096  # bytes that what a command prints, which goes to a file too, may take
_LOADED = (
    "torch", "numba", "h5py", "zarr", "matplotlib.pyplot", "tifffile", "torch_geometric.nn", "timm",
    "torch.utils.tensorboard", "virchow_st_cli.main",
)  # fmt: skip


@dataclass
class Trials:
    """Trials of one command."""

    world: World
    name: str
    rng: random.Random
    took: float = 0.0
    result: dict[str, str] = field(default_factory=dict)
    sizes: tuple[int, int] = (0, 0)  # bytes that the command adds, and of its largest file

    @property
    def command(self) -> Command:
        return COMMANDS[self.name]

    def fresh(self) -> dict[str, str]:
        work = self.world.work
        if work.is_mount():
            subprocess.run(["umount", "-l", work], check=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        return {}

    def start(self, again: bool = False, largest: int = 0) -> Running:
        typed = self.command.again if again and self.command.again else self.command.type
        return start(typed(self.world), self.world.folder, self.command.before, largest)

    def undisturbed(self) -> None:
        self.fresh()
        self.command.finds(self.world)
        before = _bytes(self.world.work)
        began = time.monotonic()
        code, _, err = ended(self.start())
        assert code == 0, f"{self.name}: {err}"
        self.took = time.monotonic() - began
        self.result = digest(self.world.work)
        files = [p.stat().st_size for p in self.world.work.rglob("*") if p.is_file()]
        self.sizes = max(_bytes(self.world.work) - before, 1), max(files)

    def repeat(self, problems: list[str]) -> None:
        """Run the command again; it has to leave the same files as an undisturbed one."""
        code, _, err = ended(self.start(again=True))
        if code != 0:
            problems.append(f"repeated: exit {code}, {err.strip().splitlines()[-1:]}")
        elif found := difference(self.result, digest(self.world.work)):
            problems.append(f"repeated: {found}")

    def killed(self) -> list[str]:
        problems: list[str] = []
        self.fresh()
        self.command.finds(self.world)
        code, _, err = ended(self.start(), kill_after=self.rng.uniform(0, 1.05) * self.took)
        if code not in (0, -signal.SIGKILL):
            problems.append(f"exit {code}: {err.strip().splitlines()[-1:]}")
        if not self._is_done():
            self.repeat(problems)
        return problems

    def _is_done(self) -> bool:
        """Whether the output is complete, before or after the command's final clean-up."""
        left = digest(self.world.work)
        return all(left.get(name) == found for name, found in self.result.items())

    def twice(self) -> list[str]:
        problems: list[str] = []
        self.fresh()
        self.command.finds(self.world)
        first = self.start()
        time.sleep(self.rng.uniform(0, 0.6) * self.took)
        second = self.start()
        codes = []
        for running in (first, second):
            code, _, err = ended(running)
            codes.append(code)
            if code != 0:
                check_refusal(code, err, problems)
        if 0 not in codes:
            problems.append("none was done")
        if found := difference(self.result, digest(self.world.work)):
            problems.append(found)
            self.repeat(problems)
        return problems

    def disk(self) -> list[str]:
        problems: list[str] = []
        self.fresh()
        largest = 0
        if IS_ROOT:
            _mount(self.world.work, "size=4g")
        self.command.finds(self.world)
        before = digest(self.world.work)
        share = self.rng.choice((0.0, self.rng.uniform(0, 0.9)))
        if IS_ROOT:
            room = _used(self.world.work) + int(share * self.sizes[0])
            _mount(self.world.work, f"remount,size={max(room, 4096)}")
        else:
            largest = max(LOG, int(share * self.sizes[1]))
        code, _, err = ended(self.start(largest=largest))
        if code != 0:  # 0: it was enough
            check_refusal(code, err, problems)
            left = digest(self.world.work)
            if self.command.goes_on:
                if hidden := [name for name in left if Path(name).name.startswith(".")]:
                    problems.append(f"left: {hidden[:3]}")
            elif (found := difference(before, left)) and not self._has_drawn(before, left):
                problems.append(f"left: {found}")
        if IS_ROOT:
            _mount(self.world.work, "remount,size=4g")
        self.repeat(problems)
        return problems

    def _has_drawn(self, before: dict[str, str], left: dict[str, str]) -> bool:
        """Whether a report has drawn exactly the figures that were missing."""
        figures = {name: found for name, found in self.result.items() if "/figures" in name}
        return self.name == "report" and left == before | figures

    def read_only(self) -> list[str]:
        problems: list[str] = []
        self.fresh()
        if IS_ROOT:
            _mount(self.world.work, "size=4g")
        self.command.finds(self.world)
        before = digest(self.world.work)
        if IS_ROOT:
            _mount(self.world.work, "remount,ro")
        else:
            _permit(self.world.work, writing=False)
        code, _, err = ended(self.start(again=self.name == "train" and bool(before)))
        check_refusal(code, err, problems)
        if IS_ROOT:
            _mount(self.world.work, "remount,rw")
        else:
            _permit(self.world.work, writing=True)
        if found := difference(before, digest(self.world.work)):
            problems.append(f"left: {found}")
        self.repeat(problems)
        return problems


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _used(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def _permit(folder: Path, writing: bool) -> None:
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if writing else mode & ~0o222)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    world = World(chosen.folder.resolve())
    world.folder.mkdir(parents=True, exist_ok=True)
    for name in _LOADED:
        importlib.import_module(name)
    world.make()
    kinds = chosen.kinds.split(",")
    table, n_failed = [], 0
    for name in chosen.commands.split(","):
        trials = Trials(world, name, random.Random(f"{chosen.seed} {name}"))
        trials.undisturbed()
        cells = []
        for kind in kinds:
            times = 1 if kind == "read-only" else chosen.times
            held = 0
            for i in range(times):
                problems = getattr(trials, kind.replace("-", "_"))()
                held += not problems
                if problems:
                    print(f"{name}, {kind} {i}: {'; '.join(problems)}", flush=True)
            cells.append(f"{held} of {times}")
            n_failed += times - held
        trials.fresh()
        table.append(f"| `{name}` | {' | '.join(cells)} |")
        print(table[-1], f"{trials.took:.1f} s", flush=True)
    print(
        "\n".join([f"| command | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|", *table])
    )
    sys.exit(bool(n_failed))


if __name__ == "__main__":
    main()
