"""``pcc_partial`` against residuals of NumPy's least squares, and what scores 0 in it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from virchow_st.kernels.pooling import sum_pool
from virchow_st.metrics import BlockSums, ScaleAccumulator, ScaleScores, interval
from virchow_st.metrics.partial import Controls

G, SIDE = 3, 64
TRAIN_RATE = np.array([0.3, 0.6, 1.5])
Patch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Controls]


def smooth(rng: np.random.Generator, n: int) -> np.ndarray:
    field = gaussian_filter(rng.standard_normal((n, SIDE, SIDE)), (0, 3, 3))
    return field / field.std((1, 2), keepdims=True)


def patch(seed: int, cellularity: float = 0.6) -> Patch:
    """True rates, a null's rates, counts, tissue and controls of one patch.

    Rates follow a density of nuclei, which the H&E shows, and each gene's own field.
    """
    rng = np.random.default_rng(seed)
    density = smooth(rng, 1)[0]
    rates = TRAIN_RATE[:, None, None] * np.exp(cellularity * density + 0.5 * smooth(rng, G))
    counts = rng.poisson(rates).astype(np.uint16)
    others = rng.poisson(4 * np.exp(cellularity * density))
    nuclei = np.stack([density + 0.3 * smooth(rng, 1)[0], gaussian_filter(density, 6)])
    mask = rng.random((SIDE, SIDE)) < 0.999
    null = rates[:, ::-1].astype(np.float32).copy()
    controls = Controls(others + counts.sum(0, dtype=np.int64), nuclei.astype(np.float32))
    return rates.astype(np.float32), null, counts, mask, controls


def striped(seed: int) -> np.ndarray:
    rows, cols = np.exp(np.random.default_rng(seed).normal(0, 0.3, (2, SIDE)))
    return np.outer(rows, cols).astype(np.float32)


def scored(
    scale_um: int, patches: list[Patch], exposures: list[np.ndarray | None]
) -> tuple[ScaleScores, BlockSums]:
    accumulator = ScaleAccumulator(G, scale_um, TRAIN_RATE, n_blocks=len(patches))
    for block, ((rate, null, counts, mask, controls), exposure) in enumerate(
        zip(patches, exposures, strict=True)
    ):
        accumulator.update(
            rate, counts, mask, null, block=block, exposure=exposure, controls=controls
        )
    return accumulator.compute(), accumulator.block_sums()


def columns(scale_um: int, one: Patch, e: np.ndarray | None, gene: int) -> np.ndarray:
    """Weight, rate, null, K/e, T, and five of nuclear density, of every scored bin, (n, 10)."""
    rate, null, counts, mask, controls = one
    f = scale_um // 2
    exposure = np.ones(mask.shape) if e is None else e.astype(np.float64)

    def pooled(x: np.ndarray) -> np.ndarray:
        return sum_pool(np.ascontiguousarray(x, np.float64)[None], f)[0]

    whole = pooled(mask) == f * f
    mean = pooled(np.where(mask, exposure, 1)) / f**2
    lam = [
        pooled((x[gene] if e is None else x[gene] * e).astype("f4")) / mean for x in (rate, null)
    ]
    others = pooled(controls.total) - pooled(counts[gene])
    h, around = controls.nuclei.astype(np.float64)
    densities = h, around, h * h, around * around, h * around
    nuclei = [pooled(x * exposure) / mean for x in densities]
    every = [mean, *lam, pooled(counts[gene]) / mean, others / mean, *nuclei]
    return np.stack([x[whole] for x in every], axis=1)


def by_least_squares(table: np.ndarray, x: int) -> tuple[float, float]:
    """Pearson's r of residuals, and the residual variance of the counts, from `columns`."""
    weight = table[:, 0]
    root = np.sqrt(weight)[:, None]
    design = np.column_stack([np.ones(len(table)), table[:, 4:]])
    target = table[:, [x, 3]]
    fit = np.linalg.lstsq(root * design, root * target, rcond=None)[0]
    left = root * (target - design @ fit)
    products = left.T @ left
    r = products[0, 1] / np.sqrt(products[0, 0] * products[1, 1])
    return float(r), float(products[1, 1] / weight.sum())


@pytest.mark.parametrize("is_striped", [False, True])
@pytest.mark.parametrize("scale_um", [2, 4, 16])
def test_equals_the_correlation_of_least_squares_residuals(scale_um: int, is_striped: bool) -> None:
    patches = [patch(seed) for seed in range(3)]
    exposures = [striped(seed) if is_striped else None for seed in range(3)]
    found, sums = scored(scale_um, patches, exposures)
    for g in range(G):
        pairs = zip(patches, exposures, strict=True)
        table = np.concatenate([columns(scale_um, one, e, g) for one, e in pairs])
        # With an exposure, e·λ is float32; without, nothing but the order of sums differs.
        r, variance = by_least_squares(table, 1)
        tolerance = 1e-6 if is_striped else 1e-9
        assert found.pcc_partial[g] == pytest.approx(r, abs=tolerance)
        assert found.pcc_partial_shuffled[g] == pytest.approx(
            by_least_squares(table, 2)[0], abs=tolerance
        )
        noise = table[:, 3].sum() / table[:, 0].sum()
        ceiling = np.sqrt(max(0.0, 1 - noise / variance))
        assert found.pcc_partial_ceiling[g] == pytest.approx(ceiling, abs=1e-6)
    low, high = interval(sums, "pcc_partial", draws=200)
    assert low <= found.pcc_partial.mean() <= high


def test_a_decoder_of_cellularity_alone_scores_0() -> None:
    """Nuclear density of any coefficients, the total of the other genes, and a constant."""
    rate, _, counts, mask, controls = patch(5)
    h, around = controls.nuclei
    for prediction in (
        np.stack([0.3 + 0.1 * h, 0.2 + 0.4 * h - 0.3 * around, 1 + around]),
        0.3 + 0.1 * np.stack([h**2, h * around, (h + around) ** 2]),
        (controls.total - counts + 1.0) * TRAIN_RATE[:, None, None],
        np.broadcast_to(TRAIN_RATE[:, None, None], counts.shape),
    ):
        for scale in (2, 8):
            given = prediction.astype(np.float32), None, counts, mask, controls
            found, _ = scored(scale, [given], [None])  # type: ignore[list-item]
            assert np.abs(found.pcc_partial).max() < 1e-9
    found, _ = scored(2, [(rate, rate, counts, mask, controls)], [None])
    assert found.pcc_partial.min() > 0.15


def test_the_true_rate_reaches_the_ceiling_and_no_own_count_is_controlled() -> None:
    patches = [patch(seed, cellularity=0.8) for seed in range(20, 32)]
    for scale in (2, 8):
        found, _ = scored(scale, patches, [None] * 12)
        assert np.abs(found.pcc_partial - found.pcc_partial_ceiling).max() < 0.025, scale
        assert (found.pcc_partial_ceiling < found.pcc_ceiling).all()
        assert np.abs(found.pcc_partial_shuffled).max() < 0.15


def test_rates_of_no_more_than_cellularity_score_0_within_noise() -> None:
    """All genes follow what the controls show; the true rate then knows no more than they do."""
    scores = []
    for seed in range(40, 52):
        rng = np.random.default_rng(seed)
        density = smooth(rng, 1)[0].astype(np.float32)
        rate = (TRAIN_RATE[:, None, None] * (2 + 0.5 * density.clip(-3, 3))).astype(np.float32)
        counts = rng.poisson(rate).astype(np.uint16)
        nuclei = np.stack([density.clip(-3, 3), smooth(rng, 1)[0].astype(np.float32)])
        controls = Controls(rng.poisson(rate.sum(0) * 3) + counts.sum(0, dtype=int), nuclei)
        blurred = rate + 0.2 * smooth(rng, G).astype(np.float32)
        scores.append((blurred, rate, counts, np.ones((SIDE, SIDE), bool), controls))
    found, _ = scored(8, scores, [None] * 12)
    assert found.pcc.min() > 0.3
    assert np.abs(found.pcc_partial).max() < 0.05


def test_controls_that_are_constant_take_nothing_out() -> None:
    rate, null, counts, mask, controls = patch(7)
    flat = np.ones_like(controls.nuclei)
    for g in range(G):
        own = Controls(counts[g].astype(np.float64), flat)  # a store of this gene alone
        for e in (None, striped(1)):
            accumulator = ScaleAccumulator(1, 4, TRAIN_RATE[g : g + 1])
            accumulator.update(rate[g : g + 1], counts[g : g + 1], mask, exposure=e, controls=own)
            found = accumulator.compute()
            assert found.pcc_partial[0] == pytest.approx(found.pcc[0], abs=1e-9)
            assert found.pcc_partial_ceiling[0] == pytest.approx(found.pcc_ceiling[0], abs=1e-6)
    same_total = Controls(np.full(mask.shape, 50), flat)
    found, _ = scored(4, [(rate, null, counts, mask, same_total)], [None])
    assert np.isnan(found.pcc_partial).all()  # T = 50 − k, so that T determines k


def test_undefined_and_constant_cases() -> None:
    rate, null, counts, mask, controls = patch(8)
    counts[0] = 2
    rate[1] = 0.5
    found, _ = scored(2, [(rate, null, counts, mask, controls)], [None])
    assert np.isnan(found.pcc_partial[0])
    assert np.isnan(found.pcc_partial_ceiling[0])
    assert found.pcc_partial[1] == 0
    summary = found.summary()
    assert summary["pcc_partial"] == pytest.approx(found.pcc_partial[1:].mean())
    nothing, _ = scored(2, [(rate, null, counts, mask & False, controls)], [None])
    assert np.isnan(nothing.pcc_partial).all()
    outside = rate.copy()
    outside[:, ~mask] = np.nan
    again, _ = scored(2, [(outside, null, counts, mask, controls)], [None])
    np.testing.assert_array_equal(again.pcc_partial, found.pcc_partial)


def test_without_controls_it_is_undefined_and_some_are_refused() -> None:
    rate, null, counts, mask, controls = patch(9)
    accumulator = ScaleAccumulator(G, 2, TRAIN_RATE)
    accumulator.update(rate, counts, mask, null)
    assert np.isnan(accumulator.compute().pcc_partial).all()
    assert accumulator.block_sums().products is None
    with pytest.raises(ValueError, match="of all patches or of none"):
        accumulator.update(rate, counts, mask, null, controls=controls)
    one = accumulator.block_sums()
    two = BlockSums(*(np.repeat(x, 2, 0) for x in (one.moments, one.poisson_sums)), one.null_rate)
    with pytest.raises(ValueError, match="pcc_partial: expected sums of products"):
        interval(two, "pcc_partial")
    cut = Controls(controls.total[:32], controls.nuclei[:, :32])
    fresh = ScaleAccumulator(G, 2, TRAIN_RATE)
    with pytest.raises(ValueError, match=r"controls: expected shape \(64, 64\)"):
        fresh.update(rate, counts, mask, controls=cut)
    with pytest.raises(ValueError, match="nuclei: expected shape"):
        Controls(controls.total, controls.nuclei[:1])
    fresh.update(rate, counts, mask, controls=controls)
    assert np.isnan(fresh.compute().pcc_partial_shuffled).all()
