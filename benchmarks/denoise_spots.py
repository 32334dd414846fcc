"""What pooling of genes gains on real counts: the parts of ``vst denoise`` on spots of 100 µm.

Real counts of many genes at 2 µm are not at hand; two sections of one breast cancer, measured at
about 180 spots each (Andersson et al. 2021, Nat. Commun. 12:6012), are. Of the second section a
share of the UMIs is kept at random, and every way is fitted to it; printed is D² of the other UMIs,
over all genes with 100 UMIs or more. Spots take the place of bins: factors by EM with smoothing,
with loadings of the first section or of the kept UMIs themselves, loadings fitted again, and
smoothing among spots that are alike, all chosen by held-out UMIs within the kept ones.

    python benchmarks/denoise_spots.py SPOTS_OF_ONE.tsv.gz SPOTS_OF_OTHER.tsv.gz --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import xlogy

from virchow_st.denoise.ems import WIDTHS_UM, fit_factors, log_likelihood
from virchow_st.denoise.refine import Parts, choose_refinement
from virchow_st.denoise.smooth import Smoother
from virchow_st.training.choose_factors import choose_n_factors
from virchow_st.training.factorise import factorise
from virchow_st.training.rows import SparseRows
from virchow_st.types import Array, Float32Array, Float64Array

SHARES = 1 / 2, 1 / 10, 1 / 50
N_FACTORS = 4, 8, 16
LEAST_UMIS = 100
FITTED_SHARE = 0.8


def read(paths: list[Path]) -> tuple[list[Array], list[Smoother]]:
    """Counts (n, G) of the genes that all sections have, and a smoother over each one's spots."""
    tables = [pd.read_csv(path, sep="\t", index_col=0) for path in paths]
    genes = tables[0].columns
    for table in tables[1:]:
        genes = genes.intersection(table.columns)
    counts = [table[genes].to_numpy(np.int64) for table in tables]
    enough = np.min([x.sum(0) for x in counts], axis=0) >= LEAST_UMIS
    smoothers = []
    for table in tables:
        at = np.array([list(map(int, name.split("x"))) for name in table.index])
        shape = (int(at[:, 0].max()) + 1, int(at[:, 1].max()) + 1)
        smoothers.append(Smoother(at[:, 0] * shape[1] + at[:, 1], shape))
    return [x[:, enough] for x in counts], smoothers


def explained(left: Array, rate: Float64Array, mean: Float64Array) -> float:
    """D² of counts (n, G) over all genes, against each gene's mean (G,)."""

    def deviance(x: Float64Array) -> float:
        x = np.maximum(x, 1e-6)
        return float((xlogy(left, np.where(left > 0, left / x, 1)) - left + x).sum())

    return 1 - deviance(rate) / deviance(np.broadcast_to(mean, left.shape))


def by_factors(kept: Array, smoother: Smoother, loadings: Float64Array | None, seed: int) -> Array:
    """Rates (n, G) of the kept UMIs, all chosen by a fifth of them."""
    rng = np.random.default_rng(seed)
    part = rng.binomial(kept, FITTED_SHARE)
    fitted, held_out = (
        SparseRows.from_dense(x, np.full(len(x), share))
        for x, share in ((part, FITTED_SHARE), (kept - part, 1 - FITTED_SHARE))
    )
    rows = SparseRows.from_dense(kept, np.ones(len(kept)))
    if loadings is None:
        n_factors = choose_n_factors(fitted, N_FACTORS, seed).n_factors
        loadings = factorise(fitted, n_factors, seed).loadings
    fits: list[tuple[float, float, Float32Array]] = []

    def keep(width: float, factors: Float32Array) -> None:
        fits.append((log_likelihood(held_out, factors, loadings), width, factors.copy()))

    fit_factors(fitted, loadings, smoother, WIDTHS_UM, keep)
    _, width, factors = max(fits, key=lambda fit: fit[0])
    parts = Parts(fitted, held_out, smoother)
    refined = choose_refinement(parts, factors, loadings, width)
    # Fitted to four fifths, scaled to all: what is chosen needs no second fit on so few spots.
    rates = refined.factors.astype(np.float64) @ refined.loadings.T
    return rates * (rows.count.sum() / rates.sum())


def by_gaussian(kept: Array, smoother: Smoother, seed: int) -> Float64Array:
    """Rates (n, m) of maps of UMIs (n, m), each by the Gaussian that predicts a fifth best."""
    rng, rates = np.random.default_rng(seed), np.empty(kept.shape)
    for g in range(kept.shape[1]):
        fitted = rng.binomial(kept[:, g], FITTED_SHARE)
        left = kept[:, g] - fitted
        tried = {w: np.maximum(smoother.smoothed(fitted, w), 1e-9) for w in (*WIDTHS_UM, 64.0)}
        width = max(tried, key=lambda w: float(left @ np.log(tried[w])))
        rates[:, g] = smoother.smoothed(kept[:, g], width)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="spots whose loadings are used")
    parser.add_argument("spots", type=Path, help="spots that are denoised")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    (other, counts), (_, smoother) = read([arguments.other, arguments.spots])
    print(
        f"{len(counts)} spots, {counts.shape[1]} genes, {counts.sum() / len(counts):.0f} UMIs each"
    )
    rows = SparseRows.from_dense(other, np.ones(len(other)))
    for share in SHARES:
        found: dict[str, list[float]] = {}
        for seed in arguments.seeds:
            kept = np.random.default_rng(seed).binomial(counts, share)
            left, more = counts - kept, (1 - share) / share
            n_factors = choose_n_factors(rows, N_FACTORS, seed).n_factors
            total = by_gaussian(kept.sum(1, keepdims=True), smoother, seed)
            ways = {
                "raw counts": kept.astype(float),
                "total × mean": total / total.mean() * kept.mean(0),
                "best Gaussian": by_gaussian(kept, smoother, seed),
                "factors of these spots": by_factors(kept, smoother, None, seed),
                "factors of the other section": by_factors(
                    kept, smoother, factorise(rows, n_factors, seed).loadings, seed
                ),
            }
            for way, rate in ways.items():
                score = explained(left, rate * more, kept.mean(0) * more)
                found.setdefault(way, []).append(round(score, 3))
        print(json.dumps({"kept": round(share, 2)} | found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
