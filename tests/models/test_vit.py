"""A vision transformer as an encoder: its tokens, precision and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from tiny_vit import CPU, tiny_encoder, tiny_virchow

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import dihedral_channels
from virchow_st.models.encoders.load import load_network
from virchow_st.models.encoders.network import native_precision
from virchow_st.models.encoders.vit import ViTEncoder

MEAN, STD = IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def test_encode_equals_the_definition_and_drops_registers(images: np.ndarray) -> None:
    model = tiny_virchow()
    out = tiny_encoder(model).encode(images)
    expected = plain_vit(dict(model.state_dict()), images, heads=3, depth=2)
    assert out.tokens.dtype == out.cls.dtype == np.float16
    # Rounded to float16 once: half a step of 2⁻¹⁰ at most, and what float32 itself errs by.
    error = {"rtol": 2**-11, "atol": 1e-4}
    np.testing.assert_allclose(out.cls.astype(np.float32), expected[:, 0], **error)
    tokens = out.tokens.reshape(2, 256, 48).astype(np.float32)
    np.testing.assert_allclose(tokens, expected[:, 5:], **error)


def test_grid_is_row_major(images: np.ndarray) -> None:
    encoder = tiny_encoder(tiny_virchow())
    assert dihedral_channels(encoder.layout, encoder.dim, 1, flip=True) is None
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


def test_bfloat16_stays_close_to_float32(images: np.ndarray) -> None:
    """On the CPU, and on CUDA where there is one; the weights are rounded once, not every time."""
    exact = tiny_encoder(tiny_virchow()).encode(images).tokens.astype(np.float32)
    devices = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for device in devices:
        encoder = tiny_encoder(tiny_virchow(), device, torch.bfloat16)
        assert encoder.precision == "bfloat16"
        out = encoder.encode(images).tokens.astype(np.float32)
        error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
        assert 1e-4 < error < 0.03, error
        assert encoder.model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
        assert encoder.model.blocks[0].norm1.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        x = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
        x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        plain = tiny_virchow().eval().forward_features(x)[:, 5:].half().numpy()
    ours = tiny_encoder(tiny_virchow(), CPU, torch.bfloat16).encode(images).tokens
    np.testing.assert_allclose(ours.reshape(2, 256, 48), plain, rtol=0.02, atol=0.02)


def test_precision_is_what_the_device_multiplies_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (
        ("flags : avx512f avx512_bf16", torch.bfloat16),
        ("flags : amx_bf16", torch.bfloat16),
        ("flags : avx512f avx512_vnni", torch.float32),
        ("", torch.float32),
    ):
        monkeypatch.setattr(Path, "read_text", lambda *_, flags=flags: flags)
        assert native_precision(CPU) is expected
    for capability, expected in (((9, 0), torch.bfloat16), ((7, 5), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, c=capability: c)
        assert native_precision(torch.device("cuda")) is expected


def test_memory_that_is_too_little_is_told_and_batches_are_halved_into_it(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_encoder(tiny_virchow())
    forward, seen = encoder.model.forward_features, []

    def cramped(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        if len(x) > 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(x)

    monkeypatch.setattr(encoder.model, "forward_features", cramped)
    with pytest.raises(MemoryError, match="6 images at once are too many for cpu"):
        encoder.encode(np.concatenate([images] * 3))
    assert encoder.largest_batch(64) == 4
    assert seen == [6, 64, 32, 16, 8, 4]
    monkeypatch.setattr(
        encoder.model, "forward_features", lambda x: (_ for _ in ()).throw(MemoryError)
    )
    assert encoder.largest_batch(64) == 1  # the first patch will tell


def test_a_model_that_does_not_fit_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: torch.nn.Module, *_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(ConfigError, match="tiny: the model does not fit the memory") as caught:
        tiny_encoder(tiny_virchow())
    assert "\n" not in str(caught.value)


def test_means_and_deviations_are_the_models_own(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")  # with its head: tokens need none
    encoder = load_network("vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"))
    rough = encoder.precision != "float32"
    image = np.random.default_rng(1).integers(0, 256, (1, 256, 256, 3), np.uint8)
    x = torch.tensor(image).permute(0, 3, 1, 2) / 255 * 2 - 1  # this one was trained on −1 … 1
    with torch.inference_mode():
        expected = model.forward_features(x).numpy()
    assert (encoder.image_px, encoder.dim) == (256, 192)
    out = encoder.encode(image)
    tolerance = 0.1 if rough else 0.01
    np.testing.assert_allclose(out.tokens.reshape(1, 256, -1), expected[:, 1:], atol=tolerance)
    np.testing.assert_allclose(out.cls, expected[:, 0], atol=tolerance)


def test_without_a_class_token_the_mean_stands_in() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_base_patch16_rope_reg1_gap_256", embed_dim=48, depth=1, num_heads=3, num_classes=0
    )
    encoder = ViTEncoder(
        model, name="gap", image_px=256, colours=IMAGENET, n_prefix=1, weights_hash="",
        licence="", device=CPU, precision=torch.float32,
    )  # fmt: skip
    out = encoder.encode(np.random.default_rng(2).integers(0, 256, (1, 256, 256, 3), np.uint8))
    mean = out.tokens.astype(np.float32).mean((1, 2))
    np.testing.assert_allclose(out.cls.astype(np.float32), mean, rtol=2**-9, atol=1e-4)
