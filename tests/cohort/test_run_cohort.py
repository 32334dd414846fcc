"""A list of items: each done once, whatever fails, whoever is killed, however many take part."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cohort_job import (
    Hashing,
    at_work,
    ended,
    expected,
    make,
    run_script,
    stopped_while_ending,
    times,
    workers_of,
)
from half_dead import end, half_dead

from virchow_st.cohort import Done, Item, run_cohort
from virchow_st.cohort.choose import chosen_executor
from virchow_st.cohort.on_local import LocalExecutor
from virchow_st.config import CohortConfig
from virchow_st.errors import ConfigError, VirchowSTError
from virchow_st.runtime.lock import Lock, lock_beside, locked
from virchow_st.runtime.progress import Progress, Recording

FOUR = {"s1": "refuse", "s2": "crash", "s4": "odd"}


def check_whole(folder: Path, failed: set[str], n: int, rounds: int = 2000) -> None:
    """Every item that can be done is there with its bytes, was finished once, and left nothing."""
    good = {f"s{i}" for i in range(n)} - failed
    out = folder / "out"
    # A killed worker may leave a file aside; what has a name is whole.
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} == good
    for key in good:
        assert (out / key).read_bytes() == expected(key, rounds)
    lines = [json.loads(line) for line in (folder / "state/cohort.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == [f"s{i}" for i in range(n)]
    assert {line["item"] for line in lines if line["state"] == "failed"} == failed
    assert all(line["state"] == "done" for line in lines if line["item"] in good)
    assert not list((folder / "state/claims").iterdir())


def test_what_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    job, items = make(tmp_path, 6, **FOUR)
    reports = Recording()
    outcomes = run_cohort(items, job, None, tmp_path / "state", progress=reports, hint="look")
    check_whole(tmp_path, {"s1", "s2"}, 6)
    assert [o.text for o in outcomes] == [
        "complete", "s1: damaged; scan it again",
        "ZeroDivisionError: nobody foresaw this; look", "complete", "complete", "complete",
    ]  # fmt: skip
    assert outcomes[0].result == {"n": 2}
    assert reports.warnings == [
        "for research only", outcomes[1].text, outcomes[2].text, "an odd image",
    ]  # fmt: skip
    # Another call does what failed again, and no other.
    again = run_cohort(items, job, None, tmp_path / "state")
    assert times(tmp_path, "begun") == {"s0": 1, "s1": 2, "s2": 2, "s3": 1, "s4": 1, "s5": 1}
    assert [o.call == again[1].call for o in again] == [False, True, True, False, False, False]


def test_what_no_longer_holds_is_done_anew(tmp_path: Path) -> None:
    job, items = make(tmp_path, 4)
    run_cohort(items, job, None, tmp_path / "state")
    (tmp_path / "out" / "s1").unlink()  # the result was deleted
    (tmp_path / "state/marks/s3.json").write_text('{"item": "s3"')  # and a mark damaged
    changed = [replace(items[0], content={"fault": "", "scan": 2}), *items[1:]]
    run_cohort(changed, job, None, tmp_path / "state")
    assert times(tmp_path, "begun") == {"s0": 1, "s1": 2, "s2": 1, "s3": 1}
    found = {o.item: o.text for o in run_cohort(changed, job, None, tmp_path / "state")}
    # These were looked at again and found done.
    assert found == {"s0": "was complete", "s1": "complete", "s2": "complete", "s3": "was complete"}


class OneWriter(Hashing):
    """Locks the result while it is made, as predictions, stores and runs are."""

    def do(self, item: Item, prepared: Any, attempt: int, progress: Progress) -> Done:
        with locked(self.folder / "out" / item.key):
            return super().do(item, prepared, attempt, progress)


def test_an_item_of_a_worker_that_is_still_dying_is_done(tmp_path: Path) -> None:
    job, items = make(tmp_path, 2, kind=OneWriter)
    claims = tmp_path / "state/claims"
    claims.mkdir(parents=True)
    process = half_dead(claims, "s0", tmp_path / "out/s0")
    threading.Timer(1, end, [process]).start()
    outcomes = run_cohort(items, job, None, tmp_path / "state", most_deaths=2)
    check_whole(tmp_path, set(), 2)
    assert [o.attempt for o in outcomes] == [2, 1]


def test_an_item_whose_output_another_process_writes_waits(tmp_path: Path) -> None:
    """As of a worker that stood still for so long that its claim lapsed, and goes on."""
    job, items = make(tmp_path, 2, kind=OneWriter)
    lock = Lock(tmp_path / "out/s0", lock_beside(tmp_path / "out/s0"))
    try:
        (failed, done) = run_cohort(items, job, None, tmp_path / "state", lease_s=0.5)
        assert (failed.state, done.state) == ("failed", "done")
        assert "out/s0: being written by process " in failed.text
        threading.Timer(1, lock.release).start()
        outcomes = run_cohort(items, job, None, tmp_path / "state", lease_s=30)
    finally:
        lock.release()
    assert [o.text for o in outcomes] == ["complete", "complete"]
    check_whole(tmp_path, set(), 2)
    assert times(tmp_path, "begun") == {"s0": 1, "s1": 1}


def test_names_have_to_differ_and_the_folder_be_writable(tmp_path: Path) -> None:
    job, items = make(tmp_path, 2)
    with pytest.raises(ConfigError, match="expected a name per item; s0 comes twice"):
        run_cohort([*items, items[0]], job, None, tmp_path / "state")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/state: cannot be written \(Not a directory\)"):
        run_cohort(items, job, None, tmp_path / "file/state")


def test_two_calls_at_once_share_the_items(tmp_path: Path) -> None:
    """Each with two threads of a plain executor of `concurrent.futures`."""
    job, items = make(tmp_path, 40, rounds=4000, **FOUR)
    found: dict[int, Any] = {}

    def call(number: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            found[number] = run_cohort(items, job, pool, tmp_path / "state", n_workers=2)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    check_whole(tmp_path, {"s1", "s2"}, 40, rounds=4000)
    assert set(times(tmp_path, "finished").values()) == {1}
    assert [o.state for o in found[0]] == [o.state for o in found[1]]


def test_what_all_need_and_is_missing_ends_the_cohort(tmp_path: Path) -> None:
    job, items = make(tmp_path, 3)
    job.no_encoder = True
    for executor in (None, LocalExecutor(1)):
        with pytest.raises(VirchowSTError, match="weights: not found; give --weights"):
            run_cohort(items, job, executor, tmp_path / "state")
    assert times(tmp_path, "begun") == {}


def test_an_item_that_kills_its_workers_stops_no_other(tmp_path: Path) -> None:
    job, items = make(tmp_path, 6, s2="kill")
    reports = Recording()
    outcomes = run_cohort(
        items, job, LocalExecutor(2), tmp_path / "state", n_workers=2, progress=reports,
        most_deaths=2,
    )  # fmt: skip
    check_whole(tmp_path, {"s2"}, 6)
    assert outcomes[2].text.startswith("2 workers died on it, the last on ")
    assert sum("was killed by signal 9; its items go" in note for note in reports.notes) == 2
    assert set(times(tmp_path, "finished").values()) == {1}


SCHEDULER = """
import sys
from pathlib import Path
from cohort_job import make
from virchow_st.cohort import run_cohort
from virchow_st.cohort.on_local import LocalExecutor
from virchow_st.runtime.interrupt import exit_code
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    job, items = make(folder, 12, rounds=int(sys.argv[2]))
    try:
        run_cohort(items, job, LocalExecutor(2), folder / "state", n_workers=2)
    except KeyboardInterrupt as e:
        sys.exit(exit_code(e))
"""


def wait_for(is_true: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_scheduler_that_is_stopped_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    """After Ctrl-C its workers have given their items back; after a kill they end by themselves."""
    rounds = 100_000
    script = tmp_path / "scheduler.py"
    script.write_text(SCHEDULER)
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    process = run_script(code, tmp_path, rounds)
    wait_for(lambda: times(tmp_path, "finished") if (tmp_path / "log").is_dir() else {})
    workers = workers_of(process.pid)
    assert workers
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if how is signal.SIGINT else -9)
    assert "Traceback" not in err
    for worker in workers:
        wait_for(lambda worker=worker: not is_alive(worker))
    claims = [json.loads(p.read_text()) for p in (tmp_path / "state/claims").iterdir()]
    assert all(claim["state"] == "released" for claim in claims)
    job, items = make(tmp_path, 12, rounds)
    begun = time.monotonic()
    run_cohort(items, job, None, tmp_path / "state")
    assert time.monotonic() - begun < 60  # and not until a claim lapses
    check_whole(tmp_path, set(), 12, rounds)


def test_claims_that_a_worker_left_beside_its_marks_go(tmp_path: Path) -> None:
    """It was stopped between writing what became of its item and removing the claim."""
    job, items = make(tmp_path, 3)
    run_cohort(items, job, None, tmp_path / "state")
    for name in ("s1@1", "s2@1", "s2@2"):
        (tmp_path / "state/claims" / name).write_text('{"state": "released"}')
    run_cohort(items, job, None, tmp_path / "state")
    check_whole(tmp_path, set(), 3)
    assert set(times(tmp_path, "finished").values()) == {1}


def is_alive(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


# --- executors by name ----------------------------------------------------------------------------


def test_executors_are_chosen_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(**settings: Any) -> tuple[Any, int]:
        with chosen_executor(CohortConfig(**settings), "cpu", tmp_path) as found:
            return found

    assert chosen() == (None, 1)
    executor, n_workers = chosen(executor="local", workers=3)
    assert (type(executor), n_workers) == (LocalExecutor, 3)
    with pytest.raises(ConfigError, match="workers: 2 need an executor"):
        chosen(workers=2)
    with pytest.raises(ConfigError, match="expected the number of Slurm jobs; give --workers"):
        chosen(executor="slurm")
    with pytest.raises(ConfigError, match="slurm needs sbatch, which is not on the PATH; start"):
        chosen(executor="slurm", workers=2)
    with pytest.raises(ConfigError, match="slurm: expected NAME=VALUE, such as.*; got 'gpu'"):
        chosen(executor="slurm", workers=2, slurm=("gpu",))
    with pytest.raises(ConfigError, match="slurm: expected a time such as 90.*got 'long'"):
        chosen(executor="slurm", workers=2, slurm=("time=long",))
    for module, name in (("ray", "ray"), ("submitit", "slurm")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=r"needs .*; pip install 'virchow_st\[cluster\]'"):
            chosen(executor=name, workers=1)


def test_workers_of_a_machine_see_a_gpu_each(tmp_path: Path) -> None:
    executor = LocalExecutor(2, ["4", "7"])
    workers = [executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES") for _ in range(2)]
    assert [worker.result(timeout=60) for worker in workers] == ["4", "7"]
    again = executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert again.result(timeout=60) in ("4", "7")


def test_a_worker_that_is_stopped_after_its_work_is_quiet(
    capfd: pytest.CaptureFixture[str],
) -> None:
    worker = LocalExecutor(1).submit(stopped_while_ending)
    assert worker.result(timeout=60) == "done"
    assert worker.process.exitcode == -signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_slurm_gets_the_options_and_queues_a_worker_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for Slurm's commands, as submitit calls them."""
    from virchow_st.cohort.on_slurm import Requeued, SlurmExecutor

    tools = tmp_path / "bin"
    tools.mkdir()
    for name, line in (
        ("sbatch", f'cp "$1" {tmp_path}/script; echo "Submitted batch job 77"'),
        ("srun", ""),
        ("sacct", 'echo "JobID|State|NodeList"; echo "77|CANCELLED|"'),
        ("scancel", f'echo "$@" > {tmp_path}/cancelled'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    options = {"partition": "gpu", "gpus": "1", "time": "1-0:30:00"}
    worker = SlurmExecutor(tmp_path / "slurm", options).submit(os.getpid)
    script = (tmp_path / "script").read_text()
    for line in (
        "--partition=gpu",
        "--gpus=1",
        "--time=1470",
        "--job-name=vst",
        "--signal=USR2@90",
    ):
        assert f"#SBATCH {line}\n" in script
    again = Requeued(os.getpid).checkpoint(1, 2)
    assert (type(again.function), again.args) == (Requeued, (1, 2))
    wait_for(worker.done)
    assert str(worker.exception()) == "Slurm job 77 ended without a result"
    worker.cancel()
    assert (tmp_path / "cancelled").read_text() == "77\n"


# --- workers killed at random ---------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from cohort_job import make
from virchow_st.cohort import run_cohort
from virchow_st.cohort.on_local import LocalExecutor
if __name__ == "__main__":
    folder, kind, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    job, items = make(folder, 20, rounds, s3="refuse", s7="crash", s11="refuse")
    if kind == "local":
        executor = LocalExecutor(2)
    elif kind == "slurm":
        from virchow_st.cohort.on_slurm import SlurmExecutor
        executor = SlurmExecutor(folder / "slurm", {}, "local")
    else:
        from virchow_st.cohort.on_ray import RayExecutor
        executor = RayExecutor("", 1.0, 2)
    run_cohort(items, job, executor, folder / "state", n_workers=2, most_deaths=1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "slurm", "ray"])
def test_workers_killed_at_random_lose_nothing(tmp_path: Path, kind: str) -> None:
    """Two schedulers on one list, workers killed up to fifty times within an item; 17 of 20 done.

    No item is begun more than five times, so that items end between the kills: `run_cohort` gives
    up after twenty workers in a row that ended without one, and should.
    """
    if kind == "ray":
        pytest.importorskip("ray", reason="Ray is 240 MB; pip install 'virchow_st[cluster]'")
    rounds, n_kills = 4_000_000, 50
    script = tmp_path / "scheduler.py"
    script.write_text(KILLED)
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    schedulers = [run_script(code, tmp_path, kind, rounds) for _ in range(2)]
    killed, moments = 0, random.Random(0)
    while killed < n_kills and any(s.poll() is None for s in schedulers):
        time.sleep(moments.uniform(0, 0.5))
        if workers := at_work(tmp_path / "state/claims", most_attempts=4):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(moments.choice(workers), signal.SIGKILL)
                killed += 1
    ended(schedulers, 400)
    assert killed >= 20  # on a fast machine all items end before the fiftieth
    check_whole(tmp_path, {"s3", "s7", "s11"}, 20, rounds)
    assert max(times(tmp_path, "finished").values()) <= 2  # killed between file and name
