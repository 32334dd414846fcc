"""A run of virchow_st as a model of LazySlide: `lazyslide.tl.virtual_stain(wsi, RunRates(run))`.

LazySlide's feature prediction hands a model one vector per tile. A decoder needs the T × T tokens
of a tile, so that the model for it is LazySlide's marker map, which is handed the tile's pixels and
gives one map per gene.
"""

from __future__ import annotations

import numpy as np
import torch
from lazyslide_models.base import MarkerMapModel

from virchow_st import Run, VirchowSTError

TILE_UM = 256  # a patch of virchow_st
BIN_UM = 2


class RunRates(MarkerMapModel):
    """Expected UMIs per 2 µm bin, one channel per gene.

    Tile the slide so that a tile is a patch: ``pp.tile_tissues(wsi, tile_px=256, mpp=1.0,
    overlap=32 / 256)``; the overlap is blended. A tile in which no tissue is found is 0.
    """

    output_mpp = float(BIN_UM)
    output_range = None

    def __init__(self, run: Run, weights: str = "") -> None:
        self.run, self.weights = run, weights
        self.model = run.decoder
        self.channel_names = tuple(run.panel.labels)

    def get_transform(self):
        """Pixels as they are: the run's encoder normalises them itself."""
        return lambda image: torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 tiles of 256 µm to rates (B, G, 128, 128)."""
        side = image.shape[-1]
        mpp = TILE_UM / side
        rates = [self._of_tile(tile.permute(1, 2, 0).cpu().numpy(), mpp) for tile in image]
        return torch.from_numpy(np.stack(rates))

    def _of_tile(self, pixels: np.ndarray, mpp: float) -> np.ndarray:
        bins = TILE_UM // BIN_UM
        try:
            rates = self.run.predict_image(pixels, mpp=mpp, weights=self.weights).rates
        except VirchowSTError as error:
            if "tissue" not in str(error):
                raise
            return np.zeros((len(self.channel_names), bins, bins), np.float32)
        return np.nan_to_num(rates[:, :bins, :bins])
