"""Times the evaluation against SciPy, scikit-image and scikit-learn on whole arrays.

There are two jobs, on patches of 128 × 128 bins and 50 genes, as sparse as real ones:

- masked PCC and SSIM: Pearson's r per gene over the tissue of all patches, and windowed SSIM per
  gene and patch. The reference calls `scipy.stats.pearsonr` once per gene and
  `skimage.metrics.structural_similarity` once per gene and patch.
- every score of `ScaleAccumulator` at 2, 4, 8 and 16 µm with both nulls. The reference gathers
  the tissue of all patches and calls `pearsonr`, `spearmanr`, `roc_auc_score`,
  `average_precision_score`, `mean_poisson_deviance`, `structural_similarity` (four maps), a sparse
  matrix of neighbours for Moran's I, and `numpy.random.Generator.binomial` for thinning.

Work that does not depend on the gene is done outside the loops. Both sides run on one thread, in
alternation, on the same arrays (float32 rates as from a decoder, uint16 counts as from a store),
and compute in float64. They must agree to 1e-6; rank scores to 1e-3 (ours round the values), and
the thinned ceiling, for which both draw different random numbers, to 0.02.

    python benchmarks/bench_metrics.py [--patches 32] [--json FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from report import Table, interleaved, publish
from scipy import sparse
from scipy.stats import pearsonr, spearmanr
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity
from sklearn.metrics import average_precision_score, mean_poisson_deviance, roc_auc_score

from virchow_st.kernels.reference import rook_weights
from virchow_st.kernels.ssim import WINDOW, masked_ssims
from virchow_st.kernels.table import draw_patch
from virchow_st.metrics import ScaleAccumulator, ScaleScores
from virchow_st.metrics.correlation import moments, pearson_from_moments
from virchow_st.metrics.deviance import RATE_FLOOR
from virchow_st.types import BIN_UM, SCALES_UM

Patch = tuple[np.ndarray, ...]  # rate, counts, mask; for the second job shuffled, shifted too
N_GENES = 50
TRAIN_RATE = np.full(N_GENES, 0.06)


def our_pcc_and_ssim(patches: list[Patch]) -> tuple[np.ndarray, np.ndarray]:
    sums, ssim, n_windows = np.zeros((N_GENES, 6)), np.zeros(N_GENES), 0
    for rate, counts, mask, *_ in patches:
        sums += moments(rate, counts, mask)
        of_patch, n = masked_ssims((rate,), counts, mask)
        ssim += of_patch[0]
        n_windows += n
    return pearson_from_moments(sums), ssim / n_windows


def their_pcc_and_ssim(patches: list[Patch]) -> tuple[np.ndarray, np.ndarray]:
    pcc = [pearsonr(x, y).statistic for x, y in zip(*gathered(patches, 0, 1), strict=True)]
    maps = [patch[:3] for patch in patches]
    return np.array(pcc), their_ssim(maps)


def gathered(patches: list[Patch], *which: int) -> list[np.ndarray]:
    """Maps ``which`` of all patches on tissue, (G, n) float64 each."""
    return [np.concatenate([p[i][:, p[2]] for p in patches], 1, dtype=np.float64) for i in which]


def their_ssim(maps: list[Patch]) -> np.ndarray:
    """Mean SSIM per gene over the windows wholly in tissue, from (x, y, mask) of every patch."""
    total, n_windows, half = np.zeros(N_GENES), 0, WINDOW // 2
    for x, y, mask in maps:
        inside = sliding_window_view(mask, (WINDOW, WINDOW)).all((2, 3))
        n_windows += inside.sum()
        for g in range(N_GENES):
            a, b = (unit(z[g].astype(np.float64), mask) for z in (x, y))
            _, s = structural_similarity(a, b, win_size=WINDOW, data_range=1.0, full=True)
            total[g] += s[half:-half, half:-half].sum(where=inside)
    return total / n_windows


def unit(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A map scaled to 0–1 inside the mask, or 0 if it is constant; values outside are not used."""
    low, high = x.min(where=mask, initial=np.inf), x.max(where=mask, initial=-np.inf)
    return (x - low) / (high - low) if high > low else np.zeros(x.shape)


def our_scores(patches: list[Patch]) -> list[ScaleScores]:
    found = [ScaleAccumulator(N_GENES, um, TRAIN_RATE) for um in SCALES_UM]
    for rate, counts, mask, shuffled, shifted in patches:
        for accumulator in found:
            accumulator.update(rate, counts, mask, shuffled, shifted_rate=shifted)
    return [accumulator.compute() for accumulator in found]


def their_scores(patches: list[Patch]) -> list[dict[str, np.ndarray]]:
    return [their_scores_at(patches, um // BIN_UM) for um in SCALES_UM]


def their_scores_at(patches: list[Patch], factor: int) -> dict[str, np.ndarray]:
    pooled = [
        tuple(
            block_reduce(x, (factor, factor), np.all)
            if x.ndim == 2
            else block_reduce(x.astype(np.float64), (1, factor, factor), np.sum)
            for x in patch
        )
        for patch in patches
    ]
    x, y, shuffled, shifted = gathered(pooled, 0, 1, 3, 4)
    weights = sparse.block_diag([rook_weights(patch[2]) for patch in pooled]).tocsr()
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for g in range(N_GENES):
        a, k = np.maximum(x[g], RATE_FLOOR), y[g]
        deviance = mean_poisson_deviance(k, a)
        train = mean_poisson_deviance(k, np.full(k.size, TRAIN_RATE[g] * factor**2))
        test = mean_poisson_deviance(k, np.full(k.size, k.mean()))
        both = 0 < np.count_nonzero(k) < k.size
        half = rng.binomial(k.astype(np.int64), 0.5)
        r = max(pearsonr(half, k - half).statistic, 0.0)
        scores = {
            "pcc": pearsonr(x[g], k).statistic,
            "pcc_shuffled": pearsonr(shuffled[g], k).statistic,
            "pcc_shifted": pearsonr(shifted[g], k).statistic,
            "pcc_ceiling": np.sqrt(max(0.0, 1 - k.mean() / k.var())),
            "pcc_ceiling_thinned": np.sqrt(2 * r / (1 + r)),
            "spearman": spearmanr(x[g], k).statistic,
            "auroc": roc_auc_score(k > 0, x[g]) if both else np.nan,
            "auprc": average_precision_score(k > 0, x[g]) if both else np.nan,
            "d2_poisson": 1 - deviance / train,
            "d2_poisson_test_mean": 1 - deviance / test,
            "calibration": x[g].sum() / k.sum(),
        }
        for name, z in (("predicted", x[g]), ("observed", k), ("residual", k - x[g])):
            d = z - z.mean()
            scores[f"morans_i_{name}"] = d.size / weights.sum() * (d @ (weights @ d)) / (d @ d)
        for name, value in scores.items():
            found.setdefault(name, []).append(value)
    if min(pooled[0][2].shape) >= WINDOW:
        for name, i in (("ssim", 0), ("ssim_shuffled", 3), ("ssim_shifted", 4)):
            found[name] = their_ssim([(p[i], p[1], p[2]) for p in pooled])
        found["ssim_all_zero"] = their_ssim([(0 * p[1], p[1], p[2]) for p in pooled])
    return {name: np.array(values) for name, values in found.items()}


def draw(n_patches: int) -> list[Patch]:
    """Patches with tissue to one edge, and other patches' rates for the nulls."""
    rng = np.random.default_rng(0)
    drawn = [draw_patch(rng, N_GENES) for _ in range(n_patches)]
    n = len(drawn)
    return [(*patch, drawn[i - 1][0], drawn[i - n // 2][0]) for i, patch in enumerate(drawn)]


def check(patches: list[Patch]) -> None:
    """Raise unless both sides of both jobs agree."""
    for got, want in zip(our_pcc_and_ssim(patches), their_pcc_and_ssim(patches), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    wide = {"spearman": 1e-3, "auroc": 1e-3, "auprc": 1e-3}
    for got, want in zip(our_scores(patches), their_scores(patches), strict=True):
        for name, value in want.items():
            ours, tolerance = getattr(got, name), wide.get(name, 1e-6)
            if name == "pcc_ceiling_thinned":
                ours, value, tolerance = ours.mean(), value.mean(), 0.02
            np.testing.assert_allclose(ours, value, atol=tolerance, rtol=1e-6, err_msg=name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the evaluation against SciPy and others.")
    parser.add_argument("--patches", type=int, default=32, help="patches of masked PCC and SSIM")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs; the best time is used")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    options = parser.parse_args()

    few = min(options.patches, 4)  # the reference of all scores takes seconds per patch
    patches = draw(max(options.patches, 2))
    check(patches[:few])
    rows = []
    for name, part, ours, theirs in (
        ("masked PCC + SSIM, 2 µm", patches, our_pcc_and_ssim, their_pcc_and_ssim),
        ("every score, four scales", patches[:few], our_scores, their_scores),
    ):
        mine, reference = interleaved(
            lambda p=part, f=ours: f(p), lambda p=part, f=theirs: f(p), rounds=options.rounds
        )
        n = len(part)
        rows.append([name, n, 1e3 * mine / n, 1e3 * reference / n, reference / mine])
    columns = ["job, 50 genes", "patches", "ours, ms per patch", "reference, ms per patch", "ratio"]
    notes = ["One thread. Both sides agree: to 1e-6, rank scores to 1e-3."]
    packages = ("numpy", "numba", "scipy", "scikit-image", "scikit-learn")
    publish("metrics", [Table("Evaluation", columns, rows, notes)], options.json, packages)


if __name__ == "__main__":
    main()
