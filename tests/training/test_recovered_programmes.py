"""The factorisation finds the space of the programmes that the simulator plants."""

from __future__ import annotations

import numpy as np
from scipy.linalg import subspace_angles

from virchow_st.simulate.programmes import PROGRAMMES, draw_genes
from virchow_st.training.factorise import factorise
from virchow_st.training.rows import SparseRows


def test_planted_programmes_are_recovered() -> None:
    """Principal angles between planted and found loadings, genes at equal Poisson noise."""
    rng = np.random.default_rng(222)
    planted = draw_genes(rng, 300).loadings[:, :-1]  # ambient transcripts are no programme
    n = len(PROGRAMMES) - 1
    maps = rng.gamma(0.15, 0.2, (1500, n))  # about 800 UMIs per row
    rows = SparseRows.from_dense(rng.poisson(64 * maps @ planted.T), np.full(1500, 64.0))
    weight = 1 / np.sqrt(rows.gene_totals + 1)[:, None]

    def cosines(loadings: np.ndarray) -> np.ndarray:
        return np.sort(np.cos(subspace_angles(weight * loadings, weight * planted)))[::-1]

    # A few factors more than programmes find them all; with exactly as many, one may be shared.
    assert cosines(factorise(rows, n + 2, seed=0, n_steps=200).loadings).min() > 0.95
    found = factorise(rows, n, seed=0, n_steps=200).loadings
    assert cosines(found)[:-1].min() > 0.95
    assert cosines(rng.permuted(found, axis=0)).max() < 0.7  # by chance
    # With half as many factors only half of the directions can be found, and they are.
    half = cosines(factorise(rows, n // 2, seed=0).loadings)
    assert len(half) == n // 2
    assert half[0] > 0.97
