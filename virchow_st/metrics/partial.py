"""Partial correlation of rates and counts: skill beyond total UMIs and nuclear density.

docs/metrics.md, "Beyond cellularity", defines it. The controls of gene g in a bin are the UMIs of
all other genes, T = N − k, two maps of nuclear density, and their squares and product. Only sums
are kept, so that it is computed in one pass, and from any selection of spatial blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from virchow_st.kernels.moments import masked_products
from virchow_st.kernels.pooling import sum_pool
from virchow_st.metrics import correlation
from virchow_st.types import Array, BoolArray, Float32Array, Float64Array

N_CONTROLS = 6
"""UMIs of all genes; two maps of nuclear density, their squares, and their product."""
_PAIRS = tuple(combinations_with_replacement(range(N_CONTROLS), 2))
N_SQUARES = N_CONTROLS + len(_PAIRS)
"""Sums over bins of the controls, and of their products in the order of `_PAIRS`."""
_LEAST_RESIDUAL = 1e-9
"""A residual whose variance is below this share of the variable's is taken as 0.

A float32 map that ought to be a linear combination of the controls leaves about 10⁻¹⁴.
"""
_RATE, _COUNT = N_CONTROLS, N_CONTROLS + 1  # places among the variables


@dataclass(frozen=True)
class Controls:
    """What `pcc_partial` takes out of a patch, at 2 µm.

    Attributes:
        total: (R, C) UMIs of all genes of the store, those that are scored included.
        nuclei: (2, R, C) nuclear density from H&E, in the bin and around it; any unit.

    Raises:
        ValueError: Shapes that do not match.
    """

    total: Array
    nuclei: Float32Array

    def __post_init__(self) -> None:
        if self.nuclei.shape != (2, *self.total.shape):
            raise ValueError(
                f"nuclei: expected shape {(2, *self.total.shape)}; got {self.nuclei.shape}"
            )

    def pooled(self, factor: int, exposure: Array | None, mean: Float64Array | None) -> Pooled:
        """The controls of bins of ``factor`` × ``factor`` 2 µm bins.

        Args:
            factor: Side of a scored bin in 2 µm bins.
            exposure: (R, C) of the 2 µm bins, above 0; None for 1.
            mean: Mean exposure of the scored bins; None for 1.
        """
        h, around = self.nuclei.astype(np.float64)
        nuclei = np.stack([h, around, h * h, around * around, h * around])
        if exposure is not None:
            nuclei *= exposure
        raw = np.stack([self.total.astype(np.float64), *nuclei])
        if factor > 1:
            raw = sum_pool(raw, factor)
        return Pooled(raw, raw if mean is None else raw / mean)


@dataclass(frozen=True)
class Pooled:
    """Controls of the scored bins of a patch, (6, R, C) float64 each.

    Attributes:
        weighted: e·z, with e the bin's exposure: UMIs, and e times the sums of nuclear density.
        controls: z: UMIs per exposure, and nuclear density.
    """

    weighted: Float64Array
    controls: Float64Array

    def products(self, x: Array, counts: Array, mask: BoolArray) -> Float64Array:
        """(G, 12) sums over the masked bins of e·x·z and K·z, for rates and counts (G, R, C)."""
        G, flat = len(x), mask.ravel()
        sums = [
            masked_products(of_gene.reshape(G, -1), z.reshape(N_CONTROLS, -1), flat)
            for of_gene, z in ((x, self.weighted), (counts, self.controls))
        ]
        return np.concatenate(sums, axis=1)

    def of_null(self, x: Array, mask: BoolArray) -> Float64Array:
        """(G, 6) sums over the masked bins of e·x·z."""
        z = self.weighted.reshape(N_CONTROLS, -1)
        return masked_products(x.reshape(len(x), -1), z, mask.ravel())

    def squares(self, mask: BoolArray) -> Float64Array:
        """(27,) sums over the masked bins of e·z and of e·z·z'."""
        weighted, z = self.weighted[:, mask], self.controls[:, mask]
        products = weighted @ z.T
        return np.array([*weighted.sum(1), *(products[pair] for pair in _PAIRS)])


class PartialSums:
    """Sums of the patches of one scale, from which `partial_correlation` is computed.

    Args:
        n_genes: Number of genes G.
        n_blocks: Number of spatial blocks.

    Attributes:
        products: (n_blocks, G, 12), see `Pooled.products`.
        squares: (n_blocks, 27), see `Pooled.squares`.
        of_null: (G, 6), see `Pooled.of_null`.
        n_patches: Number of patches with controls.
    """

    def __init__(self, n_genes: int, n_blocks: int) -> None:
        self.products: Float64Array = np.zeros((n_blocks, n_genes, 2 * N_CONTROLS))
        self.squares: Float64Array = np.zeros((n_blocks, N_SQUARES))
        self.of_null: Float64Array = np.zeros((n_genes, N_CONTROLS))
        self.n_patches = 0

    def add(
        self,
        controls: Pooled,
        rate: Array,
        counts: Array,
        null: Array | None,
        mask: BoolArray,
        block: int,
    ) -> None:
        """Add a patch: rates, counts and the null's rates (G, R, C) at the scale, mask (R, C)."""
        self.products[block] += controls.products(rate, counts, mask)
        self.squares[block] += controls.squares(mask)
        if null is not None:
            self.of_null += controls.of_null(null, mask)
        self.n_patches += 1

    def compute(
        self, moments: Float64Array, of_null: Float64Array
    ) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Partial correlation, residual variance of the counts, and that of the null, (G,) each.

        NaN without controls; that of the null also where not every patch had one.

        Args:
            moments: (G, 6) of rates and counts over all patches.
            of_null: (G, 6) of the null's rates and counts.
        """
        undefined = np.full(len(moments), np.nan)
        if not self.n_patches:
            return undefined, undefined, undefined
        products, squares = self.products.sum(0), self.squares.sum(0)
        r, variance = partial_correlation(moments, products, squares)
        if not np.allclose(of_null[:, correlation.N], moments[:, correlation.N], rtol=1e-9, atol=0):
            return r, variance, undefined  # the controls' sums are of more bins
        products[:, :N_CONTROLS] = self.of_null
        return r, variance, partial_correlation(of_null, products, squares)[0]


def partial_correlation(
    moments: Float64Array, products: Float64Array, squares: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Pearson's r of the residuals of rates and counts after regression on the controls.

    G. U. Yule, Proc. R. Soc. Lond. A 79 (1907) 182; R. A. Fisher, Metron 3 (1924) 329. Each control
    in turn is eliminated from the covariances of all eight variables.

    Args:
        moments: (..., G, 6) as of `metrics.correlation.moments`.
        products: (..., G, 12) as of `Pooled.products`, of the same bins.
        squares: (..., 27) as of `Pooled.squares`, of the same bins.

    Returns:
        r and the variance of the residual of the counts, (..., G) float64 each. r is NaN where the
        counts do not vary, or the controls determine them, and 0 where this holds for the rate.

    Example:
        A prediction that is the density of nuclei, and one that knows more. The total UMIs are
        those of the gene alone, so that they control nothing.

        >>> h = np.array([[[0.0, 1, 2, 3]], [[0, 0, 0, 0]]], np.float32)
        >>> counts = np.array([[[1, 0, 3, 2]]] * 2)
        >>> rates = np.stack([h[0], h[0] + [[0.5, -0.5, 0.5, -0.5]]])
        >>> mask, pooled = np.ones((1, 4), bool), Controls(counts[0], h).pooled(1, None, None)
        >>> m = correlation.moments(rates, counts, mask)
        >>> products = pooled.products(rates, counts, mask)
        >>> r, _ = partial_correlation(m, products, pooled.squares(mask))
        >>> correlation.pearson_from_moments(m).round(2), r.round(2)
        (array([0.6 , 0.89]), array([0., 1.]))
    """
    n = moments[..., correlation.N]
    with np.errstate(divide="ignore", invalid="ignore"):
        cov, square = _covariances(moments, products, squares)
    variance = _diagonal(cov).copy()
    varies = variance > correlation.LEAST_RELATIVE_VARIANCE * square
    for z in range(N_CONTROLS):  # the first of those that are left is eliminated and dropped
        left = cov[..., 0, 0]
        is_left = varies[..., z] & (left > _LEAST_RESIDUAL * variance[..., z])
        with np.errstate(divide="ignore", invalid="ignore"):
            column = np.where(is_left[..., None], cov[..., 1:, 0] / left[..., None], 0.0)
        cov = cov[..., 1:, 1:] - column[..., :, None] * cov[..., None, 0, 1:]
    variance, varies = variance[..., N_CONTROLS:], varies[..., N_CONTROLS:]
    left = _diagonal(cov)
    remains = varies & (left > _LEAST_RESIDUAL * variance) & (n > 0)[..., None]
    of_rate, of_count = left[..., 0], left[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip(cov[..., 0, 1] / (np.sqrt(of_rate) * np.sqrt(of_count)), -1.0, 1.0)
    r = np.where(remains[..., 1], np.where(remains[..., 0], r, 0.0), np.nan)
    return r, np.where(remains[..., 1], of_count, 0.0)


def _diagonal(cov: Float64Array) -> Float64Array:
    return np.diagonal(cov, axis1=-2, axis2=-1)


def _covariances(
    moments: Float64Array, products: Float64Array, squares: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Covariances (..., G, 8, 8) of controls, rate and counts, and mean squares (..., G, 8)."""
    n, sx, sk, sxx, skk, sxk = np.moveaxis(moments, -1, 0)
    own = squares[..., None, :]  # the same for all genes
    size = N_CONTROLS + 2
    sums = np.empty((*n.shape, size))
    second = np.empty((*n.shape, size, size))
    sums[..., :N_CONTROLS] = own[..., :N_CONTROLS]
    sums[..., _RATE], sums[..., _COUNT] = sx, sk
    for (a, b), value in zip(_PAIRS, np.moveaxis(own[..., N_CONTROLS:], -1, 0), strict=True):
        second[..., a, b] = second[..., b, a] = value
    for z in range(N_CONTROLS):
        second[..., z, _RATE] = second[..., _RATE, z] = products[..., z]
        second[..., z, _COUNT] = second[..., _COUNT, z] = products[..., N_CONTROLS + z]
    second[..., _RATE, _RATE], second[..., _COUNT, _COUNT] = sxx, skk
    second[..., _RATE, _COUNT] = second[..., _COUNT, _RATE] = sxk
    square = _diagonal(second) / n[..., None]  # of N and not of T, which may be 0 but for rounding
    # The total of all genes becomes that of the others: T = N − K.
    sums[..., 0] -= sums[..., _COUNT]
    second[..., 0, :] -= second[..., _COUNT, :]
    second[..., :, 0] -= second[..., :, _COUNT]
    mean = sums / n[..., None]
    second /= n[..., None, None]
    return second - mean[..., :, None] * mean[..., None, :], square
