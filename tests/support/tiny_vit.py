"""A tiny ViT with Virchow2's architecture: SwiGLU, four registers; 48 channels, two blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from virchow_st.models.encoders.published import VIRCHOW2, Published
from virchow_st.models.encoders.vit import ViTEncoder
from virchow_st.models.encoders.weights import parameters_hash

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def tiny_published(published: Published = VIRCHOW2) -> Published:
    """A published model, reduced to 48 channels and two blocks."""
    return replace(published, arguments={**published.arguments, **TINY})


def tiny_virchow(seed: int = 0) -> torch.nn.Module:
    """A tiny ViT like Virchow2, with weights large enough to influence the output."""
    model = tiny_published().model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


def tiny_encoder(
    model: torch.nn.Module | None = None,
    device: torch.device = CPU,
    precision: torch.dtype = torch.float32,
) -> ViTEncoder:
    model = tiny_virchow() if model is None else model
    return ViTEncoder(
        model, name="tiny", image_px=224, colours=VIRCHOW2.colours, n_prefix=5,
        weights_hash=parameters_hash(model), licence="", device=device, precision=precision,
    )  # fmt: skip
