"""What the rate of each bin rests on: its own counts, those of its neighbours, and the image.

In the last step of EM a factor of bin i is, with UMIs u, exposure e, the weights w of the smoothing
and the guide ``g = m ** β`` of the image's map m (g = 1 and β = 0 without one),

    h_i = g_i · Σ_j w_ij u_j / Σ_j w_ij e_j g_j,

a weighted mean of what every bin's UMIs say of bin i, ``u_j / e_j · g_i / g_j``. In it

- the bin's **own counts** have the weight ``a_i = w_ii e_i g_i / Σ_j w_ij e_j g_j``;
- the **image** has ``β (1 − a_i)``: by as many per cent does h_i rise if m_i does by one;
- the **neighbours** have the rest, ``(1 − β)(1 − a_i)``: their counts as they are.

The three sum to 1. They are averaged over the factors by their parts of the bin's rate. For a bin
of 8 µm, the counts and the map of its sixteen bins are raised together. A bin that was filled in
has no counts, ``a = 0``.

Letters: n observed tissue bins, m bins that failed, K factors.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from virchow_st.denoise.alike import CHUNK, Surroundings
from virchow_st.denoise.ems import Guide
from virchow_st.denoise.smooth import Smoother, gaussian
from virchow_st.field.write import SOURCE_NAMES
from virchow_st.kernels.alike import alike_shares
from virchow_st.kernels.pooling import sum_pool
from virchow_st.runtime.devices import core_count
from virchow_st.types import BIN_UM, CELL_BINS, Float32Array, Float64Array

Weights = tuple[Float32Array, Float32Array]
"""Weight of a bin's own counts, and of the counts of its 8 µm bin, (n, K) or (n, 1) each."""


def weights_alike(near: Surroundings, smoother: Smoother) -> Weights:
    """Weights where the last step smooths among the bins that are alike."""
    n, number = len(near.base), smoother.numbers()
    own, of_cell = np.empty_like(near.base), np.empty_like(near.base)

    def compute(first: int) -> None:
        given = near.base, near.feature, number, smoother.place, near.kernel, near.span
        alike_shares(*given, CELL_BINS, first, min(first + CHUNK, n), own, of_cell)

    with ThreadPoolExecutor(core_count()) as pool:
        list(pool.map(compute, range(0, n, CHUNK)))
    return own, of_cell


def weights_gaussian(
    smoother: Smoother, width_um: float, guide: Guide | None, n_factors: int
) -> Weights:
    """Weights where the last step smooths by a Gaussian alone; one column without a guide."""
    exposure = smoother.exposure
    bases = [exposure] if guide is None else (exposure * guide(k) for k in range(n_factors))
    columns = [_of_one(smoother, width_um, base) for base in bases]
    own, of_cell = (np.stack(parts, axis=1) for parts in zip(*columns, strict=True))
    return own, of_cell


def _of_one(
    smoother: Smoother, width_um: float, base: Float32Array
) -> tuple[Float32Array, Float32Array]:
    kernel = gaussian(width_um / BIN_UM)
    middle = len(kernel) // 2
    below = smoother.blurred(base, width_um)
    grid = smoother.on_lattice(base)
    rows, cols = (n + -n % CELL_BINS for n in grid.shape)
    cells = np.zeros((rows, cols), np.float32)
    cells[: grid.shape[0], : grid.shape[1]] = grid
    cells = cells.reshape(rows // CELL_BINS, CELL_BINS, cols // CELL_BINS, CELL_BINS)
    apart = np.abs(np.subtract.outer(np.arange(CELL_BINS), np.arange(CELL_BINS)))
    reached = np.concatenate([kernel[middle:], np.zeros(CELL_BINS, np.float32)])[apart]
    within = np.einsum("ij,ajbk,kl->aibl", reached, cells, reached, optimize=True)
    of_cell = within.reshape(rows, cols)[: grid.shape[0], : grid.shape[1]].ravel()[smoother.place]
    return kernel[middle] ** 2 * base / below, of_cell / below


@dataclass(frozen=True, eq=False)
class Sources:
    """Shares of the own counts and of the image in the rate of each bin.

    Attributes:
        columns: (n, 5) float32: rate of all factors together; own and image's share of the bin;
            own and image's share of its 8 µm bin.
        filled: (m, 5) float32, of the bins that failed.
    """

    columns: Float32Array
    filled: Float32Array

    @classmethod
    def of(
        cls,
        weights: Weights,
        factors: Float32Array,
        beta: Float64Array,
        filled: Float32Array,
        beta_filled: Float64Array,
    ) -> Sources:
        """From the factors (n, K) and (m, K), and the weight β (K,) that the image has in each."""
        none = np.zeros((len(filled), 1), np.float32)
        return cls(_columns(factors, weights, beta), _columns(filled, (none, none), beta_filled))

    def means(self) -> dict[str, dict[str, float]]:
        """Scale in µm → name → mean share over the bins that were observed, by rate."""
        rate = self.columns[:, 0].astype(np.float64)
        found = {}
        for um, first in (BIN_UM, 1), (BIN_UM * CELL_BINS, 3):
            own, image = rate @ self.columns[:, first : first + 2] / rate.sum()
            parts = own, 1 - own - image, image
            found[f"{um}"] = {n: float(x) for n, x in zip(SOURCE_NAMES, parts, strict=True)}
        return found


def _columns(factors: Float32Array, weights: Weights, beta: Float64Array) -> Float32Array:
    found = np.empty((len(factors), 5), np.float32)
    of_image = beta.astype(np.float32)
    for first in range(0, len(factors), CHUNK):
        of = slice(first, first + CHUNK)
        found[of, 0] = rate = factors[of].sum(axis=1)
        part = factors[of] / np.maximum(rate, 1e-30)[:, None]
        for i, own in enumerate(weights):
            found[of, 1 + 2 * i] = (part * own[of]).sum(axis=1)
            found[of, 2 + 2 * i] = (part * of_image * (1 - own[of])).sum(axis=1)
    return found


def source_maps(columns: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Maps of the three shares from a block of the columns of `Sources`.

    Args:
        columns: (5, h, w), 0 or NaN where there is no rate; h and w multiples of 4.

    Returns:
        Shares of the own counts, of the neighbours and of the image, (3, h, w) of bins of 2 µm and
        (3, h / 4, w / 4) of bins of 8 µm, float32; NaN where there is no rate.

    Example:
        >>> block = np.array([2.0, 0.1, 0.3, 0.5, 0.2], np.float32)[:, None, None]
        >>> at_2um, at_8um = source_maps(block * np.ones((1, 4, 4), np.float32))
        >>> [f"{x:.0%}" for x in at_2um[:, 0, 0]], [f"{x:.0%}" for x in at_8um[:, 0, 0]]
        (['10%', '60%', '30%'], ['50%', '30%', '20%'])
    """
    columns = np.nan_to_num(columns)
    rate = columns[0]
    coarse = sum_pool(rate[None], CELL_BINS)
    sums = sum_pool(rate * columns[3:], CELL_BINS)
    with np.errstate(invalid="ignore"):
        at_8um = sums / np.where(coarse > 0, coarse, np.nan)
    at_2um = np.where(rate > 0, columns[1:3], np.nan)
    return _with_neighbours(at_2um), _with_neighbours(at_8um)


def _with_neighbours(shares: Float32Array) -> Float32Array:
    own, image = shares
    return np.stack([own, 1 - own - image, image]).astype(np.float32)
