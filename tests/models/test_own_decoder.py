"""A decoder of another package: found by its entry point, trained, recorded, and missed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from installed_example import installed_example
from tiny_training import paths, two_patients

from virchow_st.errors import ConfigError
from virchow_st.models.decoders import build_decoder, plugins
from virchow_st.models.decoders.plugins import check_installed
from virchow_st.predict.load import load_run
from virchow_st.run.state import read_state


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with installed_example("neighbour-decoder", tmp_path) as patch:
        yield patch


def test_it_is_trained_and_evaluated_and_a_run_says_what_it_needs(vst, installed, tmp_path) -> None:
    two_patients(tmp_path, (3, 2))
    run, cpu = tmp_path / "run", ["--device", "cpu"]
    train = ["train", *paths(tmp_path), "--run", run, "--test-patient", "P5", "--panel", "top:3",
             "--decoder", "neighbours", "--epochs", 1, *cpu]  # fmt: skip
    push = ["push", run, tmp_path / "model", "--license", "mit"]
    for arguments in (train, ["evaluate", run, *cpu], push):
        answer = vst(*arguments)
        assert answer.code == 0, answer.err
    assert read_state(run / "checkpoints" / "best")["decoder_package"] == "neighbour-decoder 1.0"
    assert type(load_run(run, "cpu").decoder).__name__ == "NeighbourDecoder"
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert "pip install neighbour-decoder==1.0" in card

    installed.undo()
    for folder in (run, tmp_path / "model"):
        message = f"{folder}: its decoder neighbours is of the package neighbour-decoder 1.0, which"
        answer = vst("evaluate", folder, *cpu)
        assert answer.code == 2
        last = answer.err.splitlines()[-1]
        assert last.startswith(f"error: {message}"), answer.err
        assert last.endswith("if you trust it, pip install neighbour-decoder==1.0"), answer.err
    assert vst("report", run).code == 0  # reads results alone


def test_a_package_that_a_run_names_cannot_make_a_shell_run_more(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"if you trust it, pip install 'a;reboot==1\.0'$"):
        check_installed("own", "a;reboot 1.0", tmp_path)


def test_an_unknown_name_is_refused_before_anything_is_read(vst, tmp_path) -> None:
    answer = vst("train", "no.vst", "--run", tmp_path / "run", "--test-patient", "P5",
                 "--decoder", "unet")  # fmt: skip
    assert answer.code == 2
    assert "decoder: expected one of fusion, hist2st" in answer.err
    assert "got 'unet'" in answer.err
    assert list(tmp_path.iterdir()) == []


BAD = """
import torch
import virchow_st as v

class NoHead(v.Decoder):
    def __init__(self, *arguments):
        super().__init__()

class WrongSize(NoHead):
    def __init__(self, grid, mean, std, bias):
        super().__init__()
        self.head = v.GeneHead(2, bias)
    def features(self, tokens, image):
        return torch.zeros(len(tokens), 2, 64, 64)

class WrongTokens(WrongSize):
    def features(self, tokens, image):
        return tokens.reshape(1, 7, 7, 7)

not_a_class = 3
"""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("bad:NoHead", "expected the attribute head to be a virchow_st.GeneHead"),
        ("bad:WrongSize", r"outputs of shape \(1, 3, 128, 128\) .* got shape \(1, 3, 64, 64\)"),
        (
            "bad:WrongTokens",
            r"cannot decode a patch of 16 × 16 tokens of 4 channels \(RuntimeError",
        ),
        ("bad:not_a_class", "to be a subclass of virchow_st.Decoder; got 3"),
        ("bad:Absent", r"bad:Absent cannot be imported \(AttributeError"),
        ("absent_module:X", r"cannot be imported \(ModuleNotFoundError"),
    ],
)
def test_what_a_decoder_lacks_is_said_in_a_line(monkeypatch, tmp_path, value, message) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("own", value, plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [entry])
    with pytest.raises(ConfigError, match=f"^decoder own, of the package .*{message}") as caught:
        build_decoder("own", 16, torch.zeros(4), torch.ones(4), torch.zeros(3))
    assert "\n" not in str(caught.value)
    sys.modules.pop("bad", None)


def test_names_of_virchow_st_are_not_taken_over_and_others_only_once(monkeypatch) -> None:
    def entries(*, group: str, name: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for value in ("a:X", "b:Y")]

    monkeypatch.setattr(plugins, "entry_points", entries)
    assert type(build_decoder("linear", 16, *(torch.zeros(4),) * 3)).__name__ == "LinearDecoder"
    assert plugins.package_of("linear") == ""
    with pytest.raises(ConfigError, match="decoder own: expected one package that adds it; found"):
        plugins.find_plugin("own")
