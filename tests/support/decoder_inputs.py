"""Decoders of a few genes, with random tokens and images to decode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from virchow_st.models.decoders import build_decoder
from virchow_st.models.decoders.base import Decoder

DIM, GENES = 24, 5
BIAS = torch.tensor([-4.0, -2.0, 0.0, 1.0, 3.0])
WITH_TOKENS = ("fusion", "hist2st", "guided", "img2st", "linear")
WITH_IMAGE = ("fusion", "guided", "pixels")

# Without `hist2st-large`, which differs from `hist2st` in two numbers and takes long.
decoders = pytest.mark.parametrize("name", [*WITH_TOKENS, "pixels"])
decoders_of_tokens = pytest.mark.parametrize("name", WITH_TOKENS)
decoders_of_images = pytest.mark.parametrize("name", WITH_IMAGE)


def make(name: str, grid: int = 16) -> Decoder:
    """A decoder of `GENES` genes whose tokens have mean 2 and standard deviation 3."""
    torch.manual_seed(0)
    decoder = build_decoder(name, grid, torch.full((DIM,), 2.0), torch.full((DIM,), 3.0), BIAS)
    return decoder.eval()


def some_tokens(batch: int = 2, grid: int = 16, seed: int = 0, dim: int = DIM) -> torch.Tensor:
    """Tokens float32 (batch, grid, grid, dim), as `make` standardises them."""
    return torch.from_numpy(
        np.random.default_rng(seed).normal(2, 3, (batch, grid, grid, dim)).astype(np.float32)
    )


def some_image(name: str, batch: int = 2, seed: int = 0) -> torch.Tensor | None:
    """An image for a decoder that wants one, else None: coarse structure and fine noise."""
    if name not in WITH_IMAGE:
        return None
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0.3, 0.9, (batch, 3, 32, 32)).repeat(8, 2).repeat(8, 3)
    fine = rng.normal(0, 0.05, (batch, 3, 256, 256))
    return torch.from_numpy(np.clip(coarse + fine, 0, 1).astype(np.float32))
