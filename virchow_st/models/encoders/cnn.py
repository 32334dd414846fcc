"""Encoders that are convolutional networks of timm: tokens are the feature map of stride 16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from virchow_st.models.encoders.network import GRID, NetworkEncoder
from virchow_st.models.encoders.published import Colour

STRIDE = 16
IMAGE_PX = GRID * STRIDE
"""Side of the image, px: 1 µm/px, so that a stride of 16 px is a token of 16 µm."""


class CNNEncoder(NetworkEncoder):
    """Encoder that returns the last feature map of stride 16 px of a timm network, row-major.

    It is the map that timm gives with ``features_only=True``. ``cls`` is the mean of the tokens.
    Everything is computed in float32: in bfloat16 the errors of the layers of EfficientNet-Lite0
    add up to 7 %, and a network of this kind is small enough to do without.

    Args:
        model: A timm network with ``forward_intermediates``; it is modified in place.
        index: Index of the feature map, see `stride_16`.
        dim: Number of its channels.
        name, colours, weights_hash, licence, device, precision: See `NetworkEncoder`.

    Raises:
        ConfigError: The device has not enough memory for the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        index: int,
        dim: int,
        name: str,
        colours: tuple[Colour, Colour],
        weights_hash: str,
        licence: str,
        device: torch.device,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self._index = index
        super().__init__(
            model,
            name=name,
            dim=dim,
            image_px=IMAGE_PX,
            colours=colours,
            weights_hash=weights_hash,
            licence=licence,
            device=device,
            precision=precision,
        )

    def _tokens(self, images_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        y_BDTT = _feature_map(self.model, images_B3SS, self._index).float()
        return y_BDTT.permute(0, 2, 3, 1), y_BDTT.mean((2, 3))


def stride_16(skeleton: torch.nn.Module) -> tuple[int, int] | None:
    """Index and channels of the last feature map of stride 16 px; None if there is none.

    Args:
        skeleton: A timm network on the meta device; one forward pass verifies the map's shape.
    """
    about: Any = getattr(skeleton, "feature_info", None)
    if about is None or not hasattr(skeleton, "forward_intermediates"):
        return None
    found = [i for i, stage in enumerate(about) if stage["reduction"] == STRIDE]
    if not found:
        return None
    index, dim = found[-1], int(about[found[-1]]["num_chs"])
    image = torch.empty(1, 3, IMAGE_PX, IMAGE_PX, device="meta")
    try:
        shape = tuple(_feature_map(skeleton.eval(), image, index).shape)
    except (AssertionError, RuntimeError, ValueError):  # such as an image size that is fixed
        return None
    return (index, dim) if shape == (1, dim, GRID, GRID) else None


def _feature_map(model: torch.nn.Module, images_B3SS: Tensor, index: int) -> Tensor:
    """(B, D, T, T); layers behind the map are not run."""
    maps: list[Tensor] = model.forward_intermediates(  # type: ignore[operator]
        images_B3SS, indices=[index], stop_early=True, intermediates_only=True
    )
    return maps[0]
