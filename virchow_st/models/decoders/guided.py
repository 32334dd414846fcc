"""Decoders that use the patch image, with the tokens (``guided``) or without (``pixels``).

A token of 16 µm describes the type of tissue; the image shows where in it nuclei, membranes and
lumens lie, which determines the rates of 2 µm bins.

Shape suffixes: B patches, T tokens per side, D token channels, C width, G genes, P = 256 px per
side, H = 128, M = 64, L = 32 cells per side (2, 4, 8 µm).
"""

from __future__ import annotations

from torch import Tensor, nn

from virchow_st.models.decoders.base import Decoder, GeneHead
from virchow_st.models.decoders.parts import ConvBlock, Fusion, ResBlock, TokenNorm, unfolding
from virchow_st.models.decoders.stem import ImageStem
from virchow_st.models.decoders.variation import TokenDropout

_WIDTHS = (32, 64, 96)  # channels at 2, 4 and 8 µm
_COARSEST = 32  # cells per side at 8 µm


class PixelsDecoder(Decoder):
    """Decoder of the patch image only: down to 8 µm, residual blocks there, and up to 2 µm again.

    Args:
        initial_bias_G: (G,) initial bias of the output.
        widths: Channels at 2, 4 and 8 µm, multiples of 8.
    """

    wants_image = True

    def __init__(self, initial_bias_G: Tensor, widths: tuple[int, int, int] = _WIDTHS) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = ImageStem(widths)
        self.context = nn.Sequential(ResBlock(coarse), ResBlock(coarse))
        self.to_4um = Fusion(coarse, middle)
        self.to_2um = Fusion(middle, fine)
        self.head = GeneHead(fine, initial_bias_G)

    def features(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None) -> Tensor:
        """See `Decoder`; the tokens are not used."""
        return self._decode(image_B3PP, None)

    def _decode(self, image_B3PP: Tensor | None, tokens_BCLL: Tensor | None) -> Tensor:
        if image_B3PP is None:
            raise ValueError("image: expected (B, 3, 256, 256), as wants_image is True; got None")
        fine_BCHH, middle_BCMM, x_BCLL = self.stem(image_B3PP)
        if tokens_BCLL is not None:
            x_BCLL = x_BCLL + tokens_BCLL
        x_BCMM = self.to_4um(self.context(x_BCLL), middle_BCMM)
        return nn.functional.gelu(self.to_2um(x_BCMM, fine_BCHH))


class GuidedDecoder(PixelsDecoder):
    """Decoder of tokens, for tissue context, and the patch image, for fine structure.

    The tokens pass through convolutions over their neighbours, are added to the image features at
    8 µm, and the sum is upsampled to 4 and 2 µm.

    Args:
        grid: Tokens per side, T; 16 or 32.
        token_mean_D, token_std_D: (D,) mean and standard deviation of the training tokens.
        initial_bias_G: (G,) initial bias of the output.
        widths: Channels at 2, 4 and 8 µm, multiples of 8.
        token_width: Channels on the token grid, a multiple of 8.
    """

    def __init__(
        self,
        grid: int,
        token_mean_D: Tensor,
        token_std_D: Tensor,
        initial_bias_G: Tensor,
        widths: tuple[int, int, int] = _WIDTHS,
        token_width: int = 128,
    ) -> None:
        super().__init__(initial_bias_G, widths)
        self.normalise = TokenNorm(token_mean_D, token_std_D)
        self.withhold = TokenDropout()
        self.token_path = nn.Sequential(
            nn.Conv2d(len(token_mean_D), token_width, 1),
            ConvBlock(token_width),
            ConvBlock(token_width),
            unfolding(token_width, widths[-1], _COARSEST // grid),
        )

    def features(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None) -> Tensor:
        """See `Decoder`."""
        tokens_BTTD = self.withhold(self.normalise(tokens_BTTD))
        tokens_BDTT = tokens_BTTD.permute(0, 3, 1, 2)
        return self._decode(image_B3PP, self.token_path(tokens_BDTT))
