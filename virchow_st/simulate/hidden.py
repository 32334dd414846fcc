"""Variation of single genes that no programme holds and that the image does not show.

Every gene's rate is multiplied by ``exp(sd * z - sd**2 / 2)``, z a smooth Gaussian field of its
own with variance 1, so that the factor has mean 1. The field is never stored: it is interpolated
between independent normal numbers on a lattice of knots, and each knot's number is a function of a
key, the gene and the knot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from virchow_st.types import Array, Float64Array, Int64Array

KNOT_BINS = 20
"""Distance of knots in 2 µm bins: fields are correlated over about 40 µm."""
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def splitmix64(key: int, index: Array) -> Array:
    """Outputs of the generator SplitMix64 seeded with ``key``: uint64, of the shape of ``index``.

    ``index`` (uint64) counts the outputs from 0; any can be had without those before it (Steele,
    Lea and Flood, OOPSLA 2014).

    Example:
        >>> splitmix64(1234567, np.arange(2, dtype=np.uint64)).tolist()
        [6457827717110365317, 3203168211198807973]
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64
        x = np.uint64(key) + (index + np.uint64(1)) * _INCREMENT
        x = (x ^ (x >> np.uint64(30))) * _MIXERS[0]
        x = (x ^ (x >> np.uint64(27))) * _MIXERS[1]
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class HiddenVariation:
    """Hidden variation of the genes of one slide.

    ``sd`` is the standard deviation of the natural logarithm of a rate; ``key`` the seed of the
    fields, 64 bits; ``knot_bins`` the distance of knots in bins.

    Example:
        >>> hidden = HiddenVariation(sd=0.5, key=1)
        >>> hidden.factors(7, row0=100, col0=200, n_rows=2, n_cols=3).shape
        (2, 3)
    """

    sd: float
    key: int
    knot_bins: int = KNOT_BINS

    def knots(self, genes: Int64Array, rows: Int64Array, cols: Int64Array) -> Float64Array:
        """Standard normal numbers at knots: (G, R, C) float64 of (G,) genes, (R,) rows, (C,) cols.

        Knot (row, col) lies at bin (row, col) times ``knot_bins``.
        """
        gene, row, col = (np.asarray(i, np.uint64) for i in (genes, rows, cols))
        place = (row[:, None] << np.uint64(16)) | col
        drawn = splitmix64(self.key, (gene[:, None, None] << np.uint64(32)) | place)
        # 53 bits, from the middle of the first of 2**53 intervals to that of the last.
        normal: Float64Array = ndtri(((drawn >> np.uint64(11)) + 0.5) * 2.0**-53)
        return normal

    def weights(self, bins: Int64Array) -> Float64Array:
        """Weights of the knots before and behind each bin along one axis, (N, 2) float64.

        They are those of linear interpolation, divided by the root of the sum of their squares, so
        that the field has variance 1 in every bin and not at the knots alone.
        """
        behind = bins % self.knot_bins / self.knot_bins
        linear = np.stack([1 - behind, behind], axis=1)
        unit: Float64Array = linear / np.linalg.norm(linear, axis=1, keepdims=True)
        return unit

    def factor(self, z: Float64Array) -> Float64Array:
        """Factor of the rate where the field has the values ``z``: of mean 1 over the fields."""
        multiplied: Float64Array = np.exp(self.sd * z - self.sd**2 / 2)
        return multiplied

    def factors(self, gene: int, row0: int, col0: int, n_rows: int, n_cols: int) -> Float64Array:
        """Factors of one gene in a window of bins, (n_rows, n_cols) float64.

        Args:
            gene: Index of the gene among all genes of the slide.
            row0, col0: First bin of the window.
            n_rows, n_cols: Size of the window in bins.
        """
        along_rows, rows = self._interpolation(row0, n_rows)
        along_cols, cols = self._interpolation(col0, n_cols)
        knots = self.knots(np.array([gene]), rows, cols)[0]
        return self.factor(along_rows @ knots @ along_cols.T)

    def _interpolation(self, first: int, n: int) -> tuple[Float64Array, Int64Array]:
        """Matrix (n, knots) from knots to the bins from ``first`` on, and the knots' numbers."""
        bins = np.arange(first, first + n)
        before = bins // self.knot_bins
        knots = np.arange(first // self.knot_bins, (first + n) // self.knot_bins + 2)
        matrix = np.zeros((n, knots.size))
        at = np.arange(n), before - knots[0]
        matrix[at], matrix[at[0], at[1] + 1] = self.weights(bins).T
        return matrix, knots
