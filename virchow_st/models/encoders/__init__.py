"""Frozen encoders: the image of a patch to a grid of tokens.

Nothing here loads torch until an encoder that needs it is asked for.
"""

from __future__ import annotations

from virchow_st.errors import ConfigError
from virchow_st.models.encoders.base import Encoder, Tokens, dihedral_channels
from virchow_st.models.encoders.quarters import Quartered
from virchow_st.types import PATCH_UM

__all__ = ["Encoder", "Tokens", "dihedral_channels", "load_encoder"]


def load_encoder(
    name: str, *, weights: str = "", device: str = "auto", token_um: int = 16
) -> Encoder:
    """Load the encoder that ``--encoder`` names, ready to encode.

    Args:
        name: ``stain``, ``virchow2``, the hub id of a timm ViT (``org/name``, with or without
            ``hf-hub:``), or a ViT in timm's own registry.
        weights: a local ``.safetensors`` or ``.bin`` file instead of the hub.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; the stain encoder always runs on the CPU.
        token_um: side of a token; 16 for patches encoded whole, 8 for patches in quarters.

    Raises:
        ConfigError: the name is unknown, the weights cannot be fetched or do not fit, or the
            device is not there. No other encoder is ever loaded in its place.
    """
    encoder = _load(name, weights, device)
    if PATCH_UM // token_um == encoder.grid:
        return encoder
    return Quartered(encoder)


def _load(name: str, weights: str, device: str) -> Encoder:
    if name == "stain":
        if weights:
            raise ConfigError(f"weights: the stain encoder has none to load; got {weights!r}")
        from virchow_st.models.encoders.stain import StainEncoder

        return StainEncoder()

    from virchow_st.models.encoders.load import load_vit

    return load_vit(name, weights=weights, device=device)
