"""Vision transformers: the token layout, weights in and out, and what happens without access."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from dataclasses import replace
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
from tiny_vit import CPU, tiny_encoder, tiny_published, tiny_virchow

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import dihedral_channels, load_encoder
from virchow_st.models.encoders import weights as weights_module
from virchow_st.models.encoders.load import _image_px, load_vit
from virchow_st.models.encoders.published import PUBLISHED, VIRCHOW2, find_published
from virchow_st.models.encoders.vit import ViTEncoder, native_precision
from virchow_st.models.encoders.weights import parameters_hash
from virchow_st.runtime.devices import pick_device

MEAN, STD = IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        model = VIRCHOW2.model().eval()
        tokens = model.forward_features(torch.empty(2, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == 631_239_424
    assert tokens.shape == (2, 261, 1280)
    assert model.num_prefix_tokens == 5
    assert len(model.blocks) == 32
    assert model.blocks[0].mlp.fc1.out_features == 6832
    assert model.reg_token.shape == (1, 4, 1280)


# Parameters as the models' pages give them, in millions; the dimension; tokens before the patches'.
SIZES = {
    "paige-ai/Virchow2": (631.2, 1280, 5),
    "paige-ai/Virchow": (631.2, 1280, 1),
    "MahmoodLab/UNI": (303.4, 1024, 1),
    "MahmoodLab/UNI2-h": (681.4, 1536, 9),
    "bioptimus/H-optimus-0": (1134.8, 1536, 5),
    "bioptimus/H-optimus-1": (1134.8, 1536, 5),
    "prov-gigapath/prov-gigapath": (1135.0, 1536, 1),
}


def test_published_models_are_built_as_their_pages_say() -> None:
    assert {p.repo for p in PUBLISHED.values()} == set(SIZES)
    for repo, (millions, dim, n_prefix) in SIZES.items():
        published = find_published(repo.upper())
        assert published is not None
        with torch.device("meta"):
            model = published.model()
            px = _image_px(repo, model)  # it looks at the shape of the output, too
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
        assert model.num_prefix_tokens == n_prefix
        assert model.embed_dim == dim
        assert px == (256 if repo in ("MahmoodLab/UNI", "prov-gigapath/prov-gigapath") else 224)
        page = f"https://huggingface.co/{repo}"
        assert page in published.licence
        assert ("non-commercial" in published.licence) == ("NC" in published.terms)
    assert find_published("virchow2") is VIRCHOW2
    assert find_published("someone/else") is None


def test_a_published_model_needs_nothing_but_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UNI2-h's kind, tiny: eight registers, a mean of its own; no question to the hub."""
    uni = PUBLISHED["mahmoodlab/uni2-h"]
    colours = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    tiny = replace(tiny_published(uni), colours=colours)
    monkeypatch.setitem(PUBLISHED, "mahmoodlab/uni2-h", tiny)
    monkeypatch.setattr(weights_module, "HfApi", None)
    torch.manual_seed(3)
    model = tiny.model()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder("mahmoodlab/uni2-H", weights=str(tmp_path / "w.safetensors"))
    assert (encoder.name, encoder.dim, encoder.grid) == ("MahmoodLab/UNI2-h", 48, 16)
    image = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), np.uint8)
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in colours)
    x = (torch.tensor(image).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        expected = model.eval().forward_features(x)[:, 9:].numpy()
    out = encoder.encode(image).tokens.reshape(1, 256, 48)
    tolerance = 0.02 if encoder.precision == "float32" else 0.3
    np.testing.assert_allclose(out, expected, atol=tolerance)


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


@pytest.fixture
def small_virchow2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virchow2 with the tiny model in place of the 2.5 GB one, in float32 on any CPU."""
    monkeypatch.setitem(PUBLISHED, VIRCHOW2.repo.lower(), tiny_published())
    monkeypatch.setattr(
        "virchow_st.models.encoders.vit.native_precision", lambda device: torch.float32
    )


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
    encoder = load_vit("virchow2", weights=str(tmp_path / "w.safetensors"), device="cpu")
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
            load_vit("virchow2", weights=name, device="cpu")
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
        assert _image_px(name, model) == px
    assert model.num_prefix_tokens == n_prefix


def test_means_and_deviations_are_the_models_own(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")  # with its head: tokens need none
    encoder = load_vit("vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"))
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


def test_weights_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    """A checkpoint with LayerScale on an architecture without it must not load in part."""
    state = timm.create_model("vit_tiny_patch16_224", init_values=1e-5, num_classes=0).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"24 not known \(first: blocks.0.ls1.gamma\)"):
        load_vit("vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"), device="cpu")


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
    imports = "import sys, virchow_st.models.encoders, virchow_st.runtime.devices"
    code = f"{imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "False"
