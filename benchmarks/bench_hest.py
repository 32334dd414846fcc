"""Ridge on the embeddings of an encoder, by the protocol of HEST-Bench, with noise ceilings.

    python benchmarks/bench_hest.py FOLDER --encoder stain --json hest.json

FOLDER has the layout of HEST-Bench (hest_layout.py), which is not part of this project. Two
regressions predict log1p of the counts of a spot. ``published`` is that of HEST-Bench: embeddings
are scaled to variance 1, the first 256 principal components are taken, and ridge without an
intercept has the penalty 100 / (components · genes), solved by LSQR with the tolerance of
scikit-learn. ``tuned`` is ridge on the scaled embeddings themselves, with the penalty that has the
highest mean PCC on training samples left out. Scores are Pearson's r over the test spots of a
fold, averaged over genes; per task their mean and standard deviation over folds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hest_layout import Sample, Task, read_sample, read_tasks
from report import Table, publish
from scipy.sparse.linalg import lsqr

from virchow_st.errors import ConfigError, VirchowSTError
from virchow_st.evaluation.baselines.regression import NormalEquations
from virchow_st.evaluation.baselines.ridge import PENALTIES
from virchow_st.metrics.ceiling import noise_ceiling
from virchow_st.models.encoders import load_encoder
from virchow_st.models.encoders.base import Encoder
from virchow_st.types import Array, Float64Array

COMPONENTS = 256
_TOLERANCE, _MAX_STEPS = 1e-4, 1000  # of scikit-learn's Ridge, and of HEST-Bench
_PARTS = 5  # of the training spots, each left out in turn to choose the penalty
WAYS = ("published", "tuned", "ceiling")


def published(x: Array, y: Array, x_test: Array) -> Float64Array:
    """Predicted values (n_test, G) of the published regression."""
    x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    mean, std = x.mean(0), x.std(0)
    std[std <= 1e-6 * np.sqrt((x**2).mean(0))] = 1.0
    z, z_test = (x - mean) / std, (x_test - mean) / std
    n = min(COMPONENTS, *z.shape)
    axes = np.linalg.eigh(z.T @ z)[1][:, ::-1][:, :n]
    damp = np.sqrt(100 / (n * y.shape[1]))
    options = {"damp": damp, "atol": _TOLERANCE, "btol": _TOLERANCE, "iter_lim": _MAX_STEPS}
    scores = z @ axes
    weights = np.stack([lsqr(scores, target, **options)[0] for target in y.T], axis=1)
    return z_test @ axes @ weights


def tuned(parts: Sequence[tuple[Array, Array]], x_test: Array) -> tuple[Float64Array, float]:
    """Predicted values (n_test, G) of ridge fitted to all parts, and its penalty.

    The penalty has the highest mean PCC on parts of which each is left out in turn.
    """
    scores = np.zeros(len(PENALTIES))
    for i, (x, y) in enumerate(parts):
        equations = _equations([part for j, part in enumerate(parts) if j != i])
        for k, penalty in enumerate(PENALTIES):
            r = pcc(equations.solve(penalty)(x.astype(np.float64)), y)
            scores[k] += np.nanmean(r) if np.isfinite(r).any() else 0.0
    penalty = PENALTIES[int(np.argmax(scores))]
    return _equations(parts).solve(penalty)(x_test.astype(np.float64)), penalty


def _equations(parts: Sequence[tuple[Array, Array]]) -> NormalEquations:
    equations = NormalEquations(parts[0][0].shape[1], parts[0][1].shape[1])
    for x32, y in parts:
        x = x32.astype(np.float64)
        equations.add(x, x.T @ y, y.sum(0), (y**2).sum(0))
    return equations


def parts_of(samples: Sequence[Sample]) -> list[tuple[Array, Array]]:
    """Embeddings and log1p of counts of up to five parts of the training spots.

    Samples are dealt out to the parts whole. A single sample is cut into five strips along its
    longer side, so that the left-out spots have few neighbours among the others.

    Raises:
        ConfigError: The only sample has no coords, or fewer than ten spots.
    """
    pairs = [(s.x, np.log1p(s.expression)) for s in samples]
    if len(pairs) > 1:
        dealt = [pairs[i::_PARTS] for i in range(min(_PARTS, len(pairs)))]
        return [(np.concatenate([x for x, _ in d]), np.concatenate([y for _, y in d]))
                for d in dealt]  # fmt: skip
    (only,), ((x, y),) = samples, pairs
    if only.coords is None or len(x) < 2 * _PARTS:
        raise ConfigError(
            f"sample {only.name}: the only training sample of a fold has to have coords and "
            f"{2 * _PARTS} spots, to choose a penalty on; got {len(x)} spots, "
            f"{'no coords' if only.coords is None else 'coords'}"
        )
    along = only.coords[:, int(np.argmax(np.ptp(only.coords, axis=0)))]
    strips = np.array_split(np.argsort(along, kind="stable"), _PARTS)
    return [(x[strip], y[strip]) for strip in strips]


def pcc(predicted: Array, y: Array) -> Float64Array:
    """Pearson's r (G,) over spots; 0 where the prediction is constant, NaN where ``y`` is."""
    a, b = predicted - predicted.mean(0), y - y.mean(0)
    sizes = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    r = (a * b).sum(0) / np.where(sizes > 0, sizes, 1.0)
    return np.where(np.ptp(y, axis=0) > 0, r, np.nan)


def score_fold(train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, float]:
    """Mean PCC over genes of both ways and of the ceiling, penalty and sizes of a fold."""
    parts = parts_of(train)
    x = np.concatenate([s.x for s in train])
    y = np.log1p(np.concatenate([s.expression for s in train]))
    x_test = np.concatenate([s.x for s in test])
    raw = np.concatenate([s.expression for s in test])
    y_test = np.log1p(raw)
    predicted, penalty = tuned(parts, x_test)
    scores = {"published": pcc(published(x, y, x_test), y_test), "tuned": pcc(predicted, y_test)}
    varies = np.isfinite(scores["published"])
    if not varies.any():
        names = ", ".join(s.name for s in test)
        raise ConfigError(f"samples {names}: expected a gene that varies between test spots")
    is_counts = bool((raw == np.rint(raw)).all())
    scores["ceiling"] = noise_ceiling(raw.mean(0), raw.var(0)) if is_counts else raw[0] * np.nan
    return {
        **{way: float(scores[way][varies].mean()) for way in WAYS},
        "penalty": penalty,
        "genes": int(varies.sum()),
        "train": len(x),
        "test": len(x_test),
    }


def score_task(task: Task, encoder: Encoder) -> list[dict[str, float]]:
    """Scores of every fold; each sample is encoded once."""
    rows = {r["sample_id"]: r for fold in task.folds for side in fold for r in side}
    samples = {name: read_sample(task, row, encoder) for name, row in rows.items()}
    made = []
    for fold in task.folds:
        train, test = ([samples[r["sample_id"]] for r in side] for side in fold)
        made.append(score_fold(train, test))
        print(f"{task.folder.name}  fold {len(made) - 1}  done", file=sys.stderr, flush=True)
    return made


def tables(results: dict[str, list[dict[str, float]]], encoder: str) -> list[Table]:
    """Mean and standard deviation per task and their average, and every fold."""
    means = {
        task: {way: np.array([fold[way] for fold in folds]) for way in WAYS}
        for task, folds in results.items()
    }
    heads = [f"PCC, {way}" for way in WAYS]
    first: list[list[Any]] = [
        [task, len(results[task]), *(_cell(of[way]) for way in WAYS)] for task, of in means.items()
    ]
    average = [float(np.mean([of[way].mean() for of in means.values()])) for way in WAYS]
    first.append(["mean of tasks", None, *(_cell(np.array([value])) for value in average)])
    second: list[list[Any]] = [
        [task, i, fold["train"], fold["test"], fold["genes"], *(fold[w] for w in WAYS),
         f"{fold['penalty']:.0e}"]
        for task, folds in results.items()
        for i, fold in enumerate(folds)
    ]  # fmt: skip
    notes = [
        f"Encoder {encoder}. Mean ± standard deviation over folds. The ceiling is that of Poisson "
        "counts, √(1 − mean / variance), before log1p; – where the table has values that are none.",
        "Genes that are constant in the test spots are left out; HEST-Bench has no score then.",
    ]
    columns = ["task", "fold", "training spots", "test spots", "genes", *heads, "penalty, tuned"]
    return [
        Table("Ridge by HEST-Bench's protocol", ["task", "folds", *heads], first, notes),
        Table("Folds", columns, second),
    ]


def _cell(values: Float64Array) -> str:
    """Mean ± standard deviation (n), of one value the value, of NaN a dash."""
    if np.isnan(values).any():
        return "–"
    spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder in the layout of HEST-Bench")
    parser.add_argument("--encoder", default="stain", help="as vst extract names them")
    parser.add_argument("--weights", default="", help="weights of the encoder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        tasks = read_tasks(arguments.folder)
        encoder = load_encoder(
            arguments.encoder, weights=arguments.weights, device=arguments.device
        )
        results = {task.folder.name: score_task(task, encoder) for task in tasks}
    except VirchowSTError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    publish("hest", tables(results, encoder.name), arguments.json, ("torch", "anndata"))


if __name__ == "__main__":
    main()
