"""Decoders, which map tokens (and, for some, the patch image) to log-rates or z-scores of bins.

`virchow_st.models.decoders.base.Decoder` is their interface. Decoders of other packages are found
by their entry points (`virchow_st.models.decoders.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from virchow_st.errors import ConfigError
from virchow_st.models.decoders.plugins import (
    DECODERS,
    check_decoder,
    find_plugin,
    load_class,
)

__all__ = ["DECODERS", "build_decoder", "decode", "decoder_class"]

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from virchow_st.models.decoders.base import Decoder
    from virchow_st.types import Array, UInt8Array


def decoder_class(name: str) -> type[Decoder]:
    """The class behind the name that ``--decoder`` takes.

    Raises:
        ConfigError: There is no such decoder, or its package does not offer what it must.
    """
    if name == "fusion":
        from virchow_st.models.decoders.fusion import FusionDecoder

        return FusionDecoder
    if name in ("hist2st", "hist2st-large"):
        from virchow_st.models.decoders.hist2st import Hist2ST

        return Hist2ST
    if name == "guided":
        from virchow_st.models.decoders.guided import GuidedDecoder

        return GuidedDecoder
    if name == "pixels":
        from virchow_st.models.decoders.guided import PixelsDecoder

        return PixelsDecoder
    if name == "img2st":
        from virchow_st.models.decoders.img2st import Img2ST

        return Img2ST
    if name == "linear":
        from virchow_st.models.decoders.linear import LinearDecoder

        return LinearDecoder
    if (entry := find_plugin(name)) is not None:
        return load_class(entry)
    raise ConfigError(
        f"--decoder: expected one of {', '.join(DECODERS)}, or one that an installed package adds; "
        f"got {name!r}"
    )


def build_decoder(
    name: str, grid: int, token_mean: Tensor, token_std: Tensor, initial_bias: Tensor
) -> Decoder:
    """Build the decoder that ``--decoder`` names.

    Args:
        name: One of `DECODERS`, or the name of another package's decoder, which is tried on one
            patch here.
        grid: Tokens per side of a patch, T.
        token_mean, token_std: (D,) mean and standard deviation of the training tokens.
        initial_bias: (G,) initial bias of the output.

    Raises:
        ConfigError: Unknown name, or another package's decoder does not offer what it must.
    """
    build: Callable[..., Decoder] = decoder_class(name)
    if name == "pixels":
        return build(initial_bias)
    size = {"hist2st": (256, 2), "hist2st-large": (936, 4)}.get(name, ())
    decoder = build(grid, token_mean, token_std, initial_bias, *size)
    if (entry := find_plugin(name)) is not None:
        check_decoder(entry, decoder, grid, len(token_mean), len(initial_bias))
    return decoder


def decode(
    decoder: Callable[..., Tensor],
    tokens: Array | Tensor,
    image: UInt8Array | Tensor | None,
    device: torch.device,
) -> Tensor:
    """Run a decoder on patches in the layout of stores and batches.

    Args:
        decoder: A decoder on ``device``, or a wrapper around one.
        tokens: (B, T, T, D), any float dtype, array or tensor.
        image: (B, 256, 256, 3) uint8 RGB, or None if the decoder does not use it.
        device: Device to compute on.

    Returns:
        (B, G, 128, 128) on ``device``.
    """
    import torch

    tokens_BTTD = torch.as_tensor(tokens).to(device).float()
    image_B3HW = None
    if image is not None:
        image_B3HW = torch.as_tensor(image).to(device).permute(0, 3, 1, 2).float() / 255
    return decoder(tokens_BTTD, image_B3HW)
