"""Frozen encoders: the image of a patch to a grid of tokens.

Nothing here loads torch until an encoder that needs it is asked for.
"""

from __future__ import annotations

from virchow_st.encoders.base import Encoder, Tokens, dihedral_channels
from virchow_st.errors import ConfigError

__all__ = ["Encoder", "Tokens", "dihedral_channels", "load_encoder"]


def load_encoder(name: str, *, weights: str = "", device: str = "auto") -> Encoder:
    """Load the encoder that ``--encoder`` names, ready to encode.

    Args:
        name: ``stain``, ``virchow2``, the hub id of a timm ViT (``org/name``, with or without
            ``hf-hub:``), or a ViT in timm's own registry.
        weights: a local ``.safetensors`` or ``.bin`` file instead of the hub.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; the stain encoder always runs on the CPU.

    Raises:
        ConfigError: the name is unknown, the weights cannot be fetched or do not fit, or the
            device is not there. No other encoder is ever loaded in its place.
    """
    if name == "stain":
        if weights:
            raise ConfigError(f"weights: the stain encoder has none to load; got {weights!r}")
        from virchow_st.encoders.stain import StainEncoder

        return StainEncoder()

    from virchow_st.encoders import vit

    if vit.hub_repo(name).lower() in ("virchow2", vit.VIRCHOW2_REPO.lower()):
        return vit.load_virchow2(weights=weights, device=device)
    return vit.load_timm(name, weights=weights, device=device)
