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
import contextlib
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

KINDS = ("killed", "twice", "disk", "read-only")
IS_ROOT = os.geteuid() == 0
EPOCHS = 3
LOG = 4096  # bytes that what a command prints, which goes to a file too, may take
GENE = "EPCAM"  # drawing all would take most of the time
PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # whether it has ended, which stays to be asked
SIMULATE = ("--bins", "384", "--genes", "120")
TRAIN = ("--test-patient", "P5", "--panel", "top:6", "--decoder", "linear", "--epochs", str(EPOCHS),
         "--batch-size", "4", "--accumulate", "1", "--device", "cpu", "-q")  # fmt: skip
FUSION = tuple("fusion" if word == "linear" else word for word in TRAIN)
_LOADED = (
    "torch", "numba", "h5py", "zarr", "matplotlib.pyplot", "tifffile", "torch_geometric.nn", "timm",
    "torch.utils.tensorboard", "virchow_st_cli.main",
)  # fmt: skip


@dataclass
class World:
    """Inputs shared by all trials (slides, stores, an evaluated run), and a work folder."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def cohort(self) -> Path:
        return self.folder / "cohort"

    def stores(self) -> list[str]:
        return [str(self.cohort / f"{patient}.vst") for patient in ("P1", "P2", "P5")]

    def make(self) -> None:
        self._make_run()
        self._make_begun()

    def _make_begun(self) -> None:
        """A run whose training was killed after its first epoch, for ``train --resume``."""
        begun, run = self.folder / "begun", self.folder / "being_begun"
        while not begun.is_dir():
            shutil.rmtree(run, ignore_errors=True)
            running = start(["train", *self.stores(), "--run", run, *TRAIN], self.folder)
            while n_epochs(run) < 1 and os.waitid(os.P_PID, running.process, PEEK) is None:
                time.sleep(0.001)
            ended(running, kill_after=0)
            if n_epochs(run) < EPOCHS:  # else it was over before it was killed
                run.rename(begun)

    def _make_run(self) -> None:
        run = self.folder / "run"
        if (run / "metrics.json").is_file():
            return
        slides = self.cohort / "slides.csv"
        for arguments in (
            ["simulate", self.cohort, *SIMULATE, "-q"],
            ["extract", "--manifest", slides, "--encoder", "stain", "--device", "cpu", "-q"],
            ["train", *self.stores(), "--run", run, *TRAIN],
            ["evaluate", run, "--device", "cpu", "-q"],
        ):
            code, _, err = ended(start(arguments, self.folder))
            assert code == 0, err


@dataclass(frozen=True)
class Command:
    """A command to disturb: how its work folder is prepared, and its arguments."""

    type: Callable[[World], list[object]]
    again: Callable[[World], list[object]] | None = None  # what is typed after a disturbance
    finds: Callable[[World], None] = lambda world: None
    before: Callable[[], None] = lambda: None  # in the process, before the command
    goes_on: bool = False  # what it has finished stays when it fails


def copied_run(world: World) -> None:
    shutil.copytree(world.folder / "run", world.work / "run")


def trained_run(world: World) -> None:
    copied_run(world)
    for name in ("metrics.json", "per_gene.csv", "blocks.npz", "overview.h5"):
        (world.work / "run" / name).unlink()
    shutil.rmtree(world.work / "run" / "maps")


def begun_run(world: World) -> None:
    shutil.copytree(world.folder / "begun", world.work / "run")


def n_epochs(run: Path) -> int:
    history = run / "history.jsonl"
    return len(history.read_bytes().splitlines()) if history.exists() else 0


def smaller_demo() -> None:
    demo = importlib.import_module("virchow_st_cli.demo")
    config = importlib.import_module("virchow_st.config")
    demo._COHORT = config.SimulateConfig(bins=384, genes=120)  # type: ignore[attr-defined]
    demo._TRAIN = config.TrainConfig(  # type: ignore[attr-defined]
        test_patient="P5", decoder="linear", batch_size=4, accumulate=1, device="cpu", epochs=2,
        panel="top:6",
    )  # fmt: skip
    figures = importlib.import_module("virchow_st.output.figures")
    figures.draw_figures = partial(figures.draw_figures, genes=[GENE])  # type: ignore[attr-defined]


def train_again(world: World) -> list[object]:
    run = world.work / "run"
    if run.is_dir():
        return ["train", "--run", run, "--resume", "-q"]
    return ["train", *world.stores(), "--run", run, *TRAIN]


COMMANDS = {
    "simulate": Command(
        lambda w: ["simulate", w.work / "sim", "--bins", "256", "--genes", "60", "--patients",
                   "P1,P2"],
        goes_on=True,
    ),
    "extract": Command(
        lambda w: ["extract", w.cohort / "P1/outs", "--image", w.cohort / "P1/tissue_image.tif",
                   "--store", w.work / "P1.vst", "--patient", "P1", "--encoder", "stain",
                   "--device", "cpu"],
        goes_on=True,
    ),
    "train": Command(
        lambda w: ["train", *w.stores(), "--run", w.work / "run", *TRAIN], again=train_again,
        goes_on=True,
    ),
    "train fusion": Command(
        lambda w: ["train", *w.stores(), "--run", w.work / "run", *FUSION], again=train_again,
        goes_on=True,
    ),
    "train --resume": Command(
        lambda w: ["train", "--run", w.work / "run", "--resume", "-q"], finds=begun_run,
        goes_on=True,
    ),
    "evaluate": Command(
        lambda w: ["evaluate", w.work / "run", "--device", "cpu"], finds=copied_run
    ),
    "evaluate first": Command(
        lambda w: ["evaluate", w.work / "run", "--device", "cpu"], finds=trained_run
    ),
    "figures": Command(
        lambda w: ["figures", w.work / "run", "--genes", GENE], finds=copied_run
    ),
    "report": Command(
        lambda w: ["report", w.work / "run", "--genes", GENE], finds=copied_run
    ),
    "predict": Command(
        lambda w: ["predict", w.folder / "run", w.cohort / "P5/tissue_image.tif", "--mpp", "0.5",
                   "--out", w.work / "p.zarr", "--device", "cpu"]
    ),
    "export": Command(lambda w: ["export", w.folder / "run", "--out", w.work / "e.zarr"]),
    "export h5ad": Command(
        lambda w: ["export", w.folder / "run", "--out", w.work / "e.h5ad", "--format", "h5ad"]
    ),
    "demo": Command(lambda w: ["demo", w.work / "demo"], before=smaller_demo, goes_on=True),
}  # fmt: skip


# --- processes ----------------------------------------------------------------------------------


@dataclass
class Running:
    """A command that runs in a fork of this process."""

    process: int
    log: Path


_started = 0


def start(
    arguments: list[object], logs: Path, before: Callable[[], None] = lambda: None, largest: int = 0
) -> Running:
    """Start a command; ``largest`` limits the bytes of any file that it writes."""
    global _started
    _started += 1
    log = logs / f"log{_started}"
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return Running(process, log)
    os.setpgid(0, 0)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["vst", *map(str, arguments)]
    before()
    if largest:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    importlib.import_module("virchow_st_cli.main").main()
    raise AssertionError("main ends the process")


def ended(running: Running, kill_after: float | None = None) -> tuple[int, str, str]:
    """Exit status (negative for a signal), standard output and standard error of a command."""
    deadline = time.monotonic() + (600 if kill_after is None else kill_after)
    status = 0
    while True:
        process, status = os.waitpid(running.process, os.WNOHANG)
        if process:
            break
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process, signal.SIGKILL)
            _, status = os.waitpid(running.process, 0)
            break
        time.sleep(0.005)
    texts = []
    for name in ("out", "err"):
        file = Path(f"{running.log}.{name}")
        texts.append(file.read_text("utf-8", "replace") if file.exists() else "")
        file.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), texts[0], texts[1]


# --- what is left -------------------------------------------------------------------------------


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


# --- the trials ---------------------------------------------------------------------------------


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
