"""The default decoder: convolution, transformer and graph paths over the token grid, fused.

The three paths follow Hist2ST (Zeng et al. 2022, Briefings in Bioinformatics 23:bbac297), applied
to the token grid of a patch instead of spots.

Shape suffixes: B patches, T tokens per side, N = T·T, D token channels, C width, G genes,
H = W = bins per side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

from virchow_st.models.decoders.base import Decoder, GeneHead
from virchow_st.models.decoders.parts import ConvBlock, TokenDetail, TokenNorm, Upsampler

_BINS = 128


class GraphBlock(nn.Module):
    """GraphSAGE layer (Hamilton et al. 2017) over the 8 neighbours, with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.sage = SAGEConv(width, width)

    def forward(self, x_BNC: Tensor, edges_2E: Tensor) -> Tensor:
        """(B, N, C) and edges (2, E) to (B, N, C)."""
        return x_BNC + nn.functional.gelu(self.sage(self.norm(x_BNC), edges_2E))


class Hist2ST(Decoder):
    """Decoder of tokens (B, T, T, D) to outputs per bin (B, G, 128, 128), by three fused paths.

    Args:
        grid: Tokens per side, T; 128 must be T times a power of two.
        token_mean_D, token_std_D: (D,) mean and standard deviation of the training tokens.
        initial_bias_G: (G,) initial bias of the output.
        width: Channels C of each path, a multiple of 8.
        depth: Blocks per path.
        bin_channels: Channels at bin resolution, before the gene head.
    """

    edges_2E: Tensor

    def __init__(
        self,
        grid: int,
        token_mean_D: Tensor,
        token_std_D: Tensor,
        initial_bias_G: Tensor,
        width: int,
        depth: int,
        bin_channels: int = 32,
    ) -> None:
        super().__init__()
        self.normalise = TokenNorm(token_mean_D, token_std_D)
        self.embed = nn.Linear(len(token_mean_D), width)
        self.position_NC = nn.Parameter(0.02 * torch.randn(grid * grid, width))
        self.register_buffer("edges_2E", grid_neighbours(grid), persistent=False)

        self.conv_path = nn.ModuleList(ConvBlock(width) for _ in range(depth))
        self.transformer_path = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, nhead=8, dim_feedforward=2 * width, dropout=0.0,
                activation="gelu", batch_first=True, norm_first=True,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.graph_path = nn.ModuleList(GraphBlock(width) for _ in range(depth))
        self.fuse = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, width))

        self.upsample = Upsampler(width, bin_channels, (_BINS // grid).bit_length() - 1)
        self.detail = TokenDetail(len(token_mean_D), _BINS // grid)
        self.head = GeneHead(bin_channels + TokenDetail.channels, initial_bias_G)

    def features(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None) -> Tensor:
        """See `Decoder`; the image is not used."""
        T = tokens_BTTD.shape[1]
        tokens_BTTD = self.normalise(tokens_BTTD)
        x_BTTC = self.embed(tokens_BTTD)
        x_BNC = x_BTTC.flatten(1, 2)

        conv_BCTT = x_BTTC.permute(0, 3, 1, 2)
        for block in self.conv_path:
            conv_BCTT = block(conv_BCTT)
        attended_BNC = x_BNC + self.position_NC
        for block in self.transformer_path:
            attended_BNC = block(attended_BNC)
        graph_BNC = x_BNC
        for block in self.graph_path:
            graph_BNC = block(graph_BNC, self.edges_2E)

        paths_BNC4 = [x_BNC, conv_BCTT.flatten(2).transpose(1, 2), attended_BNC, graph_BNC]
        fused_BNC = x_BNC + self.fuse(torch.cat(paths_BNC4, dim=-1))
        grid_BCTT = fused_BNC.transpose(1, 2).unflatten(2, (T, T))
        return self.detail(self.upsample(grid_BCTT), tokens_BTTD)


def grid_neighbours(side: int) -> Tensor:
    """Edges (2, E) int64 from each cell of a ``side``×``side`` grid to its 8 neighbours."""
    index = torch.arange(side * side).view(side, side)
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    edges = []
    for d_row in (-1, 0, 1):
        for d_col in (-1, 0, 1):
            if (d_row, d_col) == (0, 0):
                continue
            r, c = row + d_row, col + d_col
            inside = (r >= 0) & (r < side) & (c >= 0) & (c < side)
            edges.append(torch.stack([index[inside], index[r[inside], c[inside]]]))
    return torch.cat(edges, dim=1)
