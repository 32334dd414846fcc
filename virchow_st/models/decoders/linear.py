"""Linear baseline decoder: one linear map from a token to its bins.

Shape suffixes: B patches, T tokens per side, D token channels, G genes.
"""

from __future__ import annotations

from torch import Tensor

from virchow_st.models.decoders.base import Decoder, GeneHead
from virchow_st.models.decoders.parts import TokenNorm, unfold_tokens

_BINS = 128


class LinearDecoder(Decoder):
    """Decoder that maps each token linearly to ``bin_channels`` values per bin, and these to genes.

    Args:
        grid: Tokens per side, T; 128 must be a multiple of it.
        token_mean_D, token_std_D: (D,) mean and standard deviation of the training tokens.
        initial_bias_G: (G,) initial bias of the output.
        bin_channels: Channels at bin resolution; the rank of the map from a bin to genes.
    """

    def __init__(
        self,
        grid: int,
        token_mean_D: Tensor,
        token_std_D: Tensor,
        initial_bias_G: Tensor,
        bin_channels: int = 16,
    ) -> None:
        super().__init__()
        self.normalise = TokenNorm(token_mean_D, token_std_D)
        self.unfold = unfold_tokens(len(token_mean_D), bin_channels, _BINS // grid)
        self.head = GeneHead(bin_channels, initial_bias_G)

    def features(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None) -> Tensor:
        """See `Decoder`; the image is not used."""
        return self.unfold(self.normalise(tokens_BTTD).permute(0, 3, 1, 2))
