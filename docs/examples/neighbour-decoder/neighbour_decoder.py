"""A decoder for virchow_st that maps a token and the eight around it to the token's bins."""

from __future__ import annotations

from torch import Tensor, nn

from virchow_st import Decoder, GeneHead, TokenNorm

BINS = 128  # per side of a patch
CHANNELS = 16  # at each bin


class NeighbourDecoder(Decoder):
    """One linear map of 3 × 3 tokens, unfolded to the bins of the token in the middle.

    Shape suffixes: B patches, T tokens per side, D token channels, C channels, G outputs.
    """

    def __init__(
        self, grid: int, token_mean_D: Tensor, token_std_D: Tensor, initial_bias_G: Tensor
    ) -> None:
        super().__init__()
        side = BINS // grid
        self.normalise = TokenNorm(token_mean_D, token_std_D)
        # Repeated edges: padding with zeros would darken the seams of a stitched slide.
        self.mix = nn.Conv2d(
            len(token_mean_D), CHANNELS * side * side, 3, padding=1, padding_mode="replicate"
        )
        self.unfold = nn.PixelShuffle(side)
        self.head = GeneHead(CHANNELS, initial_bias_G)

    def features(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None) -> Tensor:
        """(B, T, T, D) tokens to (B, C, 128, 128); the image is not used."""
        return self.unfold(self.mix(self.normalise(tokens_BTTD).permute(0, 3, 1, 2)))
