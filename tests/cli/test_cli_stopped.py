"""The command line as a process: exit codes, pipes, and what is left after an interruption."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_place import Place, command, records, run_vst


def test_a_process_refuses_as_well(place: Place) -> None:
    before = place.listing()
    done = run_vst(*place.extract(image=place.folder / "none.tif"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert place.listing() == before


def test_entry_point_is_installed() -> None:
    vst = shutil.which("vst", path=str(Path(sys.executable).parent))
    if vst is None:
        pytest.skip("vst is not installed beside this Python")
    done = subprocess.run([vst, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("vst, version ")


def test_a_closed_pipe_is_quiet(stores: dict[str, Path]) -> None:
    for arguments in (("inspect", stores["P1"]), ("inspect", stores["P1"], "--json"), ("--help",)):
        process = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.close()  # as `| head -0` does
        _, err = process.communicate(timeout=60)
        assert err == b"", arguments


# One patch a commit instead of sixteen, and slowly: many moments to be killed at.
SLOW = """
import sys, time
from virchow_st.models.encoders.stain import StainEncoder
from virchow_st.store.writer import StoreWriter
from virchow_st_cli.main import main
StainEncoder.batch = 1
append = StoreWriter.append
def slow_append(self, records):
    append(self, records)
    print("appended", self.next_index, file=sys.stderr, flush=True)
    time.sleep(0.05)
StoreWriter.append = slow_append
main()
"""


def stop_and_repeat(place: Place, how: signal.Signals, rng: random.Random) -> tuple[int, int]:
    """Stop an extraction after a random patch and moment; finish it; (code, patches kept)."""
    arguments = [sys.executable, "-c", SLOW, *map(str, place.extract())]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    at, said = rng.randrange(9), []  # 0: as soon as the first line comes
    for raw in process.stderr:
        said.append(raw.decode())
        if at == 0 or f"appended {at}\n" in said:
            break
    time.sleep(rng.random() * 0.06)
    process.send_signal(how)
    rest = process.stderr.read().decode()
    code = process.wait(timeout=60)
    process.stderr.close()
    if how is not signal.SIGKILL:
        assert "Traceback" not in rest, rest
    done = run_vst_slow(place)
    assert done.returncode == 0, done.stderr
    return code, sum(line.startswith("appended") for line in said)


def run_vst_slow(place: Place) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", SLOW, *map(str, place.extract())]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120)


def check_stopping(place: Place, how: signal.Signals, times: int, seed: int) -> None:
    rng = random.Random(seed)
    # Made in one go, sixteen patches a commit; a copy, as this process may have it open already.
    whole = records(shutil.copytree(place.stores["P1"], place.folder / "whole"))
    manifest = json.loads((place.stores["P1"] / "store.json").read_text())
    for _ in range(times):
        code, _ = stop_and_repeat(place, how, rng)
        assert code in (-how, 128 + how, 0)  # 0: it was already done
        store = place.folder / "new.vst"
        assert records(store) == whole
        again = json.loads((store / "store.json").read_text())
        assert again["job"]["encoding"]["batches"] == [[0, 1]]
        again["job"]["encoding"]["batches"] = [[0, 16]]
        assert {**again, "slide": "P1"} == manifest
        assert {p.name for p in store.iterdir()} == {"data.mdb", "store.json"}
        shutil.rmtree(store)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_extraction_resumes_to_the_same_bytes(place: Place, how: signal.Signals) -> None:
    check_stopping(place, how, times=2, seed=int(how))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_extraction_resumes_whenever(place: Place, how: signal.Signals) -> None:
    check_stopping(place, how, times=8, seed=100 + int(how))
