"""A U-Net on the token grid: convolutions at three resolutions.

Tokens are mapped to gene maps by a fully convolutional encoder and decoder with skip connections
(U-Net, Ronneberger et al. 2015, arXiv:1505.04597), as in Img2ST-Net (Zhu et al. 2025,
doi:10.1117/1.JMI.12.6.061410), which maps images to gene maps.

Shape suffixes: B patches, T tokens per side, D token channels, C width, G genes.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from virchow_st.models.decoders.base import Decoder, GeneHead
from virchow_st.models.decoders.parts import Fusion, ResBlock, TokenDetail, TokenNorm, Upsampler

_BINS = 128


class Img2ST(Decoder):
    """Decoder of tokens (B, T, T, D) to outputs per bin (B, G, 128, 128), by a U-Net.

    Args:
        grid: Tokens per side, T; 128 must be T times a power of two.
        token_mean_D, token_std_D: (D,) mean and standard deviation of the training tokens.
        initial_bias_G: (G,) initial bias of the output.
        widths: Channels on the token grid and on the grids halved once, twice, …; multiples of 8.
        bin_channels: Channels at bin resolution, before the gene head.
    """

    def __init__(
        self,
        grid: int,
        token_mean_D: Tensor,
        token_std_D: Tensor,
        initial_bias_G: Tensor,
        widths: tuple[int, ...] = (256, 448, 576),
        bin_channels: int = 32,
    ) -> None:
        super().__init__()
        self.normalise = TokenNorm(token_mean_D, token_std_D)
        self.embed = nn.Sequential(nn.Conv2d(len(token_mean_D), widths[0], 1), ResBlock(widths[0]))
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(fine, coarse, 2, stride=2), ResBlock(coarse))
            for fine, coarse in steps
        )
        self.up = nn.ModuleList(Fusion(coarse, fine) for fine, coarse in reversed(steps))
        self.upsample = Upsampler(widths[0], bin_channels, (_BINS // grid).bit_length() - 1)
        self.detail = TokenDetail(len(token_mean_D), _BINS // grid)
        self.head = GeneHead(bin_channels + TokenDetail.channels, initial_bias_G)

    def features(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None) -> Tensor:
        """See `Decoder`; the image is not used."""
        tokens_BTTD = self.normalise(tokens_BTTD)
        x_BCTT = self.embed(tokens_BTTD.permute(0, 3, 1, 2))
        skips = []
        for down in self.down:
            skips.append(x_BCTT)
            x_BCTT = down(x_BCTT)
        for up in self.up:
            x_BCTT = up(x_BCTT, skips.pop())
        return self.detail(self.upsample(x_BCTT), tokens_BTTD)
