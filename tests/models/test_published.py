"""Which models can be encoders: the published ones, other ViTs of timm, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_vit import tiny_published

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import load_encoder
from virchow_st.models.encoders import weights as weights_module
from virchow_st.models.encoders.load import _image_px
from virchow_st.models.encoders.published import PUBLISHED, VIRCHOW2, find_published


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("virchow3", "expected stain, virchow2, efficientnet_lite0, a hub id"),
        ("mixer_b16_224", "a feature map of stride 16"),
        ("swin_tiny_patch4_window7_224", "patch size of 14 or 16"),
        (
            "vit_small_patch8_224",
            r"patch size of 14 or 16, .* got VisionTransformer, patch size \(8, 8\)",
        ),
    ],
)
def test_models_without_such_a_grid_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder(name, device="cpu")


def test_the_package_loads_no_torch() -> None:
    imports = "import sys, virchow_st.models.encoders, virchow_st.runtime.devices"
    code = f"{imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "False"
