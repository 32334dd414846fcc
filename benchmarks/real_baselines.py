"""Baselines on tiles that each measure some of the genes: ridge on tokens, and nuclear density.

`beyond` says what a prediction tells that a baseline does not.
"""

from __future__ import annotations

import numpy as np
from real_tiles import Tiles, pcc, pooled

from virchow_st.evaluation.baselines.nuclei import nuclear_features
from virchow_st.evaluation.baselines.regression import NormalEquations
from virchow_st.evaluation.baselines.ridge import PENALTIES, token_rates
from virchow_st.types import PATCH_BINS, Array, BoolArray, Float32Array, Float64Array, Int64Array


def nuclear_density(tiles: Tiles, train: Int64Array, test: Int64Array) -> Float32Array:
    """Rates (test maps, 128, 128) linear in the haematoxylin in and around a bin."""
    features = [nuclear_features(image) for image in tiles.images]
    rates = np.zeros((len(test), PATCH_BINS, PATCH_BINS), np.float32)
    for g in np.unique(tiles.gene[test]):
        equations = NormalEquations(2, 1)
        for m in train[tiles.gene[train] == g]:
            inside = tiles.mask[m].ravel()
            x = features[tiles.tile[m]][inside].astype(np.float64)
            _add(equations, x, tiles.counts[m].ravel()[inside])
        fit = equations.solve(1e-9)
        for i in np.flatnonzero(tiles.gene[test] == g):
            rates[i] = fit(features[tiles.tile[test[i]]]).reshape(PATCH_BINS, PATCH_BINS)
    return rates


def beyond(
    rates: Float32Array, baseline: Float32Array, counts: Array, mask: BoolArray, side: int
) -> float:
    """Partial correlation of the rates of a map (128, 128) with its counts, given a baseline.

    All three are summed over ``side`` × ``side`` bins, as for the correlation itself. It is NaN
    where the baseline or one of the others is constant.
    """
    with_counts, of_baseline = (pcc(x, counts, mask, side) for x in (rates, baseline))
    shared = pcc(rates, baseline, mask, side)
    left = (1 - of_baseline**2) * (1 - shared**2)
    # Below 1e-9 there is rounding alone.
    return (with_counts - of_baseline * shared) / np.sqrt(left) if left > 1e-9 else np.nan


def ridge(
    tiles: Tiles, tokens: Float32Array, train: Int64Array, test: Int64Array
) -> tuple[Float32Array, float]:
    """Rates of ridge regressions, one for each gene, and their common penalty.

    Each training tile is left out in turn to choose the penalty, so the test tiles take no part.
    """
    errors = np.zeros(len(PENALTIES))
    for left_out in train:
        g = tiles.gene[left_out]
        equations = _token_equations(tiles, tokens, train[train != left_out], g)
        own = _token_equations(tiles, tokens, np.array([left_out]), g)
        if equations.n and own.n:
            errors += [own.error(equations.solve(penalty)) for penalty in PENALTIES]
    penalty = PENALTIES[int(np.argmin(errors))]
    rates = np.zeros((len(test), PATCH_BINS, PATCH_BINS), np.float32)
    for g in np.unique(tiles.gene[test]):
        fit = _token_equations(tiles, tokens, train, g).solve(penalty)
        for i in np.flatnonzero(tiles.gene[test] == g):
            rates[i] = token_rates(fit, tokens[tiles.tile[test[i]]])[0]
    return rates, penalty


def _token_equations(tiles: Tiles, tokens: Float32Array, maps: Array, gene: int) -> NormalEquations:
    equations = NormalEquations(tokens.shape[-1], 1)
    for m in maps[tiles.gene[maps] == gene]:
        x, umis, exposure = token_sums(tiles, tokens, m)
        _add(equations, x, umis / exposure)
    return equations


def _add(equations: NormalEquations, x: Float64Array, y: Array) -> None:
    y = y.astype(np.float64)
    equations.add(x, (x.T @ y)[:, None], np.array([y.sum()]), np.array([(y**2).sum()]))


def token_sums(
    tiles: Tiles, tokens: Float32Array, m: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Tokens (n, D), UMIs (n,) and exposures (n,) of the tokens of a map with tissue in half."""
    side = PATCH_BINS // tokens.shape[1]
    chosen = 2 * pooled(tiles.mask[m], side) >= side**2
    exposure = pooled(tiles.mask[m] * tiles.exposure[tiles.tile[m]], side)[chosen]
    umis = pooled(tiles.counts[m], side)[chosen]
    return tokens[tiles.tile[m]][chosen].astype(np.float64), umis, exposure
