"""Linear regression of many genes at once, from sums that need one pass over the patches.

Letters in shapes: F features, G genes, n observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from virchow_st.types import Array, Float64Array, Int64Array

_LEAST_RELATIVE_VARIANCE = 1e-9
"""A feature whose variance is below this share of its mean square is taken as constant."""


@dataclass(frozen=True)
class LinearMap:
    """``y = x @ weights + intercept`` for x (n, F), weights (F, G) and intercept (G,)."""

    weights: Float64Array
    intercept: Float64Array

    def __call__(self, x: Array) -> Array:
        """Predict values (n, G) from features (n, F), in the dtype of x."""
        return x @ self.weights.astype(x.dtype) + self.intercept.astype(x.dtype)


def joined(fits: Sequence[LinearMap], places: Sequence[Int64Array]) -> LinearMap:
    """The maps of groups of genes as one map of all of them.

    Args:
        fits: A map for each group, of the same features.
        places: Places of each group's genes among all.

    Example:
        >>> one = LinearMap(np.array([[1.0]]), np.array([2.0]))
        >>> two = LinearMap(np.array([[3.0, 5.0]]), np.array([4.0, 6.0]))
        >>> joined([one, two], [np.array([1]), np.array([0, 2])]).intercept
        array([4., 2., 6.])
    """
    if len(fits) == 1:
        return fits[0]
    n = sum(map(len, places))
    weights, intercept = np.empty((len(fits[0].weights), n)), np.empty(n)
    for fit, at in zip(fits, places, strict=True):
        weights[:, at], intercept[at] = fit.weights, fit.intercept
    return LinearMap(weights, intercept)


class NormalEquations:
    """Sums over observations, from which ridge regression can be solved for any penalty.

    They take F² + F·G float64 numbers, independent of the number of observations.

    Example:
        >>> equations = NormalEquations(n_features=1, n_genes=1)
        >>> x, y = np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 3.0, 5.0])  # y = 1 + 2 x
        >>> equations.add(x, xy=(x.T @ y)[:, None], y=y.sum()[None], yy=(y**2).sum()[None])
        >>> fit = equations.solve(penalty=1e-9)
        >>> print(fit.weights.round(3), fit.intercept.round(3))
        [[2.]] [1.]
    """

    def __init__(self, n_features: int, n_genes: int) -> None:
        self.n = 0
        self._x: Float64Array = np.zeros(n_features)
        self._y: Float64Array = np.zeros(n_genes)
        self._xx: Float64Array = np.zeros((n_features, n_features))
        self._xy: Float64Array = np.zeros((n_features, n_genes))
        self._yy: Float64Array = np.zeros(n_genes)

    def add(self, x: Float64Array, xy: Float64Array, y: Float64Array, yy: Float64Array) -> None:
        """Add n observations.

        Args:
            x: (n, F) float64 features.
            xy: (F, G) products of features and targets, summed over the observations.
            y, yy: (G,) sums of the targets and of their squares.
        """
        self.n += len(x)
        self._x += x.sum(0)
        self._xx += x.T @ x
        self._xy += xy
        self._y += y
        self._yy += yy

    def solve(self, penalty: float) -> LinearMap:
        """Solve the ridge regression on standardised features; the intercept is not penalised.

        Minimises ``Σ(y - ŷ)²/n + penalty·Σw²``, where w are the weights of features scaled to
        variance 1. A feature without variance gets weight 0. Hoerl & Kennard, Technometrics 12
        (1970) 55.

        Args:
            penalty: Penalty, > 0.
        """
        values, vectors, rotated = self._eigen
        scaled = vectors @ (rotated / (values + penalty)[:, None])
        weights = scaled * self._inverse_std[:, None]
        return LinearMap(weights, (self._y - self._x @ weights) / self.n)

    def error(self, fit: LinearMap) -> float:
        """Mean squared error relative to the gene's variance, averaged over genes that vary."""
        errors = self.errors(fit)
        return float(errors[~np.isnan(errors)].mean())

    def errors(self, fit: LinearMap) -> Float64Array:
        """(G,) mean squared error relative to the gene's variance; NaN for genes without any."""
        w, c = fit.weights, fit.intercept
        squares = self._yy + np.einsum("fg,fg->g", w, self._xx @ w) + self.n * c**2
        products = np.einsum("fg,fg->g", w, self._xy) + c * self._y - c * (self._x @ w)
        variation = self._yy - self._y**2 / max(self.n, 1)
        varies = variation > 0
        errors = np.full(len(varies), np.nan)
        errors[varies] = (squares - 2 * products)[varies] / variation[varies]
        return errors

    @cached_property
    def _inverse_std(self) -> Float64Array:
        mean_square = np.diag(self._xx) / self.n
        variance = mean_square - (self._x / self.n) ** 2
        varies = variance > _LEAST_RELATIVE_VARIANCE * mean_square
        return np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)

    @cached_property
    def _eigen(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Eigenvalues (F,), eigenvectors (F, F) and rotated targets (F, G) of the correlations.

        Computed once, after all observations are added, and used for every penalty.
        """
        mean_x, mean_y, scale = self._x / self.n, self._y / self.n, self._inverse_std
        covariance = self._xx / self.n - np.outer(mean_x, mean_x)
        values, vectors = np.linalg.eigh(covariance * np.outer(scale, scale))
        target = (self._xy / self.n - np.outer(mean_x, mean_y)) * scale[:, None]
        return np.maximum(values, 0.0), vectors, vectors.T @ target
