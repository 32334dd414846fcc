"""How well stripes are estimated on simulated slides, and a picture of one.

    python benchmarks/stripes_truth.py [--bins 640] [--seeds 201,202,203] [--picture stripes.png]

The tissue of each slide is that of `vst simulate`, with its glands, cells and drift; stripes are
drawn anew with each standard deviation and counts are drawn once more, so that a slide can be had
without any.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import h5py
import numpy as np

from virchow_st.config import SimulateConfig
from virchow_st.metrics.stripes import Stripes, estimate_stripes
from virchow_st.simulate.cohort import simulate_cohort
from virchow_st.simulate.truth import true_exposure
from virchow_st.types import BoolArray, Float64Array

STRIPES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)


def tissue_umis(bins: int, seed: int) -> tuple[Float64Array, BoolArray]:
    """Expected total UMIs per bin at an exposure of 1, (R, C), and where there is tissue."""
    config = SimulateConfig(patients=("P1",), bins=bins, seed=seed, stripes=1e-6)
    with tempfile.TemporaryDirectory() as folder:
        simulate_cohort(Path(folder), config)
        path = Path(folder) / "P1" / "truth.h5"
        exposure = true_exposure(path)
        with h5py.File(path) as f:
            of_programmes = f["loadings"][:].sum(0)
            umis = np.tensordot(of_programmes, f["programmes"][:], 1) * f["depth"][:]
    return umis / np.outer(exposure.rows, exposure.cols), umis > 0


def error(found: Stripes, log_truth: Float64Array, counted: BoolArray) -> float:
    """Root mean square error of the logarithm, up to a common factor."""
    return float((np.log(found.efficiency) - log_truth)[counted].std())


def draw(path: Path, log_truth: Float64Array, found: Stripes, sd: float) -> None:
    """Draw estimated over true efficiencies of the rows in the middle of the slide."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    middle = slice(len(log_truth) // 2 - 60, len(log_truth) // 2 + 60)
    rows = np.arange(len(log_truth))[middle]
    truth = np.exp(log_truth - log_truth.mean())
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.2), width_ratios=(2.2, 1), layout="constrained"
    )
    left.step(rows, truth[middle], where="mid", color="#222222", lw=1.2, label="true")
    left.step(rows, found.efficiency[middle], where="mid", color="#c8553d", lw=1.2,
              label="estimated")  # fmt: skip
    low, high = (found.efficiency * np.exp(sign * found.se) for sign in (-1, 1))
    left.fill_between(rows, low[middle], high[middle], step="mid", color="#c8553d", alpha=0.2, lw=0)
    left.set(xlabel="row of 2 µm bins", ylabel="efficiency")
    left.legend(frameon=False, ncols=2, loc="upper left")
    counted = found.se > 0
    right.plot(truth[counted], found.efficiency[counted], ".", ms=3, color="#c8553d")
    ends = [truth[counted].min(), truth[counted].max()]
    right.plot(ends, ends, color="#222222", lw=0.8)
    right.set(xlabel="true", ylabel="estimated", aspect="equal")
    right.set_title(f"stripes of {sd:.0%}, error {error(found, log_truth, counted):.1%}", size=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print a line per slide and strength of stripes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bins", type=int, default=640)
    parser.add_argument("--seeds", default="201,202,203")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    print("seed  stripes  rows: found  error  se    columns: found  error  se")
    for seed in map(int, options.seeds.split(",")):
        umis, tissue = tissue_umis(options.bins, seed)
        rng = np.random.default_rng(seed)
        for sd in STRIPES:
            truth = rng.normal(0, sd, umis.shape[0]), rng.normal(0, sd, umis.shape[1])
            counts = rng.poisson(umis * np.exp(truth[0])[:, None] * np.exp(truth[1]))
            found = estimate_stripes(counts, tissue)
            numbers = [
                f"{s.sd:13.1%} {error(s, t, tissue.sum(1 - axis) >= 64):6.1%} {s.mean_se:5.1%}"
                for axis, (s, t) in enumerate(zip(found, truth, strict=True))
            ]
            print(f"{seed:4d} {sd:8.0%} {'  '.join(numbers)}", flush=True)
            if options.picture and sd == 0.2:
                draw(options.picture, truth[0], found[0], sd)


if __name__ == "__main__":
    main()
