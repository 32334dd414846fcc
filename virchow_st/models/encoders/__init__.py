"""Frozen encoders, which map the image of a patch to a grid of tokens.

Torch is imported only when an encoder that needs it is loaded.
"""

from __future__ import annotations

from virchow_st.errors import ConfigError
from virchow_st.models.encoders.base import Encoder, Tokens, dihedral_channels
from virchow_st.models.encoders.plugins import find_plugin, load_plugin
from virchow_st.models.encoders.quarters import Quartered
from virchow_st.types import PATCH_UM

__all__ = ["Encoder", "Tokens", "dihedral_channels", "load_encoder"]

_OWN = ("virchow2", "efficientnet_lite0")  # no package takes these names over


def load_encoder(
    name: str, *, weights: str = "", device: str = "auto", token_um: int = 16
) -> Encoder:
    """Load the encoder that ``--encoder`` names.

    Args:
        name: ``stain``, ``virchow2``, ``efficientnet_lite0``, a name that an installed package adds
            (`virchow_st.models.encoders.plugins`), the hub id of a timm ViT or CNN (``org/name``,
            with or without ``hf-hub:``), or its name in timm's own registry.
        weights: Local ``.safetensors``, ``.bin`` or ``.pth`` file to load instead of the hub's or
            package's weights; empty for none.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; the stain encoder always runs on the CPU.
        token_um: Side of a token, µm; with 16 a patch is encoded whole, with 8 as four quarters.

    Raises:
        ConfigError: The name is unknown, the weights cannot be fetched or do not match the model,
            or the device is not available. There is no fallback to another encoder.
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

    if (plugin := find_plugin(name)) is not None and name not in _OWN:
        return load_plugin(plugin, weights, device)
    from virchow_st.models.encoders.load import load_network

    return load_network(name, weights=weights, device=device)
