"""Outputs are complete or absent, at whichever step their writer dies."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from virchow_st.errors import ConfigError
from virchow_st.runtime import atomic
from virchow_st.runtime.lock import locked


class Killed(BaseException):
    """What nothing catches on purpose."""


def die_at(monkeypatch: pytest.MonkeyPatch, n: int) -> list[str]:
    """Let the process seem to die at its n-th step on the disk: nothing is done from then on."""
    steps: list[str] = []

    def dying(name: str):
        real = getattr(os, name)

        def call(*arguments, **keywords):
            steps.append(name)
            if len(steps) >= n:
                raise Killed
            return real(*arguments, **keywords)

        return call

    for name in ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync"):
        monkeypatch.setattr(os, name, dying(name))
    return steps


def content(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def evaluate(run: Path, what: str) -> None:
    """As an evaluation leaves its results."""
    with atomic.replaced_together(run, "metrics.json") as folder:
        (folder / "maps").mkdir()
        (folder / "maps" / f"{what}.h5").write_text(what)
        (folder / "per_gene.csv").write_text(what)
        (folder / "metrics.json").write_text(what)


@pytest.mark.parametrize("n", range(1, 30))
def test_results_are_the_old_or_the_new_ones_and_never_both(tmp_path, monkeypatch, n):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("mine")
    evaluate(run, "old")
    old = content(run)
    with monkeypatch.context() as patch:
        die_at(patch, n)
        try:
            evaluate(run, "new")
            died = False
        except Killed:
            died = True
    left = content(run)
    if "metrics.json" in left:  # then all that is read belongs to it
        seal = left["metrics.json"]
        assert left["per_gene.csv"] == seal
        assert [name for name in left if name.startswith("maps/")] == [f"maps/{seal}.h5"]
    elif died:  # in the moments of the renames: the new ones are whole, and found
        assert left[".results.ready/metrics.json"] == "new"
    atomic.finish_replacing(run, "metrics.json")
    atomic.remove_leftovers(run)
    new = {**old, "per_gene.csv": "new", "metrics.json": "new", "maps/new.h5": "new"}
    del new["maps/old.h5"]
    assert content(run) in (old, new)
    if not died:
        assert content(run) == new


def save(folder: Path, what: str) -> None:
    with atomic.replaced_folder(folder) as aside:
        (aside / "state.json").write_text(what)


@pytest.mark.parametrize("n", range(1, 20))
def test_a_replaced_folder_is_the_old_or_the_new_one_and_nothing_is_left(tmp_path, monkeypatch, n):
    folder = tmp_path / "last"
    save(folder, "old")
    with monkeypatch.context() as patch:
        die_at(patch, n)
        try:
            save(folder, "new")
            died = False
        except Killed:
            died = True
    found = (atomic.settled(folder) / "state.json").read_text()
    assert found in (("old", "new") if died else ("new",))
    atomic.settle(folder)
    atomic.remove_leftovers(tmp_path)
    assert content(tmp_path) == {"last/state.json": found}


def test_an_error_leaves_the_old_results(tmp_path):
    evaluate(tmp_path, "old")
    before = content(tmp_path)

    def fail() -> None:
        with atomic.replaced_together(tmp_path, "metrics.json") as folder:
            (folder / "metrics.json").write_text("new")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert content(tmp_path) == before


def test_a_folder_that_was_not_there_is_not_left_empty(tmp_path):
    def fail() -> None:
        with atomic.replaced_together(tmp_path / "figures", "numbers.json") as folder:
            (folder / "genes.png").write_text("drawn")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert list(tmp_path.iterdir()) == []


def write_big(path: Path) -> None:
    with atomic.written_whole(path) as aside, open(aside, "wb") as file:
        file.write(bytes(1_000_000))


def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="report") as told:
            write_big(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(path))
    assert content(tmp_path) == {"report.html": "old"}


def test_an_output_is_locked_while_it_is_made_and_leftovers_go(tmp_path):
    out = tmp_path / "a.zarr"
    leftover = tmp_path / ".a.zarr.part"
    leftover.mkdir()
    (leftover / "half").write_text("of one that was killed")
    with atomic.new_output(out) as aside:
        assert not list(aside.iterdir())
        with pytest.raises(ConfigError, match="being written by process"), atomic.new_output(out):
            pytest.fail("both write it")
        assert aside.is_dir(), "the second took the first one's folder away"
        (aside / "result").write_text("whole")
    assert content(tmp_path) == {"a.zarr": "whole"}
    with pytest.raises(ConfigError, match="already there"), atomic.new_output(out):
        pytest.fail("it is there")


def test_leftovers_of_a_living_writer_stay(tmp_path):
    out = tmp_path / "a.zarr"
    out.write_text("whole")
    aside = atomic.aside_of(out)
    aside.mkdir()
    with locked(out), pytest.raises(ConfigError, match="already there"):
        atomic.check_absent(out)
    assert aside.is_dir()
    with pytest.raises(ConfigError, match="already there"):
        atomic.check_absent(out)
    assert not aside.exists()
