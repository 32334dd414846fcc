"""`vst doctor`: the table and the JSON agree; what is missing is named with its remedy."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from virchow_st_cli import doctor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: nobody is logged in."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


def declared() -> tuple[list[str], dict[str, list[str]]]:
    """Names in pyproject.toml: of the dependencies, and of the extras that add commands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    shown = ("spatial", "tracking", "cloud", "cluster")
    lists = [project["dependencies"], *(extras[name] for name in shown)]
    packages, *found = ([x.split(">=")[0] for x in names] for names in lists)
    return packages, dict(zip(shown, found, strict=True))


def test_json_gives_every_requirement_and_no_path(vst) -> None:
    answer = vst("doctor", "--json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    packages, extras = declared()
    assert found["format"] == "virchow_st.doctor/1"
    assert list(found["packages"]) == ["virchow_st", *packages]
    assert {name: list(versions) for name, versions in found["extras"].items()} == extras
    for name, said in found["packages"].items():
        assert said == version(name)
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert 0 < found["free_memory_gb"] < found["memory_gb"]
    assert found["virchow2"].startswith("not logged in")
    assert str(Path.home()) not in answer.out
    assert str(ROOT) not in answer.out


def test_table_says_the_same(vst) -> None:
    found = json.loads(vst("doctor", "--json").out)
    text = vst("doctor").out
    for name, said in found["packages"].items():
        assert any(line.split()[1:2] == [name] and said in line for line in text.splitlines()), name
    assert found["device"] in " ".join(text.split())


def test_missing_packages_are_named(vst, monkeypatch) -> None:
    def without(*absent: str) -> None:
        def look(name: str) -> str:
            if name in absent:
                raise PackageNotFoundError(name)
            return "1.0"

        monkeypatch.setattr(doctor, "version", look)

    for name, extra in (("anndata", "spatial"), ("s3fs", "cloud"), ("submitit", "cluster")):
        without(name)
        answer = vst("doctor")
        assert answer.code == 0
        (line,) = (line for line in answer.out.splitlines() if name in line.split())
        assert f"not installed; `pip install 'virchow_st[{extra}]'`" in line
    without("lmdb")
    answer = vst("doctor")
    assert answer.code == 1
    assert answer.out.count("missing: run") == 1
    answer = vst("doctor", "--json")
    assert answer.code == 1
    assert [n for n, v in json.loads(answer.out)["packages"].items() if v is None] == ["lmdb"]


def test_gpus_are_listed(monkeypatch) -> None:
    gpu = SimpleNamespace(name="GPU", major=9, minor=0, total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    assert doctor._gpus() == [{"name": "GPU", "capability": "9.0", "memory_gb": 80.0}] * 2


def test_without_torch_it_still_answers(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor._device() == "torch cannot be imported (ModuleNotFoundError)"
    assert doctor._gpus() == []
