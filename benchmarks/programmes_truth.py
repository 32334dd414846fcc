"""Whether factors recover the programmes that `vst simulate` planted, and how many are chosen.

    python benchmarks/programmes_truth.py [--bins 640] [--genes 1000] [--seed 221]
        [--hidden-variation 0] [--picture programmes.png]

Counts of two simulated patients at 16 µm are drawn from their true rates and factorised as `vst
train --panel all` begins. The columns of the loadings span a space of gene profiles, and so do the
planted programmes'. The principal angles between the two (Björck & Golub, Math. Comp. 27, 1973,
579) do not depend on how either mixes its columns; a cosine of 1 is a direction of the planted
space that was found. Genes are divided by the square root of their mean, so that Poisson noise is
the same for all. Loadings whose genes were shuffled show what chance gives.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from scipy.linalg import subspace_angles

from virchow_st.config import SimulateConfig
from virchow_st.simulate.cohort import simulate_cohort
from virchow_st.simulate.truth import true_rate
from virchow_st.training.choose_factors import choose_n_factors
from virchow_st.training.factorise import factorise
from virchow_st.training.rows import SparseRows
from virchow_st.types import PATCH_BINS, Array, Float64Array

CANDIDATES = (2, 4, 8, 11, 16, 32, 64)
"""Numbers of factors; the simulator plants eleven programmes."""
CHOSEN_FROM = (8, 16, 32, 64)
"""Numbers that ``--factors 0`` compares."""
_LEAST_EXPRESSED = 0.1  # sum of the programmes in tissue; outside there is none
_SIDE = 8  # 2 µm bins along a side of 16 µm


def drawn_rows(path: Path, rng: np.random.Generator) -> tuple[Array, Float64Array]:
    """Counts (n, G) of the 16 µm bins of a slide that are at least half tissue, and exposures."""
    with h5py.File(path) as f:
        ids = f["gene_id"].asstr()[:].tolist()
        tissue = f["programmes"][:-1].sum(0) > _LEAST_EXPRESSED  # the last one is ambient
    counts, exposures = [], []
    for row0 in range(0, tissue.shape[0] - PATCH_BINS + 1, PATCH_BINS):
        for col0 in range(0, tissue.shape[1] - PATCH_BINS + 1, PATCH_BINS):
            inside = tissue[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS]
            n_bins = _summed(inside[None].astype(np.float64))[:, 0]
            rate = true_rate(path, ids, row0, col0, PATCH_BINS, PATCH_BINS)
            mean = _summed(rate * inside)
            kept = 2 * n_bins >= _SIDE**2
            counts.append(rng.poisson(mean[kept]))
            exposures.append(n_bins[kept])
    return np.concatenate(counts), np.concatenate(exposures)


def _summed(maps: Array) -> Array:
    """Maps (G, R, C) summed to 16 µm, bins first, (bins, G)."""
    G, R, C = maps.shape
    sums = maps.reshape(G, R // _SIDE, _SIDE, C // _SIDE, _SIDE).sum((2, 4), dtype=np.float64)
    return np.asarray(sums.reshape(G, -1).T)


def cosines(loadings: Float64Array, planted: Float64Array, mean: Float64Array) -> Float64Array:
    """Cosines of the principal angles, the largest first."""
    weight = 1 / np.sqrt(mean)[:, None]
    return np.sort(np.cos(subspace_angles(weight * loadings, weight * planted)))[::-1]


def draw(
    path: Path, gains: Mapping[int, float], chosen: int, angles: Mapping[int, Float64Array],
    chance: Float64Array,
) -> None:  # fmt: skip
    """Draw (a) the gain on held-out counts against K, and (b) the cosines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(list(gains), list(gains.values()), "o-", color="#222222", ms=4, lw=1.2)
    left.plot([chosen], [gains[chosen]], "o", ms=9, mfc="none", mec="#c8553d", mew=1.6,
              label="chosen")  # fmt: skip
    left.set(xscale="log", xlabel="factors K", xticks=list(gains))
    left.set_xticklabels(list(map(str, gains)))
    left.set_ylabel("held-out log-likelihood per UMI\nabove a single factor")
    left.minorticks_off()
    left.legend(frameon=False, loc="lower right")
    for (n, values), colour in zip(angles.items(), ("#c8553d", "#8a8a8a", "#222222"), strict=True):
        right.plot(1 + np.arange(len(values)), values, "o-", ms=4, lw=1.2, color=colour,
                   label=f"K = {n}")  # fmt: skip
    right.plot(1 + np.arange(len(chance)), chance, ":", color="#8a8a8a", label="genes shuffled")
    right.set(xlabel="principal angle between planted and found", ylabel="cosine", ylim=(0, 1.03),
              xticks=range(1, 12))  # fmt: skip
    right.legend(frameon=False, loc="center")
    figure.savefig(path, dpi=110)


def measure(paths: Sequence[Path], seed: int, picture: Path | None) -> None:
    """Print gains and cosines for each number of factors."""
    rng = np.random.default_rng(seed)
    slides = [drawn_rows(path, rng) for path in paths]
    counts, exposures = (np.concatenate(arrays) for arrays in zip(*slides, strict=True))
    kept = counts.sum(0) >= 100  # as ``--panel all`` keeps
    rows = SparseRows.from_dense(counts[:, kept], exposures)
    planted = []
    for path in paths:
        with h5py.File(path) as f:
            planted.append(f["loadings"][:].astype(np.float64))
    truth, mean = np.mean(planted, axis=0)[kept], rows.gene_totals / exposures.sum()
    print(f"{len(rows)} bins of 16 µm, {rows.count.sum():,.0f} UMIs, {kept.sum()} genes")
    choice = choose_n_factors(rows, CANDIDATES, seed=0)
    gains = {n: g for n, g in zip(CANDIDATES, choice.gains, strict=True) if np.isfinite(g)}
    chosen = choose_n_factors(rows, CHOSEN_FROM, seed=0).n_factors
    print(f"chosen from {CHOSEN_FROM}: {chosen}")
    print("  K  gain per held-out UMI  seconds  cosines")
    angles = {}
    for n in sorted({8, 11, 16}):
        began = time.process_time()
        found = factorise(rows, n, seed=0).loadings
        angles[n] = cosines(found, truth, mean)
        texts = " ".join(f"{value:.3f}" for value in angles[n])
        print(f"{n:3d} {gains.get(n, np.nan):12.5f} {time.process_time() - began:17.1f}  {texts}")
    for n, gain in gains.items():
        if n not in angles:
            print(f"{n:3d} {gain:12.5f}")
    chance = cosines(rng.permuted(found, axis=0), truth, mean)
    print(f"    genes shuffled{'':16}  {' '.join(f'{value:.3f}' for value in chance)}")
    if picture is not None:
        draw(picture, gains, chosen, angles, chance)


def main() -> None:
    """Simulate two patients and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bins", type=int, default=640)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=221)
    parser.add_argument("--hidden-variation", type=float, default=0.0)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    config = SimulateConfig(
        patients=("P1", "P2"), bins=options.bins, genes=options.genes, seed=options.seed,
        hidden_variation=options.hidden_variation,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        simulate_cohort(Path(folder), config)
        paths = [Path(folder) / name / "truth.h5" for name in config.patients]
        measure(paths, options.seed, options.picture)


if __name__ == "__main__":
    main()
