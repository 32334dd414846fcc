"""Kernels against what they replace: every pair of `virchow_st.kernels.table`, then a whole job.

The job is the one of an evaluation: Pearson's r per gene over the tissue of all patches and
windowed SSIM per gene and patch, for 50 genes. Its reference calls `scipy.stats.pearsonr` once a
gene and `skimage.metrics.structural_similarity` once a gene and patch, with everything that does
not depend on the gene done outside the loop. Both sides run on one thread, in turns, on the same
arrays (float32 rates and uint16 counts, as a decoder and a store give them), compute in float64,
and must agree to 1e-6.

    python benchmarks/bench_kernels.py [--patches 32] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy
import skimage
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import pearsonr
from skimage.metrics import structural_similarity

from virchow_st.kernels.ssim import WINDOW
from virchow_st.kernels.table import TABLE, draw_patch
from virchow_st.metrics.correlation import moments, pearson_from_moments
from virchow_st.metrics.ssim import SsimMean

Patches = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def our_pcc_and_ssim(patches: Patches) -> tuple[np.ndarray, np.ndarray]:
    n_genes = len(patches[0][0])
    sums, ssim = np.zeros((n_genes, 6)), SsimMean(n_genes)
    for rate, counts, mask in patches:
        sums += moments(rate, counts, mask)
        ssim.update(rate, counts, mask)
    return pearson_from_moments(sums), ssim.compute()


def their_pcc_and_ssim(patches: Patches) -> tuple[np.ndarray, np.ndarray]:
    n_genes, half = len(patches[0][0]), WINDOW // 2
    ssim, n_windows = np.zeros(n_genes), 0
    for rate, counts, mask in patches:
        inside = sliding_window_view(mask, (WINDOW, WINDOW)).all((2, 3))
        n_windows += inside.sum()
        for g in range(n_genes):
            maps = []
            for x in (rate[g].astype(np.float64), counts[g].astype(np.float64)):
                low = x.min(where=mask, initial=np.inf)
                high = x.max(where=mask, initial=-np.inf)
                maps.append((x - low) / (high - low))  # no map drawn is constant
            _, s = structural_similarity(*maps, win_size=WINDOW, data_range=1.0, full=True)
            ssim[g] += s[half:-half, half:-half].sum(where=inside)
    pcc = [
        pearsonr(
            np.concatenate([rate[g][mask] for rate, _, mask in patches], dtype=np.float64),
            np.concatenate([counts[g][mask] for _, counts, mask in patches], dtype=np.float64),
        ).statistic
        for g in range(n_genes)
    ]
    return np.array(pcc), ssim / n_windows


def seconds(
    ours: Callable[[], Any], reference: Callable[[], Any], rounds: int
) -> tuple[float, float]:
    """Best time of each, in turns, after a first call that compiles and warms."""
    best = [np.inf, np.inf]
    ours(), reference()
    for _ in range(rounds):
        for i, call in enumerate((ours, reference)):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]


def machine() -> dict[str, str | int | None]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), cpu)
    versions = {m.__name__: m.__version__ for m in (np, numba, scipy, skimage)}
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels against what they replace.")
    parser.add_argument("--patches", type=int, default=32, help="patches of the whole job")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs; the best counts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    rows = []
    for pair in TABLE:
        inputs = pair.make_inputs(np.random.default_rng(0))
        times = seconds(
            lambda p=pair, x=inputs: p.kernel(*x),
            lambda p=pair, x=inputs: p.reference(*x),
            options.rounds,
        )
        rows.append((pair.name, *times))

    rng = np.random.default_rng(0)
    patches = [draw_patch(rng) for _ in range(options.patches)]
    for got, want in zip(our_pcc_and_ssim(patches), their_pcc_and_ssim(patches), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    times = seconds(
        lambda: our_pcc_and_ssim(patches),
        lambda: their_pcc_and_ssim(patches),
        min(options.rounds, 3),
    )
    rows.append((f"masked PCC + SSIM, 50 genes, {options.patches} patches", *times))

    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"{'':46}{'ours':>12}{'reference':>13}{'ratio':>8}")
    for name, ours, reference in rows:
        print(f"{name:46}{ours * 1e3:9.3f} ms{reference * 1e3:10.3f} ms{reference / ours:7.1f}×")
    if options.json:
        figures = [
            {"name": name, "ours_s": ours, "reference_s": reference, "ratio": reference / ours}
            for name, ours, reference in rows
        ]
        text = json.dumps({"machine": about, "figures": figures}, indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
