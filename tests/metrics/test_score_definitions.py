"""Scores from one pass over patches equal SciPy's and scikit-image's on whole arrays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import pearsonr, poisson, spearmanr
from scored_patches import MEAN_RATE, G, draw, score
from skimage.metrics import structural_similarity

from virchow_st.kernels.reference import count_classes, rate_keys, rook_weights, scale_to_unit
from virchow_st.metrics import ScaleAccumulator
from virchow_st.metrics.ceiling import noise_ceiling


def pooled(x: np.ndarray, factor: int) -> np.ndarray:
    n, r, c = x.shape
    blocks = x.astype(np.float64).reshape(n, r // factor, factor, c // factor, factor)
    return blocks.sum((2, 4))


def test_figures_equal_scipy_and_scikit_image() -> None:
    """Every per-gene figure from whole arrays, on part-tissue patches and noisy predictions."""
    patches, scale_um, f = draw(3, seed=1, tissue=0.9), 4, 2
    rng = np.random.default_rng(2)
    patches = [
        (rate * rng.gamma(4, 0.25, rate.shape).astype(np.float32), *rest) for rate, *rest in patches
    ]
    scores = score(patches, scale_um)

    mask = pooled(patches[0][2][None], f)[0] == f * f
    x = np.concatenate([pooled(rate, f)[:, mask] for rate, _, _ in patches], axis=1)
    y = np.concatenate([pooled(counts, f)[:, mask] for _, counts, _ in patches], axis=1)
    assert scores.n_bins == x.shape[1]
    want = np.array([pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(scores.pcc, want, atol=1e-6)
    assert scores.pcc_pooled == pytest.approx(pearsonr(x.ravel(), y.ravel()).statistic, abs=1e-6)
    np.testing.assert_allclose(scores.mean, y.mean(1), rtol=1e-12)
    np.testing.assert_allclose(scores.nonzero, (y > 0).mean(1), rtol=1e-12)
    np.testing.assert_allclose(scores.pcc_ceiling, noise_ceiling(y.mean(1), y.var(1)), atol=1e-9)
    np.testing.assert_allclose(scores.calibration, x.sum(1) / y.sum(1), rtol=1e-9)
    assert scores.summary()["calibration"] == pytest.approx(x.sum() / y.sum())

    null = np.broadcast_to(MEAN_RATE[:, None] * f * f, y.shape)
    log_likelihood = [poisson.logpmf(y, lam).sum(1) for lam in (y, x, null)]
    want = 1 - (log_likelihood[0] - log_likelihood[1]) / (log_likelihood[0] - log_likelihood[2])
    np.testing.assert_allclose(scores.d2_poisson, want, atol=1e-6)

    rows = mask.any(1)  # the mask is a rectangle, so plain scikit-image needs no masking
    for figure, shift in (("ssim", 0), ("ssim_shuffled", 1)):
        for g in range(G):
            values = []
            for i in range(3):
                a = scale_to_unit(pooled(patches[(i + shift) % 3][0], f)[g], mask)[rows]
                b = scale_to_unit(pooled(patches[i][1], f)[g], mask)[rows]
                values.append(structural_similarity(a, b, win_size=7, data_range=1))
            assert getattr(scores, figure)[g] == pytest.approx(np.mean(values), abs=1e-6)


def test_every_other_figure_equals_its_definition_on_whole_arrays() -> None:
    """Moran's I by the sparse matrix of neighbours, deviance against the test mean, the nulls."""
    patches, scale_um, f = draw(3, seed=7, tissue=0.8), 4, 2
    patches[1][2][10:40, 60:90] = False
    accumulator = ScaleAccumulator(G, scale_um, MEAN_RATE)
    other = [np.ascontiguousarray(rate[:, ::-1]) for rate, _, _ in patches]
    for (rate, counts, mask), shifted in zip(patches, other, strict=True):
        accumulator.update(rate, counts, mask, shifted_rate=shifted)
    scores = accumulator.compute()
    assert np.isnan(scores.pcc_shuffled).all()

    masks = [pooled(mask[None], f)[0] == f * f for _, _, mask in patches]
    x, y, z = (
        np.concatenate([pooled(a, f)[:, m] for a, m in zip(maps, masks, strict=True)], axis=1)
        for maps in ([p[0] for p in patches], [p[1] for p in patches], other)
    )
    W = sparse.block_diag([rook_weights(m) for m in masks]).tocsr()
    for values, figure in (
        (x, scores.morans_i_predicted),
        (y, scores.morans_i_observed),
        (y - x, scores.morans_i_residual),
    ):
        d = values - values.mean(1, keepdims=True)
        want = d.shape[1] / W.sum() * (d * (W @ d.T).T).sum(1) / (d * d).sum(1)
        np.testing.assert_allclose(figure, want, atol=1e-6)

    want = [pearsonr(a, b).statistic for a, b in zip(z, y, strict=True)]
    np.testing.assert_allclose(scores.pcc_shifted, want, atol=1e-6)
    null = np.broadcast_to(y.mean(1, keepdims=True), y.shape)
    log_likelihood = [poisson.logpmf(y, lam).sum(1) for lam in (y, x, null)]
    want = 1 - (log_likelihood[0] - log_likelihood[1]) / (log_likelihood[0] - log_likelihood[2])
    np.testing.assert_allclose(scores.d2_poisson_test_mean, want, atol=1e-6)
    want = [spearmanr(rate_keys(a), count_classes(b)).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(scores.spearman, want, atol=1e-6)
