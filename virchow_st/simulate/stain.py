"""H&E image of a simulated section, from optical densities of two stains (Beer-Lambert law)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from virchow_st.simulate.fields import depth_px, smooth_noise
from virchow_st.simulate.frame import SlideFrame
from virchow_st.simulate.morphology import FIRST_NUCLEUS, PX_PER_UM, Material, Tissue
from virchow_st.types import Float32Array, Float64Array, UInt8Array

# Natural-log optical density of haematoxylin and eosin in each material.
_DENSITY: dict[Material, tuple[float, float]] = {
    Material.GLASS: (0.00, 0.00),
    Material.COLLAGEN: (0.05, 0.50),
    Material.GLAND_CYTOPLASM: (0.20, 0.56),
    Material.GLAND_APEX: (0.18, 0.80),
    Material.GLAND_LUMEN: (0.01, 0.03),
    Material.GOBLET: (0.13, 0.12),
    Material.TUMOUR_CYTOPLASM: (0.33, 0.52),
    Material.MEMBRANE: (0.26, 0.78),
    Material.FIBROBLAST: (0.20, 0.60),
    Material.LYMPHOCYTE: (0.32, 0.38),
    Material.PLASMA_CELL: (0.48, 0.52),
    Material.MUSCLE: (0.08, 0.80),
    Material.VESSEL_LUMEN: (0.01, 0.04),
    Material.RED_CELL: (0.02, 1.25),
    Material.GLAND_NUCLEUS: (1.05, 0.42),
    Material.TUMOUR_NUCLEUS: (0.88, 0.38),
    Material.FIBROBLAST_NUCLEUS: (1.10, 0.45),
    Material.LYMPHOCYTE_NUCLEUS: (1.55, 0.40),
    Material.PLASMA_NUCLEUS: (1.40, 0.42),
    Material.ENDOTHELIAL_NUCLEUS: (1.15, 0.45),
}
# Red, green and blue absorbance of the two stains, before variation between laboratories.
_STAINS = np.array([[0.65, 0.68, 0.33], [0.16, 0.86, 0.43]])
_BAND = 512


@dataclass(frozen=True)
class Laboratory:
    """Stain and camera of the section of one patient.

    ``stains`` (2, 3) float64 unit absorbances of haematoxylin and eosin; ``strength`` (2,) float64;
    ``light`` (3,) float64, the 8-bit value of bare glass; ``blur_px`` and ``noise`` (8-bit steps)
    of the camera.
    """

    stains: Float64Array
    strength: Float64Array
    light: Float64Array
    blur_px: float
    noise: float


def draw_laboratory(rng: np.random.Generator) -> Laboratory:
    """Draw stain colours, strengths, white balance and optics."""
    stains = _STAINS + rng.normal(0.0, 0.035, _STAINS.shape)
    return Laboratory(
        stains=stains / np.linalg.norm(stains, axis=1, keepdims=True),
        strength=np.exp(rng.normal(0.0, 0.15, 2)),
        light=rng.uniform(232, 246) + rng.normal(0.0, 2.0, 3),
        blur_px=rng.uniform(0.5, 0.8),
        noise=rng.uniform(1.0, 2.0),
    )


def stain_density(rng: np.random.Generator, tissue: Tissue) -> Float32Array:
    """Optical density of haematoxylin and eosin on the tissue's canvas: (side, side, 2) float32."""
    side = tissue.material.shape[0]
    table = np.array([_DENSITY[m] for m in Material], np.float32)
    nuclear = tissue.material >= FIRST_NUCLEUS
    grain = 0.7 * smooth_noise(rng, side, 1.0) + 0.7 * smooth_noise(rng, side, 1.1 * PX_PER_UM)

    # Chromatin: coarse clumps, a dark rim, a paler centre.
    inside = np.minimum(depth_px(nuclear) / (2.2 * PX_PER_UM), 1.0)
    chromatin = (1.0 + 0.20 * grain) * (1.12 - 0.30 * inside)
    collagen = np.clip(1.0 + 0.42 * tissue.fibre, 0.05, 2.2)
    texture = np.where(nuclear, chromatin, 1.0 + 0.10 * grain)
    np.copyto(texture, collagen, where=tissue.material == Material.COLLAGEN)
    texture *= tissue.tone * tissue.thickness
    density: Float32Array = table[tissue.material] * texture[..., None].astype(np.float32)
    return np.maximum(density, 0.0)


def photograph(
    rng: np.random.Generator, density: Float32Array, frame: SlideFrame, laboratory: Laboratory
) -> UInt8Array:
    """Render a canvas of densities as full-resolution H&E image, (height, width, 3) uint8 RGB."""
    warped = frame.warp(density)
    cv2.GaussianBlur(warped, (0, 0), laboratory.blur_px, dst=warped)
    absorbance = (laboratory.stains * laboratory.strength[:, None]).astype(np.float32)
    light = laboratory.light.astype(np.float32)
    image = np.empty((frame.height, frame.width, 3), np.uint8)
    for top in range(0, frame.height, _BAND):  # in bands, to save memory
        rows = slice(top, top + _BAND)
        value = light * np.exp(-(warped[rows] @ absorbance))
        value += laboratory.noise * rng.standard_normal(value.shape, dtype=np.float32)
        image[rows] = np.clip(np.rint(value), 0, 255)
    return image
