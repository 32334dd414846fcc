"""Draws an image with the colours of H&E: pink stroma, purple nuclei, white glass."""

from __future__ import annotations

import cv2
import numpy as np

HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
GLASS = 243.0


def he_picture(
    height: int,
    width: int,
    seed: int = 0,
    nuclei: tuple[float, ...] = HAEMATOXYLIN,
    stroma: tuple[float, ...] = EOSIN,
) -> np.ndarray:
    """(H, W, 3) uint8 at about 0.5 µm/px: nuclei of some 14 px in stroma, lumina of glass.

    Colours are absorption per stain, mixed by the Beer–Lambert law, with a camera's noise.
    """
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 4)
    in_nucleus = (noise > 1.2 * noise.std()).astype(float)
    tissue = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 40)
    in_tissue = (tissue > -0.8 * tissue.std()).astype(float)
    fibres = 0.25 + 0.1 * cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 2)
    density = in_tissue[..., None] * (
        0.6 * in_nucleus[..., None] * np.array(nuclei)
        + np.clip(fibres, 0, None)[..., None] * np.array(stroma)
    )
    picture = GLASS * 10**-density + rng.normal(0, 2, (height, width, 3))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
