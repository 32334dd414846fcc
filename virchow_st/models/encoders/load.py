"""Loads a ViT with its weights by name; weights must match the model completely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from virchow_st.errors import ConfigError
from virchow_st.models.encoders.published import Published, find_published
from virchow_st.models.encoders.vit import GRID, IMAGE_PX, ViTEncoder
from virchow_st.models.encoders.weights import (
    cached_weights,
    check_fits,
    fetch_hub_weights,
    first_line,
    hub_error,
    parameters_hash,
    read_state_dict,
    require_hub_access,
)
from virchow_st.runtime.devices import pick_device


def load_vit(name: str, *, weights: str = "", device: str = "auto") -> ViTEncoder:
    """Load Virchow2, another published model, or any ViT of timm or the Hugging Face Hub.

    A ViT with a patch size of 14 px gets images of 224 px, one with 16 px images of 256 px (timm
    interpolates the position embeddings), so that the token grid is always 16 × 16.

    Args:
        name: ``virchow2``, a hub id (``org/name``, with or without ``hf-hub:``), or a timm name.
        weights: Local ``.safetensors`` or ``.bin`` file to load instead of the hub's weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: The device is not available, the name is unknown, the model is not a ViT with
            such a grid, or its weights do not match in full or cannot be fetched (the message then
            names the licence page, the login command and ``--weights``).
    """
    place = pick_device(device)
    repo = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if (published := find_published(repo)) is not None:
        return _load_published(published, weights, place)
    return _load_timm(name, repo, weights, place)


def _load_published(published: Published, weights: str, device: torch.device) -> ViTEncoder:
    path = Path(weights) if weights else fetch_hub_weights(published.repo)
    with torch.device("meta"):  # skips the initialisation of weights that are replaced anyway
        model = published.model()
        image_px = _image_px(published.repo, model)
    state = read_state_dict(path)
    check_fits(model, state, str(path))
    model.load_state_dict(state, strict=True, assign=True)
    return ViTEncoder(
        model.float(),
        name=published.name or published.repo,
        image_px=image_px,
        colours=published.colours,
        n_prefix=int(model.num_prefix_tokens),  # type: ignore[arg-type]
        weights_hash=parameters_hash(model),
        licence=published.licence,
        device=device,
    )


def _load_timm(name: str, repo: str, weights: str, device: torch.device) -> ViTEncoder:
    """Build a model from its own configuration, with the colour statistics given there."""
    on_hub = "/" in repo
    if not on_hub and not timm.is_model(repo):
        raise ConfigError(
            f"encoder: expected stain, virchow2, a hub id (org/name) or a timm ViT; got {name!r}"
        )
    if on_hub and cached_weights(repo) is None:
        require_hub_access(repo)  # timm needs the hub's configuration even with local weights
    model_name = f"hf-hub:{repo}" if on_hub else repo

    with torch.device("meta"):
        skeleton = _create(name, repo, model_name, pretrained=False)
        image_px = _image_px(name, skeleton)
    source: dict[str, Any] = skeleton.pretrained_cfg  # type: ignore[assignment]
    if weights:
        model = _create(name, repo, model_name, pretrained=False, num_classes=0)
        state = read_state_dict(Path(weights))
        head = f"{source.get('classifier') or 'head'}."
        state = {k: v for k, v in state.items() if not k.startswith(head)}  # tokens need no head
        check_fits(model, state, weights)
        model.load_state_dict(state, strict=True)
    else:
        home = source.get("hf_hub_id") or ""
        if not on_hub and home and cached_weights(home) is None:
            require_hub_access(home)
        model = _create(name, repo, model_name, pretrained=True)
    terms = [source.get("license"), f"see https://huggingface.co/{repo}" if on_hub else None]
    return ViTEncoder(
        model,
        name=name,
        image_px=image_px,
        colours=(source["mean"], source["std"]),
        n_prefix=int(skeleton.num_prefix_tokens),  # type: ignore[arg-type]
        weights_hash=parameters_hash(model),
        licence=": ".join(filter(None, terms)),
        device=device,
    )


def _create(name: str, repo: str, model_name: str, **options: Any) -> torch.nn.Module:
    """Build a timm model that accepts any image size; raises `ConfigError` if timm cannot."""
    try:
        return timm.create_model(model_name, dynamic_img_size=True, **options)
    except TypeError as e:  # every plain ViT takes dynamic_img_size, other families do not
        raise ConfigError(
            f"{name}: expected a timm ViT that takes dynamic_img_size ({first_line(e)})"
        ) from e
    except OSError as e:
        raise hub_error(repo, e) from e
    except Exception as e:  # a hub configuration that is not timm's, or weights that do not fit it
        raise ConfigError(
            f"{name}: timm cannot build this model from its own configuration ({first_line(e)})"
        ) from e


def _image_px(name: str, skeleton: torch.nn.Module) -> int:
    """Image side that gives a 16 × 16 grid; verified by a forward pass on the meta device."""
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
