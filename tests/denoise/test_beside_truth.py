"""One gene beside its true rate, as the demo draws it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from denoised import patchwork

from virchow_st.denoise.beside_truth import beside_truth
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.half import GAUSSIANS_UM
from virchow_st.denoise.smooth import Smoother
from virchow_st.output.figures.denoised import draw_denoised


def test_maps_and_correlations_are_those_of_the_gene(tmp_path: Path) -> None:
    slide, truth = patchwork(128, 3.0)
    rates = estimate(slide, 3, 0).rates
    gene = int(np.argsort(-slide.rows.gene_totals)[5])
    true = truth[:, gene].reshape(128, 128).astype(np.float32)
    maps = beside_truth(slide, rates, gene, true)
    names = list(maps)
    assert names[0] == "counts"
    assert names[2] == "denoised"
    smoother = Smoother(slide.place, slide.tissue.shape)
    counts = maps["counts"][0].ravel()
    assert counts.sum() == slide.rows.gene_totals[gene]
    best = max(
        np.corrcoef(smoother.smoothed(counts, width), true.ravel())[0, 1] for width in GAUSSIANS_UM
    )
    np.testing.assert_allclose(maps[names[1]][1], best, rtol=1e-4)
    for values, r in maps.values():
        np.testing.assert_allclose(np.corrcoef(values.ravel(), true.ravel())[0, 1], r, rtol=1e-4)
    assert maps["counts"][1] < maps[names[1]][1] < maps["denoised"][1]
    picture = draw_denoised(tmp_path / "gene", "GENE5", maps, true, slide.tissue)
    assert picture.read_bytes()[:4] == b"\x89PNG"
