"""Encoders that are timm vision transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from virchow_st.models.encoders.network import GRID, NetworkEncoder
from virchow_st.models.encoders.published import Colour

IMAGE_PX = {14: 14 * GRID, 16: 16 * GRID}  # side of a ViT's patch → side of the image, px


class ViTEncoder(NetworkEncoder):
    """Encoder that returns the normalised last-layer patch tokens of a timm ViT, row-major.

    Register tokens are dropped. ``cls`` is the class token, or the mean of the patch tokens in a
    model without one.

    Args:
        model: A timm ViT whose ``forward_features`` returns (B, n_prefix + 256, D); it is modified
            in place.
        name: Name of the encoder, as given to ``--encoder``.
        image_px: Side of the input image, px.
        colours: Mean and standard deviation of the RGB channels in the model's training, 0–1.
        n_prefix: Number of tokens before the patch tokens: the class token and any registers.
        weights_hash, licence, device, precision: See `NetworkEncoder`.

    Raises:
        ConfigError: The device has not enough memory for the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        name: str,
        image_px: int,
        colours: tuple[Colour, Colour],
        n_prefix: int,
        weights_hash: str,
        licence: str,
        device: torch.device,
        precision: torch.dtype | None = None,
    ) -> None:
        self._n_prefix = n_prefix
        self._has_cls = getattr(model, "cls_token", None) is not None
        super().__init__(
            model,
            name=name,
            dim=int(model.embed_dim),  # type: ignore[arg-type]
            image_px=image_px,
            colours=colours,
            weights_hash=weights_hash,
            licence=licence,
            device=device,
            precision=precision,
        )

    def _tokens(self, images_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        y = self.model.forward_features(images_B3SS)  # type: ignore[operator]
        patch = y[:, self._n_prefix :]  # of (B, n_prefix + 256, D)
        cls = y[:, 0] if self._has_cls else patch.float().mean(1)
        return patch.unflatten(1, (GRID, GRID)), cls
