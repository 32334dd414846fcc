"""A run of virchow_st as a model of TIAToolbox's `PatchPredictor`: UMIs of every gene per patch."""

from __future__ import annotations

import numpy as np
import torch
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
from tiatoolbox.models.models_abc import ModelABC

from virchow_st import Run, VirchowSTError

PATCH_UM, PATCH_PX = 256, 512


def io_config() -> IOPatchPredictorConfig:
    """Patches of 256 µm at 0.5 µm/px, side by side."""
    return IOPatchPredictorConfig(
        input_resolutions=[{"units": "mpp", "resolution": PATCH_UM / PATCH_PX}],
        patch_input_shape=(PATCH_PX, PATCH_PX),
        stride_shape=(PATCH_PX, PATCH_PX),
    )


class RunRates(ModelABC):
    """Expected UMIs per 256 µm patch, (B, G), in the place of class probabilities.

    Ask the engine for ``return_probabilities=True``; its "predictions" mean nothing for genes.
    A patch in which no tissue is found is 0.
    """

    def __init__(self, run: Run, weights: str = "") -> None:
        super().__init__()
        self.run, self.weights = run, weights
        self.decoder = run.decoder  # so that `to(device)` moves it
        self.genes = run.panel.labels

    def forward(self, images: np.ndarray) -> torch.Tensor:
        """(B, H, W, 3) uint8 patches of 256 µm to (B, G) UMIs."""
        return torch.from_numpy(np.stack([self._of_patch(np.asarray(image)) for image in images]))

    def _of_patch(self, pixels: np.ndarray) -> np.ndarray:
        mpp = PATCH_UM / len(pixels)
        try:
            rates = self.run.predict_image(pixels, mpp=mpp, weights=self.weights).rates
        except VirchowSTError as error:
            if "tissue" not in str(error):
                raise
            return np.zeros(len(self.genes), np.float32)
        return np.nansum(rates[:, :128, :128], axis=(1, 2))

    @staticmethod
    def infer_batch(model: RunRates, batch_data: torch.Tensor, *, device: str) -> np.ndarray:
        """What the engine calls; the device is that of the run."""
        return model(np.asarray(batch_data)).numpy()
