"""Makes the stains of an image weaker or stronger, pixel by pixel.

Stains add up in optical density (Ruifrok & Johnston 2001). A pixel's density is therefore taken
apart into haematoxylin, eosin and a rest; the stains are multiplied, and the sum gives the colour.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from virchow_st.types import Array, Float64Array, UInt8Array

_DENSITY = -np.log10((np.arange(256) + 1.0) / 256).astype(np.float32)


@dataclass(frozen=True)
class Restain:
    """Multiplies haematoxylin and eosin of images.

    Attributes:
        haematoxylin, eosin: factors of their concentrations, > 0; with both 1 an image is left as
            it is, to the bit.
        stains: (3, 3), in rows the optical densities of red, green and blue of one unit of
            haematoxylin, of eosin and of the rest.

    Example:
        Half of the haematoxylin is half of the optical density where there is nothing else:

        >>> stains = np.array([[0.6, 0.6, 0.3], [0.1, 1.0, 0.1], [-0.2, 0.0, 0.6]])
        >>> nucleus = np.array([[[63, 63, 127]]], np.uint8)  # one unit of haematoxylin
        >>> Restain(0.5, 1.0, stains)(nucleus)
        array([[[127, 127, 180]]], dtype=uint8)
        >>> (256 * 10 ** (-0.5 * stains[0]) - 1).round()
        array([127., 127., 180.])
    """

    haematoxylin: float
    eosin: float
    stains: Array = field(repr=False, compare=False)

    def describe(self) -> str:
        """What is done, for a note.

        >>> Restain(1.25, 0.67, np.eye(3)).describe()
        'haematoxylin × 1.25, eosin × 0.67'
        """
        return f"haematoxylin × {self.haematoxylin:.2f}, eosin × {self.eosin:.2f}"

    def factors(self) -> dict[str, float]:
        """The two factors by name, for JSON.

        >>> Restain(1.2, 0.8, np.eye(3)).factors()
        {'haematoxylin': 1.2, 'eosin': 0.8}
        """
        return {"haematoxylin": self.haematoxylin, "eosin": self.eosin}

    def __call__(self, image: UInt8Array) -> UInt8Array:
        """An RGB image (H, W, 3) with the stains multiplied; white stays white."""
        if self.haematoxylin == self.eosin == 1:
            return image
        density = cv2.transform(_DENSITY[image], self._mix())
        rgb = 256 * np.exp(np.float32(-np.log(10)) * density) - 1
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)

    def _mix(self) -> Float64Array:
        """Matrix (3, 3) from densities, as a column, to those with the stains multiplied."""
        strengths = np.diag([self.haematoxylin, self.eosin, 1.0])
        return np.asarray((np.linalg.inv(self.stains) @ strengths @ self.stains).T)
