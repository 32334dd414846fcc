"""On a simulated slide the ceiling is what the true rate itself reaches, at every scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virchow_st.metrics import ScaleAccumulator, ScaleScores
from virchow_st.simulate.truth import true_rate
from virchow_st.store.reader import open_store
from virchow_st.types import PATCH_BINS, SCALES_UM

N_GENES = 50


@pytest.fixture(scope="module")
def scored(stores: dict[str, Path], simulated: Path) -> dict[int, ScaleScores]:
    """The true rate of the 50 most abundant genes of P5, scored on its counts."""
    store = open_store(stores["P5"])
    panel = np.argsort(-np.array(store.genes.totals), kind="stable")[:N_GENES]
    ids = [store.genes.ids[i] for i in panel]
    found = {um: ScaleAccumulator(N_GENES, um, np.full(N_GENES, 0.05)) for um in SCALES_UM}
    side = PATCH_BINS
    for patch in store:
        counts = patch.counts(panel).toarray().reshape(N_GENES, side, side)
        at = (patch.info.row0, patch.info.col0)
        rate = true_rate(simulated / "P5" / "truth.h5", ids, *at, side, side)
        for accumulator in found.values():
            accumulator.update(rate, counts, patch.tissue_mask)
    return {um: accumulator.compute() for um, accumulator in found.items()}


@pytest.mark.parametrize("um", SCALES_UM)
def test_the_ceiling_is_what_the_true_rate_reaches(scored: dict[int, ScaleScores], um: int) -> None:
    summary = scored[um].summary()
    assert summary["n_genes_scored"] == N_GENES
    assert summary["pcc_ceiling"] == pytest.approx(summary["pcc"], abs=0.02)
    assert summary["pcc_ceiling_thinned"] == pytest.approx(summary["pcc"], abs=0.02)
    np.testing.assert_allclose(scored[um].pcc, scored[um].pcc_ceiling, atol=0.06)  # gene by gene
    assert abs(summary["morans_i_residual"]) < 0.02
