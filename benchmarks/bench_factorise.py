"""Poisson factorisation of sparse counts, against scikit-learn's NMF.

Rows are drawn as sparse as 16 µm bins of a colon slide: 18,085 genes, 576 UMIs per row, mixtures of
24 programmes. All sides minimise the same Kullback-Leibler divergence from the same start, with
the same number of steps; each step updates both matrices:

- scikit-learn: ``NMF(solver="mu", beta_loss="kullback-leibler")`` on the CSR matrix;
- ours, EM: the same multiplicative updates (`virchow_st.training.factor_steps`); the results must
  agree;
- ours, longer steps: the steps of `virchow_st.training.factorise`, without its prior.

Each run is a process of its own on one core, in turns. Time is the CPU time of the steps, and
memory the peak of resident memory during the steps, minus that with the counts and the start ready.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/bench_factorise.py [--rows 2048]
        [--factors 32] [--steps 20] [--rounds 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from report import Table, publish
from scipy.sparse import csr_matrix

from virchow_st.training.factor_start import start_loadings
from virchow_st.training.factor_steps import FactorModel
from virchow_st.training.rows import SparseRows

PEER, PLAIN, LONGER = "scikit-learn", "ours, EM", "ours, longer steps"
SIDES = (PEER, PLAIN, LONGER)
N_GENES, N_PROGRAMMES, BINS_PER_ROW = 18_085, 24, 64


def draw(n_rows: int) -> SparseRows:
    """Rows that are mixtures of programmes, 9 UMIs per 2 µm bin, log-normal over genes."""
    rng = np.random.default_rng(0)
    change = rng.normal(0, 1.2, (N_GENES, N_PROGRAMMES)) * (rng.random((N_GENES, 1)) < 0.3)
    programmes = rng.lognormal(0, 2, (N_GENES, 1)) * np.exp(change)
    programmes /= programmes.sum(0)
    mix = rng.dirichlet(np.full(N_PROGRAMMES, 0.2), n_rows)
    umis = BINS_PER_ROW * rng.gamma(4.0, 9 / 4, (n_rows, 1)) * mix
    counts = np.empty((n_rows, N_GENES), np.uint16)
    for at in range(0, n_rows, 256):
        counts[at : at + 256] = rng.poisson(umis[at : at + 256] @ programmes.T)
    return SparseRows.from_dense(counts, np.full(n_rows, float(BINS_PER_ROW)))


def ours(counts: SparseRows, factors: np.ndarray, loadings: np.ndarray, n: int, longer: bool):  # type: ignore[no-untyped-def]
    """Factors and loadings after n steps; as in `factorise` if steps are lengthened."""
    with ThreadPoolExecutor(1) as pool:
        model, length = FactorModel(counts, 0.0, pool), 1.0
        step = model.step(factors, loadings)
        for _ in range(n - 1):
            ahead = model.lengthened(factors, loadings, step, length)
            following = model.step(*ahead)
            if length > 1 and following.objective < step.objective:
                length = 1.0
                continue
            (factors, loadings), step = ahead, following
            length *= 1.3 if longer else 1.0
    return step.factors, step.loadings


def theirs(counts: SparseRows, factors: np.ndarray, loadings: np.ndarray, n: int):  # type: ignore[no-untyped-def]
    """The same by scikit-learn, whose model has no exposures."""
    from sklearn.decomposition import NMF

    x = csr_matrix(
        (counts.count.astype(np.float64), counts.gene, counts.indptr), (len(counts), N_GENES)
    )
    model = NMF(
        loadings.shape[1], init="custom", solver="mu", beta_loss="kullback-leibler", tol=0,
        max_iter=n,
    )  # fmt: skip
    w = model.fit_transform(x, W=factors * BINS_PER_ROW, H=np.ascontiguousarray(loadings.T))
    return w / BINS_PER_ROW, model.components_.T


def run_side(side: str, folder: Path, n_steps: int) -> None:
    """Time one side in this process; writes what it found and prints time and memory as JSON."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with np.load(folder / "inputs.npz") as f:
        counts = SparseRows(f["indptr"], f["gene"], f["count"], f["exposure"], N_GENES)
        start = f["factors"], f["loadings"]

    def fit(rows: SparseRows, factors: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        if side == PEER:
            return theirs(rows, factors.copy(), start[1].copy(), n)
        return ours(rows, factors, start[1], n, side == LONGER)

    fit(counts.taken(np.arange(20)), start[0][:20], 2)  # compiles, and imports
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    began = time.process_time()
    factors, loadings = fit(counts, start[0], n_steps)
    seconds = time.process_time() - began
    peak = resident("VmHWM") - before
    np.savez(folder / f"{SIDES.index(side)}.npz", factors=factors, loadings=loadings)
    print(json.dumps({"seconds": seconds, "bytes": peak}))


def resident(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


def divergence(counts: SparseRows, factors: np.ndarray, loadings: np.ndarray) -> float:
    """Kullback-Leibler divergence of counts from rates, per UMI."""
    log_ratio, row = 0.0, counts.row
    for at in range(0, len(row), 1 << 18):
        piece = slice(at, at + (1 << 18))
        rate = (factors[row[piece]] * loadings[counts.gene[piece]]).sum(1) * BINS_PER_ROW
        x = counts.count[piece].astype(np.float64)
        log_ratio += float(x @ np.log(x / rate))
    total = BINS_PER_ROW * (factors.sum(0) * loadings.sum(0)).sum()
    n = counts.count.sum(dtype=np.float64)
    return float((log_ratio - n + total) / n)


def check(folder: Path) -> None:
    """EM and scikit-learn agree, floors aside; as rates, because scale is free."""
    with np.load(folder / "0.npz") as peer, np.load(folder / "1.npz") as mine:
        rates = [f["factors"][:50] @ f["loadings"].T for f in (peer, mine)]
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-4, atol=1e-7)


def main() -> None:
    parser = argparse.ArgumentParser(description="Poisson factorisation against scikit-learn.")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--factors", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side; the best counts")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.folder, options.steps)
        return
    try:
        import sklearn  # noqa: F401
    except ImportError:
        sys.exit("scikit-learn is missing: pip install scikit-learn")

    counts = draw(options.rows)
    loadings = start_loadings(counts, options.factors, 0)
    depth = counts.totals / counts.exposure / options.factors
    factors = np.repeat(depth[:, None], options.factors, axis=1)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.savez(
            folder / "inputs.npz", indptr=counts.indptr, gene=counts.gene, count=counts.count,
            exposure=counts.exposure, factors=factors, loadings=loadings,
        )  # fmt: skip
        for _ in range(options.rounds):
            for side in SIDES:
                command = [sys.executable, __file__, "--side", side, "--folder", place]
                command += ["--steps", str(options.steps)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
        check(folder)
        results = [np.load(folder / f"{i}.npz") for i in range(len(SIDES))]
        divergences = [divergence(counts, r["factors"], r["loadings"]) for r in results]
    single = divergence(
        counts, counts.totals[:, None] / BINS_PER_ROW,
        counts.gene_totals[:, None] / counts.gene_totals.sum(),
    )  # fmt: skip
    best = {s: {key: min(r[key] for r in found[s]) for key in found[s][0]} for s in SIDES}
    rows = [
        [s, best[s]["seconds"], best[PEER]["seconds"] / best[s]["seconds"], single - kl,
         best[s]["bytes"] / 1e6, best[PEER]["bytes"] / best[s]["bytes"]]
        for s, kl in zip(SIDES, divergences, strict=True)
    ]  # fmt: skip
    title = f"{len(counts):,} rows, {len(counts.gene):,} counts, K = {options.factors}"
    columns = [f"{options.steps} steps", "CPU time, s", "ratio of time", "less divergence",
               "memory, MB", "ratio of memory"]  # fmt: skip
    notes = [
        "One core. Ratios are scikit-learn's to ours. Less divergence: Kullback-Leibler divergence "
        "per UMI that a single factor has more. The rates of the first two agree to 1e-4."
    ]
    packages = ("numpy", "numba", "scipy", "scikit-learn")
    publish("factorise", [Table(title, columns, rows, notes)], options.json, packages)


if __name__ == "__main__":
    main()
