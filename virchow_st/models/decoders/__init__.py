"""Decoders: tokens, and for some the patch image, to what a loss reads as rates.

The contract is `virchow_st.models.decoders.base.Decoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from virchow_st.models.decoders.base import Decoder
    from virchow_st.types import Array, UInt8Array


def build_decoder(
    name: str, grid: int, token_mean: Tensor, token_std: Tensor, initial_bias: Tensor
) -> Decoder:
    """Decoder by the name that ``--decoder`` takes.

    Args:
        name: one of the choices of `TrainConfig.decoder`.
        grid: tokens a side, T.
        token_mean, token_std: (D,) of the training tokens.
        initial_bias: (G,) bias of the output.
    """
    if name in ("hist2st", "hist2st-large"):
        from virchow_st.models.decoders.hist2st import Hist2ST

        width, depth = (256, 2) if name == "hist2st" else (936, 4)
        return Hist2ST(grid, token_mean, token_std, initial_bias, width, depth)
    if name == "guided":
        from virchow_st.models.decoders.guided import GuidedDecoder

        return GuidedDecoder(grid, token_mean, token_std, initial_bias)
    if name == "pixels":
        from virchow_st.models.decoders.guided import PixelsDecoder

        return PixelsDecoder(initial_bias)
    if name == "img2st":
        from virchow_st.models.decoders.img2st import Img2ST

        return Img2ST(grid, token_mean, token_std, initial_bias)
    if name == "linear":
        from virchow_st.models.decoders.linear import LinearDecoder

        return LinearDecoder(grid, token_mean, token_std, initial_bias)
    raise ValueError(f"decoder: expected one that `vst train` offers; got {name!r}")


def decode(
    decoder: Callable[..., Tensor],
    tokens: Array | Tensor,
    image: UInt8Array | Tensor | None,
    device: torch.device,
) -> Tensor:
    """Run a decoder on patches as stores and batches hold them.

    Args:
        decoder: any decoder on ``device``, or what wraps one.
        tokens: (B, T, T, D), any float dtype, NumPy's or torch's.
        image: (B, 256, 256, 3) uint8, or None where the decoder does not want it.
        device: where to compute.

    Returns:
        (B, G, 128, 128) on ``device``.
    """
    import torch

    tokens_BTTD = torch.as_tensor(tokens).to(device).float()
    image_B3HW = None
    if image is not None:
        image_B3HW = torch.as_tensor(image).to(device).permute(0, 3, 1, 2).float() / 255
    return decoder(tokens_BTTD, image_B3HW)
