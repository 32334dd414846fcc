"""Loads a network with its weights by name; weights must match the model completely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import packaged
from virchow_st.models.encoders.cnn import CNNEncoder, stride_16
from virchow_st.models.encoders.network import GRID, NetworkEncoder
from virchow_st.models.encoders.published import Published, find_published
from virchow_st.models.encoders.vit import IMAGE_PX, ViTEncoder
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


def load_network(name: str, *, weights: str = "", device: str = "auto") -> NetworkEncoder:
    """Load Virchow2, another published model, or any ViT or CNN of timm or the Hugging Face Hub.

    A ViT with a patch size of 14 px gets images of 224 px, one with 16 px images of 256 px (timm
    interpolates the position embeddings), and so does a network with a feature map of stride 16 px,
    so that the token grid is always 16 × 16.

    Args:
        name: ``virchow2``, ``efficientnet_lite0``, a hub id (``org/name``, with or without
            ``hf-hub:``), or a timm name.
        weights: Local ``.safetensors``, ``.bin`` or ``.pth`` file to load instead of the hub's
            weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: The device is not available, the name is unknown, the model has no such grid,
            or its weights do not match in full or cannot be fetched (the message then
            names the licence page, the login command and ``--weights``).
    """
    place = pick_device(device)
    repo = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    if (published := find_published(repo)) is not None:
        return _load_published(published, weights, place)
    if repo == packaged.NAME:
        return _load_packaged(weights, place)
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


def _load_packaged(weights: str, device: torch.device) -> CNNEncoder:
    path = Path(weights) if weights else packaged.packaged_weights()
    with torch.device("meta"):
        found = stride_16(packaged.build_model())
    assert found is not None
    model = packaged.build_model()
    state = packaged.timm_names(read_state_dict(path))
    check_fits(model, state, str(path))
    model.load_state_dict(state, strict=True)
    return CNNEncoder(
        model,
        index=found[0],
        dim=found[1],
        name=packaged.NAME,
        colours=packaged.COLOURS,
        weights_hash=parameters_hash(model),
        licence=packaged.LICENCE,
        device=device,
    )


def _load_timm(name: str, repo: str, weights: str, device: torch.device) -> NetworkEncoder:
    """Build a model from its own configuration, with the colour statistics given there."""
    on_hub = "/" in repo
    if not on_hub and not timm.is_model(repo):
        raise ConfigError(
            "encoder: expected stain, virchow2, efficientnet_lite0, a hub id (org/name), a ViT or "
            f"CNN of timm, or the name that an installed package adds; got {name!r}"
        )
    if on_hub and cached_weights(repo) is None:
        require_hub_access(repo)  # timm needs the hub's configuration even with local weights
    model_name = f"hf-hub:{repo}" if on_hub else repo

    with torch.device("meta"):
        skeleton, is_vit = _skeleton(name, repo, model_name)
        options: dict[str, Any] = {"dynamic_img_size": True} if is_vit else {"num_classes": 0}
        feature_map = None if is_vit else stride_16(skeleton)
        image_px = _image_px(name, skeleton) if feature_map is None else 0
    source: dict[str, Any] = skeleton.pretrained_cfg  # type: ignore[assignment]
    if weights:
        model = _create(name, repo, model_name, **{**options, "num_classes": 0})
        state = read_state_dict(Path(weights))
        heads = source.get("classifier") or "head"
        prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        state = {k: v for k, v in state.items() if not k.startswith(prefixes)}  # needs no head
        check_fits(model, state, weights)
        model.load_state_dict(state, strict=True)
    else:
        home = source.get("hf_hub_id") or ""
        if not on_hub and home and cached_weights(home) is None:
            require_hub_access(home)
        model = _create(name, repo, model_name, pretrained=True, **options)
    terms = [source.get("license"), f"see https://huggingface.co/{repo}" if on_hub else None]
    shared: dict[str, Any] = {
        "name": name,
        "colours": (source["mean"], source["std"]),
        "weights_hash": parameters_hash(model),
        "licence": ": ".join(filter(None, terms)),
        "device": device,
    }
    if feature_map is not None:
        return CNNEncoder(model, index=feature_map[0], dim=feature_map[1], **shared)
    n_prefix = int(skeleton.num_prefix_tokens)  # type: ignore[arg-type]
    return ViTEncoder(model, image_px=image_px, n_prefix=n_prefix, **shared)


def _skeleton(name: str, repo: str, model_name: str) -> tuple[torch.nn.Module, bool]:
    """Model without values, and whether it is a ViT that takes ``dynamic_img_size``."""
    try:  # every plain ViT takes it, other families do not
        return _create(name, repo, model_name, dynamic_img_size=True), True
    except _ArgumentError:
        return _create(name, repo, model_name), False


class _ArgumentError(ConfigError):
    """The architecture does not know an argument."""


def _create(
    name: str, repo: str, model_name: str, *, pretrained: bool = False, **options: Any
) -> torch.nn.Module:
    """Build a timm model; raises `ConfigError` if timm cannot."""
    try:
        return timm.create_model(model_name, pretrained=pretrained, **options)
    except TypeError as e:
        raise _ArgumentError(
            f"{name}: timm's model takes no {', '.join(options)} ({first_line(e)})"
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
            f"{name}: expected a ViT with a patch size of 14 or 16, or a network with a feature "
            f"map of stride 16; got {kind}, patch size {patch}"
        )
    px = IMAGE_PX[patch[0]]
    image = torch.empty(1, 3, px, px, device="meta")
    shape = tuple(skeleton.eval().forward_features(image).shape)  # type: ignore[operator]
    if len(shape) != 3 or shape[1] != n_prefix + GRID * GRID:
        raise ConfigError(
            f"{name}: expected {n_prefix} + {GRID}×{GRID} tokens from {px} px; got {shape}"
        )
    return px
