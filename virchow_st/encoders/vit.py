"""Vision transformers built by timm: Virchow2, and others with a 16 × 16 grid of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers import SwiGLUPacked

from virchow_st.devices import pick_device
from virchow_st.encoders.base import Encoder, Tokens
from virchow_st.encoders.weights import (
    cached_weights,
    check_fits,
    fetch_hub_weights,
    first_line,
    hub_error,
    parameters_hash,
    read_state_dict,
    require_hub_access,
)
from virchow_st.errors import ConfigError
from virchow_st.types import UInt8Array

GRID = 16
IMAGE_PX = {14: 14 * GRID, 16: 16 * GRID}  # side of a ViT's patch → side of the image, px

VIRCHOW2_REPO = "paige-ai/Virchow2"
VIRCHOW2_LICENCE = (
    "CC-BY-NC-ND 4.0: Virchow2's weights, and stores and models made from them, are for "
    f"non-commercial use and not to be passed on; see https://huggingface.co/{VIRCHOW2_REPO}"
)
_VIRCHOW2_MEAN = (0.485, 0.456, 0.406)
_VIRCHOW2_STD = (0.229, 0.224, 0.225)


class ViTEncoder(Encoder):
    """A timm ViT: its normalised last-layer patch tokens, row-major; registers are dropped.

    On CUDA it runs in bfloat16 autocast (the tokens err by about 0.2 %), on the CPU in float32.

    Args:
        model: a timm ViT whose ``forward_features`` gives (B, n_prefix + 256, D).
        name: what ``--encoder`` called it.
        image_px: side of the input image, px.
        mean: of the RGB channels in the model's own training, on a scale of 0–1.
        std: likewise.
        n_prefix: tokens before the patch tokens: the class token, then any registers.
        weights_hash: see `parameters_hash`.
        licence: what may be done with the tokens.
        device: where it runs.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        name: str,
        image_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        n_prefix: int,
        weights_hash: str,
        licence: str,
        device: torch.device,
    ) -> None:
        self.model = model.requires_grad_(False).eval().to(device)
        self.name = name
        self.dim = int(model.embed_dim)  # type: ignore[arg-type]
        self.grid = GRID
        self.image_px = image_px
        self.weights_hash = weights_hash
        self.licence = licence
        self.device = device
        self._n_prefix = n_prefix
        self._has_cls = getattr(model, "cls_token", None) is not None
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(3, 1, 1) * 255

    @torch.inference_mode()
    def encode(self, images: UInt8Array) -> Tokens:
        """Encode RGB images (B, image_px, image_px, 3) uint8 in one pass: B is the batch.

        ``cls`` is the class token, or the mean of the patch tokens in a model without one.
        """
        self._check_images(images)
        x = torch.from_numpy(np.array(images, order="C")).to(self.device)  # uint8 crosses the bus
        x = (x.permute(0, 3, 1, 2).float() - self._mean) / self._std  # (B, 3, S, S)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            y = self.model.forward_features(x)  # type: ignore[operator]
        y = y.float()  # (B, n_prefix + 256, D)
        patch = y[:, self._n_prefix :]
        cls = y[:, 0] if self._has_cls else patch.mean(1)
        grid = patch.reshape(len(images), GRID, GRID, self.dim)
        return Tokens(grid.cpu().numpy(), cls.cpu().numpy())


def virchow2_model() -> torch.nn.Module:
    """Virchow2's architecture, 631.2 M parameters, as its model card gives it; weights random."""
    return timm.create_model(
        "vit_huge_patch14_224",
        img_size=224,
        init_values=1e-5,
        num_classes=0,
        mlp_ratio=5.3375,
        reg_tokens=4,
        global_pool="",
        dynamic_img_size=True,
        mlp_layer=SwiGLUPacked,
        act_layer=torch.nn.SiLU,
    )


def load_virchow2(*, weights: str = "", device: str = "auto") -> ViTEncoder:
    """Load Virchow2 from a local file or, where access was granted, from the hub.

    Raises:
        ConfigError: the device is not there; the file is not Virchow2's; or the hub refuses or
            cannot be reached (the message names the page to accept, the login and ``--weights``).
    """
    place = pick_device(device)
    path = Path(weights) if weights else fetch_hub_weights(VIRCHOW2_REPO)
    with torch.device("meta"):  # no time spent on random weights that are replaced at once
        model = virchow2_model()
    _load_strictly(model, read_state_dict(path), str(path))
    return ViTEncoder(
        model,
        name="virchow2",
        image_px=IMAGE_PX[14],
        mean=_VIRCHOW2_MEAN,
        std=_VIRCHOW2_STD,
        n_prefix=5,  # class token and four registers
        weights_hash=parameters_hash(model),
        licence=VIRCHOW2_LICENCE,
        device=place,
    )


def _load_strictly(
    model: torch.nn.Module, state: dict[str, torch.Tensor], source: str
) -> torch.nn.Module:
    """Put a checked state dict into a model that may still be on the meta device; float32."""
    check_fits(model, state, source)
    model.load_state_dict(state, strict=True, assign=True)
    return model.float()


def load_timm(name: str, *, weights: str = "", device: str = "auto") -> ViTEncoder:
    """Load a timm ViT by hub id or registry name, with its published mean and deviation.

    A patch size of 14 takes images of 224 px, one of 16 images of 256 px (position embeddings are
    interpolated by timm), so that the grid is 16 × 16.

    Raises:
        ConfigError: the name is unknown; it is no ViT with such a grid; or its weights cannot be
            fetched or do not fit in full.
    """
    place = pick_device(device)
    repo = hub_repo(name)
    on_hub = "/" in repo
    if not on_hub and not timm.is_model(repo):
        raise ConfigError(
            f"encoder: expected stain, virchow2, a hub id (org/name) or a timm ViT; got {name!r}"
        )
    if on_hub and cached_weights(repo) is None:
        require_hub_access(repo)  # timm needs the hub's configuration even with local weights
    model_name = f"hf-hub:{repo}" if on_hub else repo

    with torch.device("meta"):
        skeleton = _create(name, model_name, pretrained=False)
    image_px = _image_px(name, skeleton)
    source: dict[str, Any] = skeleton.pretrained_cfg  # type: ignore[assignment]
    if weights:
        model = _create(name, model_name, pretrained=False, num_classes=0)
        state = read_state_dict(Path(weights))
        head = f"{source.get('classifier') or 'head'}."
        state = {k: v for k, v in state.items() if not k.startswith(head)}  # tokens need no head
        check_fits(model, state, weights)
        model.load_state_dict(state, strict=True)
    else:
        home = source.get("hf_hub_id") or ""
        if not on_hub and home and cached_weights(home) is None:
            require_hub_access(home)
        model = _create(name, model_name, pretrained=True)
    terms = [source.get("license"), f"see https://huggingface.co/{repo}" if on_hub else None]
    return ViTEncoder(
        model,
        name=name,
        image_px=image_px,
        mean=source["mean"],
        std=source["std"],
        n_prefix=int(skeleton.num_prefix_tokens),  # type: ignore[arg-type]
        weights_hash=parameters_hash(model),
        licence=": ".join(filter(None, terms)),
        device=place,
    )


def hub_repo(name: str) -> str:
    """``org/name`` without the ``hf-hub:`` that may stand before it; other names as they are."""
    return name.removeprefix("hf-hub:").removeprefix("hf_hub:")


def _create(name: str, model_name: str, **options: Any) -> torch.nn.Module:
    """Build a timm model that takes any image size; `ConfigError` where timm cannot."""
    try:
        return timm.create_model(model_name, dynamic_img_size=True, **options)
    except TypeError as e:  # every plain ViT takes dynamic_img_size, other families do not
        raise ConfigError(
            f"{name}: expected a timm ViT that takes dynamic_img_size ({first_line(e)})"
        ) from e
    except OSError as e:
        raise hub_error(hub_repo(name), e) from e
    except Exception as e:  # a hub configuration that is not timm's, or weights that do not fit it
        raise ConfigError(
            f"{name}: timm cannot build this model from its own configuration ({first_line(e)})"
        ) from e


def _image_px(name: str, skeleton: torch.nn.Module) -> int:
    """Side of the image that gives a 16 × 16 grid; checked by a pass without data (meta device)."""
    n_prefix: int | None = getattr(skeleton, "num_prefix_tokens", None)
    patch: tuple[int, int] | None = getattr(
        getattr(skeleton, "patch_embed", None), "patch_size", None
    )
    if n_prefix is None or patch is None or patch[0] != patch[1] or patch[0] not in IMAGE_PX:
        kind = type(skeleton).__name__
        raise ConfigError(
            f"{name}: expected a ViT with a patch size of 14 or 16; got {kind}, patch size {patch}"
        )
    px = IMAGE_PX[patch[0]]
    image = torch.empty(1, 3, px, px, device="meta")
    shape = tuple(skeleton.eval().forward_features(image).shape)  # type: ignore[operator]
    if len(shape) != 3 or shape[1] != n_prefix + GRID * GRID:
        raise ConfigError(
            f"{name}: expected {n_prefix} + {GRID}×{GRID} tokens from {px} px; got {shape}"
        )
    return px
