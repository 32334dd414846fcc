"""Whether a slide with stripes has the scores of the same slide without, once exposure is on.

For each seed one cohort is simulated twice, without further stripes and with them; all else is the
same. On each a decoder is trained and evaluated, with ``--exposure auto`` and without exposure.
Printed are the ceiling, the share of it that the PCC reaches, and D², at 2 and 8 µm.

    python benchmarks/stripes_scores.py FOLDER --seeds 277 278 279
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import virchow_st as vst
from virchow_st.runtime.progress import SILENT
from virchow_st.training.train import train

SCALES = "2", "8"


def scores(
    folder: Path, config: vst.SimulateConfig, exposure: str, epochs: int
) -> dict[str, list[float]]:
    """Scores of one cohort, at 2 and 8 µm."""
    slides = folder / f"seed-{config.seed}-{config.stripes:g}"
    vst.simulate_cohort(slides, config)
    for _ in vst.extract_cohort(
        slides / "slides.csv", vst.ExtractConfig("stain", device="cpu"), SILENT
    ):
        pass
    run = slides / f"run-{exposure}"
    if not (run / "best_metrics.json").is_file():
        stores = tuple(str((slides / f"{p}.vst").resolve()) for p in config.patients)
        given = vst.TrainConfig(
            stores=stores, test_patient=config.patients[-1], decoder="linear", exposure=exposure,
            epochs=epochs, device="cpu",
        )  # fmt: skip
        train(run, given, progress=SILENT)
    found = vst.evaluate_run(run, "cpu", SILENT)["scales"]
    return {
        name: [round(found[s][name], 4) for s in SCALES]
        for name in ("pcc_ceiling", "pcc_of_ceiling", "d2_poisson")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[277, 278, 279])
    parser.add_argument("--bins", type=int, default=640)
    parser.add_argument("--stripes", type=float, default=0.2)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        plain = vst.SimulateConfig(seed=seed, bins=arguments.bins)
        for exposure in ("auto", "none"):
            for config in (plain, replace(plain, stripes=arguments.stripes)):
                found = scores(arguments.folder, config, exposure, arguments.epochs)
                about = {"seed": seed, "exposure": exposure, "stripes": config.stripes}
                print(json.dumps(about | found), flush=True)


if __name__ == "__main__":
    main()
