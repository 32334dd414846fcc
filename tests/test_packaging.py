"""The conda recipe and the containers say what pyproject.toml says."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import virchow_st
from virchow_st.runtime.caches import _FOLDERS

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
RECIPE = (ROOT / "conda.recipe" / "meta.yaml").read_text("utf-8")
DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text("utf-8")
APPTAINER = (ROOT / "containers" / "virchow_st.def").read_text("utf-8")
# Name on conda-forge of what has another name on PyPI.
ON_CONDA = {
    "lmdb": "python-lmdb",
    "matplotlib": "matplotlib-base",
    "opencv-python-headless": "py-opencv",
    "openslide-bin": "openslide",
    "torch": "pytorch",
    "torch-geometric": "pytorch_geometric",
    "xxhash": "python-xxhash",
}


def section(text: str, begin: str, end: str) -> str:
    return text.split(begin, 1)[1].split(end, 1)[0]


def test_the_recipe_needs_what_the_package_needs() -> None:
    wanted = {}
    for line in PROJECT["project"]["dependencies"]:
        name, bound = line.split(">=")
        # OpenCV's wheels add a fourth number of their own.
        wanted[ON_CONDA.get(name, name)] = ".".join(bound.split(".")[:3])
    run = section(RECIPE, "  run:\n", "\ntest:")
    found = dict(re.findall(r"- (\S+) >=([\d.]+)", run))
    assert found == wanted
    build = PROJECT["build-system"]["requires"]
    assert [f"setuptools >={n}" for n in re.findall(r"setuptools>=(\d+)", build[0])] == re.findall(
        r"setuptools >=\d+", RECIPE
    )


def test_the_recipe_is_of_this_version_with_its_command() -> None:
    assert re.findall(r'set version = "(.*)"', RECIPE) == [virchow_st.__version__]
    assert re.findall(r'set python_min = "(.*)"', RECIPE) == [
        PROJECT["project"]["requires-python"].removeprefix(">=")
    ]
    ((name, target),) = PROJECT["project"]["scripts"].items()
    assert f"- {name} = {target}\n" in RECIPE
    assert f"license: {PROJECT['project']['license']}\n" in RECIPE
    assert "noarch: python\n" in RECIPE


def test_the_commands_that_are_named_exist() -> None:
    from virchow_st_cli.main import cli

    called = re.findall(r"- vst ([^=\s]+)", RECIPE)
    called += re.findall(r"(?:RUN vst|docker run .* virchow_st) (\S+)", DOCKERFILE)
    called += re.findall(r"(?:bin/vst|run --nv virchow_st.sif) (\S+)", APPTAINER)
    assert len(called) == 6
    assert set(called) <= {*cli.commands, "--help"}


def test_both_containers_are_made_alike_from_files_that_are_there() -> None:
    images = re.findall(r"^(?:FROM|From:) (\S+)$", f"{DOCKERFILE}\n{APPTAINER}", re.MULTILINE)
    assert len(images) == 2
    assert len(set(images)) == 1
    assert images[0].startswith("nvidia/cuda:")
    for text in (DOCKERFILE, APPTAINER):
        (extra,) = re.findall(r"'/src\[(\w+)\]'", text)
        assert extra in PROJECT["project"]["optional-dependencies"]
        for name in re.findall(r"/src/(\S+)", text):
            assert (ROOT / name).is_file()
        # What Triton needs to compile; see `virchow_st.models.losses.fused_gpu.missing`.
        assert {"gcc", "python3-dev"} <= set(text.split())


def test_caches_have_a_place_in_an_image_that_is_read_only(tmp_path: Path) -> None:
    names = {*_FOLDERS, "HF_HOME"}
    assert set(re.findall(r"\b([A-Z_]+)=/(?:cache|weights)", DOCKERFILE)) == names
    script = section(APPTAINER, "%environment\n", "%runscript") + "\nenv"

    def environment(**variables: str) -> dict[str, str]:
        done = subprocess.run(
            ["sh", "-euc", script], env={"PATH": "/usr/bin:/bin", **variables},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    at_home = environment(HOME=str(tmp_path), TRITON_CACHE_DIR="/own")
    assert names <= set(at_home)
    assert at_home["TRITON_CACHE_DIR"] == "/own"
    assert at_home["NUMBA_CACHE_DIR"].startswith(f"{tmp_path}/.cache/")
    assert not names & set(environment(HOME="/nonexistent"))
    assert not names & set(environment())
