"""Vision transformers: the token layout, weights in and out, and what happens without access."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked

from virchow_st.devices import pick_device
from virchow_st.encoders import load_encoder, vit
from virchow_st.encoders import weights as weights_module
from virchow_st.encoders.vit import ViTEncoder, load_timm, load_virchow2, virchow2_model
from virchow_st.encoders.weights import parameters_hash
from virchow_st.errors import ConfigError

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny_virchow(seed: int = 0) -> torch.nn.Module:
    """Virchow2's kind of ViT, 48 wide and 2 deep, with weights large enough to matter."""
    model = timm.create_model(
        "vit_huge_patch14_224",
        embed_dim=48, depth=2, num_heads=3, img_size=224, init_values=1e-5, num_classes=0,
        mlp_ratio=5.3375, reg_tokens=4, global_pool="", dynamic_img_size=True,
        mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


def tiny_encoder(model: torch.nn.Module) -> ViTEncoder:
    return ViTEncoder(
        model, name="tiny", image_px=224, mean=MEAN, std=STD, n_prefix=5,
        weights_hash=parameters_hash(model), licence="", device=CPU,
    )  # fmt: skip


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)


def plain_vit(p: dict[str, torch.Tensor], images: np.ndarray, heads: int, depth: int) -> np.ndarray:
    """The same network from its definition, in float32: (B, 261, D)."""
    x = torch.tensor(images).float().div(255).sub(torch.tensor(MEAN)).div(torch.tensor(STD))
    B, D = len(x), p["cls_token"].shape[-1]
    cells = x.reshape(B, 16, 14, 16, 14, 3).permute(0, 1, 3, 5, 2, 4).reshape(B, 256, 3 * 14 * 14)
    x = cells @ p["patch_embed.proj.weight"].reshape(D, -1).T + p["patch_embed.proj.bias"]
    x = torch.cat([p["cls_token"].expand(B, 1, D), p["reg_token"].expand(B, 4, D), x], 1)
    x = x + p["pos_embed"]
    for n in range(depth):
        b = {k.removeprefix(f"blocks.{n}."): v for k, v in p.items() if f"blocks.{n}." in k}
        y = F.layer_norm(x, (D,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        qkv = y @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
        q, k, v = qkv.reshape(B, -1, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / (D // heads) ** 0.5).softmax(-1)
        y = (attention @ v).transpose(1, 2).reshape(B, -1, D)
        x = x + b["ls1.gamma"] * (y @ b["attn.proj.weight"].T + b["attn.proj.bias"])
        y = F.layer_norm(x, (D,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        gate, value = (y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]).chunk(2, -1)
        y = (gate * gate.sigmoid() * value) @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
        x = x + b["ls2.gamma"] * y
    return F.layer_norm(x, (D,), p["norm.weight"], p["norm.bias"], 1e-6).numpy()


def test_virchow2_architecture() -> None:
    with torch.device("meta"):
        model = virchow2_model().eval()
        tokens = model.forward_features(torch.empty(2, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == 631_239_424
    assert tokens.shape == (2, 261, 1280)
    assert model.num_prefix_tokens == 5
    assert len(model.blocks) == 32
    assert model.blocks[0].mlp.fc1.out_features == 6832
    assert model.reg_token.shape == (1, 4, 1280)


def test_encode_equals_the_definition_and_drops_registers(images: np.ndarray) -> None:
    model = tiny_virchow()
    out = tiny_encoder(model).encode(images)
    expected = plain_vit(dict(model.state_dict()), images, heads=3, depth=2)
    assert out.tokens.dtype == out.cls.dtype == np.float32
    np.testing.assert_allclose(out.cls, expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(out.tokens, expected[:, 5:].reshape(2, 16, 16, 48), atol=1e-4)


def test_grid_is_row_major(images: np.ndarray) -> None:
    encoder = tiny_encoder(tiny_virchow())
    assert encoder.dihedral_permutation(1, True) is None
    marked = images.copy()
    marked[:, 3 * 14 : 4 * 14, 11 * 14 : 12 * 14] = 255
    change = np.abs(encoder.encode(images).tokens - encoder.encode(marked).tokens).sum(-1)
    assert [np.unravel_index(c.argmax(), c.shape) for c in change] == [(3, 11), (3, 11)]


def test_encode_leaves_its_input_alone_and_takes_read_only_views(images: np.ndarray) -> None:
    encoder = tiny_encoder(tiny_virchow())
    images.flags.writeable = False
    a = encoder.encode(images[:, ::-1])
    b = encoder.encode(images[:, ::-1].copy())
    np.testing.assert_array_equal(a.tokens, b.tokens)
    with pytest.raises(ValueError, match=r"expected images uint8 \(B, 224, 224, 3\)"):
        encoder.encode(np.zeros((1, 256, 256, 3), np.uint8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bfloat16_on_cuda_stays_close_to_float32_on_the_cpu(images: np.ndarray) -> None:
    cpu = tiny_encoder(tiny_virchow()).encode(images).tokens
    model = tiny_virchow()
    gpu = ViTEncoder(
        model, name="tiny", image_px=224, mean=MEAN, std=STD, n_prefix=5, weights_hash="",
        licence="", device=torch.device("cuda"),
    ).encode(images).tokens  # fmt: skip
    assert np.linalg.norm(gpu - cpu) / np.linalg.norm(cpu) < 0.03


@pytest.fixture
def small_virchow2(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_virchow2` with the tiny model in place of the 2.5 GB one."""
    monkeypatch.setattr(vit, "virchow2_model", tiny_virchow)


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
    encoder = load_virchow2(weights=str(tmp_path / "w.safetensors"), device="cpu")
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
        "w.npz": "expected weights as .safetensors or .bin",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=message) as caught:
            load_virchow2(weights=name, device="cpu")
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


@pytest.mark.parametrize(
    ("name", "px", "n_prefix"),
    [
        ("vit_tiny_patch16_224", 256, 1),
        ("vit_small_patch14_dinov2", 224, 1),
        ("vit_small_patch14_reg4_dinov2", 224, 5),
        ("vit_base_patch16_rope_reg1_gap_256", 256, 1),  # a register and no class token
    ],
)
def test_other_vits_have_a_grid_of_16(name: str, px: int, n_prefix: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, dynamic_img_size=True)
    assert vit._image_px(name, model) == px
    assert model.num_prefix_tokens == n_prefix


def test_means_and_deviations_are_the_models_own(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")  # with its head: tokens need none
    encoder = load_timm("vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"))
    image = np.random.default_rng(1).integers(0, 256, (1, 256, 256, 3), np.uint8)
    x = torch.tensor(image).permute(0, 3, 1, 2) / 255 * 2 - 1  # this one was trained on −1 … 1
    with torch.inference_mode():
        expected = model.forward_features(x).numpy()
    assert (encoder.image_px, encoder.dim) == (256, 192)
    out = encoder.encode(image)
    tolerance = 1e-4 if encoder.device == CPU else 0.1
    np.testing.assert_allclose(out.tokens.reshape(1, 256, -1), expected[:, 1:], atol=tolerance)
    np.testing.assert_allclose(out.cls, expected[:, 0], atol=tolerance)


def test_without_a_class_token_the_mean_stands_in() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_base_patch16_rope_reg1_gap_256", embed_dim=48, depth=1, num_heads=3, num_classes=0
    )
    encoder = ViTEncoder(
        model, name="gap", image_px=256, mean=MEAN, std=STD, n_prefix=1, weights_hash="",
        licence="", device=CPU,
    )  # fmt: skip
    out = encoder.encode(np.random.default_rng(2).integers(0, 256, (1, 256, 256, 3), np.uint8))
    np.testing.assert_allclose(out.cls, out.tokens.mean((1, 2)), atol=1e-5)


def test_weights_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    """A checkpoint with LayerScale on an architecture without it must not load in part."""
    state = timm.create_model("vit_tiny_patch16_224", init_values=1e-5, num_classes=0).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"24 not known \(first: blocks.0.ls1.gamma\)"):
        load_timm("vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"), device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("virchow3", "expected stain, virchow2, a hub id"),
        ("resnet18", "expected a timm ViT"),
        ("swin_tiny_patch4_window7_224", "patch size of 14 or 16"),
        (
            "vit_small_patch8_224",
            r"patch size of 14 or 16; got VisionTransformer, patch size \(8, 8\)",
        ),
    ],
)
def test_models_without_such_a_grid_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder(name, device="cpu")


def test_devices() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:", "cuda:x", "mps"):
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
            pick_device(name)


def test_cuda_is_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        pick_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="expected cuda:0 to cuda:1"):
        pick_device("cuda:2")


def test_the_package_loads_no_torch() -> None:
    code = "import sys, virchow_st.encoders, virchow_st.devices; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "False"
