"""The commands in the Nextflow example are commands of this version."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from virchow_st_cli.main import cli

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/nextflow/main.nf"
VALUES = {
    "run": "run",
    "image": "S1.svs",
    "image.simpleName": "S1",
    "mpp": "0.25",
    "params.min_tissue": "0.5",
    "task.cpus": "8",
}


def commands(text: str) -> list[list[str]]:
    """Words of every ``vst`` command of the scripts, with Nextflow's variables filled in."""
    found = []
    for script in re.findall(r'script:\s*"""(.*?)"""', text, flags=re.DOTALL):
        filled = re.sub(r"\$\{([\w.]+)\}", lambda m: VALUES[m[1]], script)
        lines = filled.replace("\\\\\n", " ").splitlines()
        found += [shlex.split(line) for line in lines if line.strip().startswith("vst ")]
    return found


def parsed(words: list[str]) -> dict[str, object]:
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None, words
    return command.make_context(words[1], words[2:]).params


def test_every_command_parses() -> None:
    (words,) = commands(EXAMPLE.read_text("utf-8"))
    given = parsed(words)
    assert (given["run"], given["image"]) == (Path("run"), Path("S1.svs"))
    assert (given["out"], given["features"]) == (Path("S1.zarr"), "features")
    assert (given["mpp"], given["min_tissue"]) == (0.25, 0.5)
    with pytest.raises(click.NoSuchOption):
        parsed([*words, "--no-such-option", "1"])


def test_what_the_process_hands_on_is_what_the_command_writes() -> None:
    """Names of the outputs, as vst makes them: NAME.zarr, NAME_tissue.png, features/NAME.h5."""
    outputs = re.search(r"output:\n(.*?)\n\n", EXAMPLE.read_text("utf-8"), flags=re.DOTALL)
    assert outputs is not None
    assert re.findall(r'path "(.*?)"', outputs[1]) == [
        "${image.simpleName}.zarr", "${image.simpleName}_tissue.png", "features/*.h5",
    ]  # fmt: skip
