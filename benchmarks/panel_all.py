"""What the panel's genes lose when ``vst train`` predicts the whole transcriptome with them.

Each cohort is simulated with 18,000 genes at the abundances of a transcriptome, and with variation
of every gene by itself that neither H&E nor a factor shows. The default decoder is trained on two
patients twice, with ``--panel top50`` and with ``--panel all``, each by the plain command in a
process of its own, and both are scored on the third patient, for the same 50 genes. Beside the
scores stand processor time and peak memory of the training, and of the second run the scores of all
genes in ten groups by abundance.

    python benchmarks/panel_all.py FOLDER --seeds 254 255 256 --json panel_all.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import virchow_st as vst
from virchow_st.runtime.progress import SILENT

TEST_PATIENT = "P5"
PANELS = "top50", "all"
GIB = 1 << 30


def measure(folder: Path, config: vst.SimulateConfig, epochs: int) -> dict[str, Any]:
    """Train and evaluate both panels on one cohort."""
    slides = folder / f"cohort-{config.seed}"
    vst.simulate_cohort(slides, config)
    extraction = vst.ExtractConfig("stain", device="cpu")
    for _ in vst.extract_cohort(slides / "slides.csv", extraction, SILENT):
        pass
    stores = [str((slides / f"{p}.vst").resolve()) for p in config.patients]
    result: dict[str, Any] = {"seed": config.seed}
    for panel in PANELS:
        run = folder / f"run-{config.seed}-{panel}"
        used = None
        if not (run / "best_metrics.json").is_file():
            given = ["--epochs", str(epochs)] if epochs else []
            used = run_vst(
                "train", *stores, "--run", str(run), "--test-patient", TEST_PATIENT,
                "--panel", panel, "--device", "cpu", "--quiet", *given,
            )  # fmt: skip
        metrics = vst.evaluate_run(run, "cpu", SILENT)
        result[panel] = {"training": used, **scores(metrics)}
    return result


def run_vst(*arguments: str) -> dict[str, float]:
    """Run ``vst`` in a process of its own; its processor time in s and peak memory in GiB."""
    command = [sys.executable, "-c", "from virchow_st_cli.main import main; main()", *arguments]
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: ended with status {status}")
    cpu_s = used.ru_utime + used.ru_stime
    return {"cpu_s": round(cpu_s, 1), "peak_gib": round(1024 * used.ru_maxrss / GIB, 2)}


def scores(metrics: dict[str, Any]) -> dict[str, Any]:
    """Scores of the panel by scale, and what there is of all genes."""
    names = "pcc", "pcc_ceiling", "pcc_of_ceiling", "d2_poisson", "calibration"
    found: dict[str, Any] = {
        name: {scale: round(of[name], 4) for scale, of in metrics["scales"].items()}
        for name in names
    }
    if "all_genes" in metrics:
        found["all_genes"] = metrics["all_genes"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[254, 255, 256])
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--bins", type=int, default=640)
    parser.add_argument("--hidden-variation", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=0, help="0: as vst train does by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for seed in options.seeds:
        config = vst.SimulateConfig(
            seed=seed, genes=options.genes, bins=options.bins,
            hidden_variation=options.hidden_variation,
        )  # fmt: skip
        results.append(measure(options.folder, config, options.epochs))
        print(json.dumps(results[-1], indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
