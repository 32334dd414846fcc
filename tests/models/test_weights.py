"""Weights of an encoder: read from a file, or downloaded where access was granted."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import save_file
from tiny_vit import tiny_encoder, tiny_virchow

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import load_encoder
from virchow_st.models.encoders import weights as weights_module
from virchow_st.models.encoders.load import load_network
from virchow_st.models.encoders.weights import parameters_hash


@pytest.mark.usefixtures("small_virchow2")
def test_local_weights_round_trip(tmp_path: Path, images: np.ndarray) -> None:
    model = tiny_virchow(7)
    expected = tiny_encoder(model).encode(images)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.bin")
    loaded = [
        load_encoder("virchow2", weights=str(tmp_path / f), device="cpu")
        for f in ("w.safetensors", "w.bin")
    ]
    for encoder in loaded:
        assert (encoder.name, encoder.dim, encoder.grid) == ("virchow2", 48, 16)
        assert encoder.weights_hash == parameters_hash(model)
        assert "non-commercial" in encoder.licence
        np.testing.assert_array_equal(encoder.encode(images).tokens, expected.tokens)
    assert parameters_hash(tiny_virchow(8)) != parameters_hash(model)


@pytest.mark.usefixtures("small_virchow2")
def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    half = {k: v.half() for k, v in tiny_virchow().state_dict().items()}
    save_file(half, tmp_path / "w.safetensors")
    encoder = load_network("virchow2", weights=str(tmp_path / "w.safetensors"), device="cpu")
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in encoder.model.parameters())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("exploded",))


@pytest.mark.usefixtures("small_virchow2")
def test_bad_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = dict(tiny_virchow().state_dict())
    wrong = {**state, "blocks.9.ls1.gamma": torch.ones(48), "norm.bias": torch.ones(47)}
    del wrong["cls_token"]
    save_file(wrong, "wrong.safetensors")
    torch.save({"state_dict": state}, "nested.bin")
    torch.save({**state, "cls_token": Bomb()}, "bomb.bin")
    Path("text.safetensors").write_text("no weights")
    Path("text.bin").write_text("no weights")
    cases = {
        "wrong.safetensors": r"do not fit the model: 1 missing \(first: cls_token\), "
        r"1 not known \(first: blocks.9.ls1.gamma\), 1 of another shape \(first: norm.bias\)",
        "nested.bin": "expected a bare state_dict",
        "bomb.bin": "holds more than tensors",
        "text.safetensors": "cannot be read as weights",
        "text.bin": "holds more than tensors, or is no PyTorch file",
        "absent.bin": "no such weights file",
        "w.npz": "expected weights as .safetensors, .bin or .pth",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=message) as caught:
            load_network("virchow2", weights=name, device="cpu")
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    assert not Path("exploded").exists()


def gated() -> GatedRepoError:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=403)
    return GatedRepoError("Cannot access gated repo.\nAccess is restricted.", response=response)


class Hub:
    """Stands for `HfApi`: a hub that is there, holds one file, and may refuse it."""

    refusal: Exception | None = None

    def model_info(self, repo: str, timeout: float) -> Any:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.safetensors")])

    def auth_check(self, repo: str) -> None:
        if self.refusal:
            raise self.refusal


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(Hub, "refusal", None)
    monkeypatch.setattr(weights_module, "HfApi", Hub)
    monkeypatch.setattr(weights_module, "try_to_load_from_cache", lambda *a: None)
    return Hub


@pytest.mark.parametrize("stage", ["access", "download"])
@pytest.mark.parametrize("error", [gated(), LocalEntryNotFoundError("no connection")])
def test_without_access_the_remedies_are_named(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    if stage == "access":
        hub.refusal = error
    monkeypatch.setattr(weights_module, "hf_hub_download", refuse)
    with pytest.raises(ConfigError) as caught:
        load_encoder("virchow2", device="cpu")
    message = str(caught.value)
    for remedy in ("https://huggingface.co/paige-ai/Virchow2", "`hf auth login`", "--weights FILE"):
        assert remedy in message
    assert type(error).__name__ in message
    assert "\n" not in message


@pytest.mark.usefixtures("small_virchow2")
def test_with_access_the_hub_file_is_loaded(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = tiny_virchow(5)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repo: str, name: str) -> str:
        asked.append((repo, name))
        return str(tmp_path / name)

    monkeypatch.setattr(weights_module, "hf_hub_download", download)
    for name in ("virchow2", "paige-ai/Virchow2", "hf-hub:paige-ai/Virchow2"):
        assert load_encoder(name, device="cpu").weights_hash == parameters_hash(model)
    assert asked == [("paige-ai/Virchow2", "model.safetensors")] * 3


@pytest.mark.parametrize("name", ["virchow2", "some-org/some-vit"])
def test_an_unreachable_hub_is_told_quickly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real hub client against a closed port of this machine: one line, and no retries."""
    nowhere = functools.partial(HfApi, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(weights_module, "HfApi", nowhere)
    monkeypatch.setattr(weights_module, "try_to_load_from_cache", lambda *a: None)
    start = time.monotonic()
    with pytest.raises(ConfigError, match="run `hf auth login`") as caught:
        load_encoder(name, device="cpu")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def test_weights_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    """A checkpoint with LayerScale on an architecture without it must not load in part."""
    state = timm.create_model("vit_tiny_patch16_224", init_values=1e-5, num_classes=0).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"24 not known \(first: blocks.0.ls1.gamma\)"):
        load_network("vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"), device="cpu")
