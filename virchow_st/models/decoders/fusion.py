"""The default decoder: tokens give the tissue type, the patch image gives fine structure.

The tokens pass through a convolution, a transformer layer and a graph layer in parallel (as in
`virchow_st.models.decoders.hist2st`). Their outputs are fused and upsampled to 8 µm, where the
features of a convolutional stem on the patch image are added. The sum is upsampled to 4 and 2 µm,
with skip connections from the stem. Patches have a margin taken from their neighbours, so that bins
at an edge have context on all sides. Coarse levels have most channels: 96 at 8 µm, 64 at 4 µm, 16
at 2 µm.

Shape suffixes: B patches, T tokens per side including the margin, N = T·T, D token channels, C
channels on the token grid, K components of the regression, G genes, P = 256 px per side plus the
margin, H = 128, M = 64, L = 32 cells per side (2, 4, 8 µm).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, pad

from virchow_st.models.decoders.base import HEAD_GAIN, Decoder, GeneHead
from virchow_st.models.decoders.hist2st import GraphBlock, grid_neighbours
from virchow_st.models.decoders.parts import (
    CellNorm,
    ConvBlock,
    EdgeConv,
    Fusion,
    ResBlock,
    TokenNorm,
    unfolding,
)
from virchow_st.models.decoders.stem import OpticalDensity
from virchow_st.models.decoders.variation import TokenDropout

_BINS = 128
_PATCH_UM = 256
_COARSEST = 32  # cells per side at 8 µm
_WIDTHS = (16, 64, 96)  # channels at 2, 4 and 8 µm
# The regression is faded out over this share of the steps. If it were kept to the end, the decoder
# would keep what the regression fitted to the stain of the training patients.
_REGRESSION_SHARE = 0.25
_LARGEST_COMPONENT = 2.0  # standard deviation of the strongest component: head inputs of order 1


class FusionDecoder(Decoder):
    """Maps tokens and the patch image, each with a margin, to outputs per bin (B, G, 128, 128).

    Args:
        grid: tokens per side of a patch without its margin; 16 or 32.
        token_mean_D, token_std_D: (D,) mean and standard deviation of the training tokens.
        initial_bias_G: (G,) bias of the output.
        widths: channels at 2, 4 and 8 µm, multiples of 8.
        token_width: C, channels on the token grid, a multiple of 8.
        n_components: K, rank of the regression that the decoder begins as.
    """

    wants_image = True
    margin_um = 16
    begins_as_regression = True
    edges_2E: Tensor
    regression_KD: Tensor
    regression_share: Tensor

    def __init__(
        self,
        grid: int,
        token_mean_D: Tensor,
        token_std_D: Tensor,
        initial_bias_G: Tensor,
        widths: tuple[int, int, int] = _WIDTHS,
        token_width: int = 128,
        n_components: int = 16,
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        D, C = len(token_mean_D), token_width
        self._grid = grid
        self._margin = grid * self.margin_um // _PATCH_UM  # tokens
        side = grid + 2 * self._margin
        self.normalise = TokenNorm(token_mean_D, token_std_D)
        self.withhold = TokenDropout()
        self.embed = nn.Linear(D, C)
        self.position_NC = nn.Parameter(0.02 * torch.randn(side * side, C))
        self.register_buffer("edges_2E", grid_neighbours(side), persistent=False)
        self.conv_path = ConvBlock(C, CellNorm)
        self.transformer_path = nn.TransformerEncoderLayer(
            C, nhead=8, dim_feedforward=2 * C, dropout=0.0,
            activation="gelu", batch_first=True, norm_first=True,
        )  # fmt: skip
        self.graph_path = GraphBlock(C)
        self.fuse = nn.Sequential(nn.LayerNorm(4 * C), nn.Linear(4 * C, C))
        self.tokens_to_8um = unfolding(C, coarse, _COARSEST // grid)

        self.density = OpticalDensity()
        self.stem_2um = nn.Sequential(nn.PixelUnshuffle(2), EdgeConv(12, fine, 3), nn.GELU())
        self.stem_4um = nn.Sequential(
            nn.Conv2d(fine, middle, 2, stride=2), ResBlock(middle, CellNorm)
        )
        self.stem_8um = nn.Sequential(
            nn.Conv2d(middle, coarse, 2, stride=2), ResBlock(coarse, CellNorm)
        )

        self.context = nn.Sequential(ConvBlock(coarse, CellNorm), ConvBlock(coarse, CellNorm))
        self.to_4um = Fusion(coarse, middle, CellNorm)
        self.to_2um = unfolding(middle, fine)
        self.refine = EdgeConv(fine, 2 * fine, 3)

        # Buffers, not parameters: they are set by `begin` and not trained.
        self.register_buffer("regression_KD", torch.zeros(n_components, D))
        self.register_buffer("regression_share", torch.ones(()))
        self.head = GeneHead(2 * fine + n_components, initial_bias_G)

    def features(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None) -> Tensor:
        """See `Decoder`."""
        if image_B3PP is None:
            raise ValueError("image: expected (B, 3, 256, 256), as wants_image says; got None")
        tokens_BTTD = self.normalise(self._with_margin(tokens_BTTD))
        image_B3PP = _extended(image_B3PP, self.margin_um, _PATCH_UM)
        regression_BKHH = self._regression(tokens_BTTD)
        tokens_BCLL = self.tokens_to_8um(self._three_paths(self.withhold(tokens_BTTD)))

        fine_BCHH = self.stem_2um(self.density(image_B3PP))
        middle_BCMM = self.stem_4um(fine_BCHH)
        x_BCLL = self.context(self.stem_8um(middle_BCMM) + tokens_BCLL)
        # Each finer grid keeps only the two margin cells that the remaining convolutions reach.
        x_BCMM = self.to_4um(x_BCLL[..., 1:-1, 1:-1], _cropped(middle_BCMM, 64 + 4))
        x_BCHH = self.to_2um(_cropped(x_BCMM, 64 + 2)) + _cropped(fine_BCHH, _BINS + 4)
        x_BCHH = gelu(self.refine(gelu(x_BCHH)))
        return torch.cat([_cropped(x_BCHH, _BINS), regression_BKHH], dim=1)

    def _with_margin(self, tokens_BTTD: Tensor) -> Tensor:
        tokens_BDTT = tokens_BTTD.permute(0, 3, 1, 2)
        return _extended(tokens_BDTT, self._margin, self._grid).permute(0, 2, 3, 1)

    def _three_paths(self, tokens_BTTD: Tensor) -> Tensor:
        """Features of the tokens, (B, C, T, T)."""
        T = tokens_BTTD.shape[1]
        x_BTTC = self.embed(tokens_BTTD)
        x_BNC = x_BTTC.flatten(1, 2)
        conv_BCTT = self.conv_path(x_BTTC.permute(0, 3, 1, 2))
        paths = [
            x_BNC,
            conv_BCTT.flatten(2).transpose(1, 2),
            self.transformer_path(x_BNC + self.position_NC),
            self.graph_path(x_BNC, self.edges_2E),
        ]
        fused_BNC = x_BNC + self.fuse(torch.cat(paths, dim=-1))
        return fused_BNC.transpose(1, 2).unflatten(2, (T, T))

    def _regression(self, tokens_BTTD: Tensor) -> Tensor:
        """Components of the regression, interpolated to 2 µm bins, (B, K, H, H)."""
        components_BKTT = nn.functional.linear(tokens_BTTD, self.regression_KD).permute(0, 3, 1, 2)
        scale = _BINS // self._grid
        smooth_BKHH = interpolate(components_BKTT, scale_factor=scale, mode="bilinear")
        return self.regression_share * _cropped(smooth_BKHH, _BINS)

    @torch.no_grad()
    def begin(self, weights_DG: Tensor, intercept_G: Tensor) -> None:
        """See `Decoder`; keeps the K strongest components of the weights."""
        U_DR, S_R, V_RG = torch.linalg.svd(weights_DG.double(), full_matrices=False)
        K = min(len(self.regression_KD), len(S_R))
        largest = S_R[0].clamp(min=1e-12) / _LARGEST_COMPONENT
        self.regression_KD.zero_()
        self.regression_KD[:K] = (U_DR[:, :K] * S_R[:K] / largest).T
        own = self.head.weight[:, -len(self.regression_KD) :, 0, 0]
        own.zero_()
        own[:, :K] = (V_RG[:K] * largest / HEAD_GAIN).T
        self.head.bias.copy_(intercept_G)  # type: ignore[union-attr]

    def advance(self, done: float) -> None:
        """See `Decoder`."""
        self.regression_share.fill_(max(0.0, 1.0 - done / _REGRESSION_SHARE))


def _extended(x_BCSS: Tensor, margin: int, side: int) -> Tensor:
    """A map with its margin; if it has ``side`` cells per side, its edge values are repeated."""
    if x_BCSS.shape[-1] != side:
        return x_BCSS
    return pad(x_BCSS, (margin,) * 4, mode="replicate")


def _cropped(x_BCSS: Tensor, side: int) -> Tensor:
    """The central ``side`` × ``side`` cells of a map."""
    n = (x_BCSS.shape[-1] - side) // 2
    return x_BCSS[..., n : n + side, n : n + side]
