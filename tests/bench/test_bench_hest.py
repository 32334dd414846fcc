"""benchmarks/bench_hest.py on a drawn folder in HEST-Bench's layout, against scikit-learn."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import load_encoder

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GENES = ("A", "B", "FLAT")
SPOTS = 24

pytestmark = pytest.mark.skipif(
    find_spec("anndata") is None, reason="pip install 'virchow_st[spatial]'"
)


@pytest.fixture
def hest(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_hest

    return bench_hest


def drawn(folder: Path, scale: float = 1.0) -> Path:
    """A task of three samples, whose darker patches hold more UMIs of A and fewer of B."""
    import anndata

    task = folder / "TASK"
    for name in ("splits", "patches", "adata"):
        (task / name).mkdir(parents=True)
    (task / "var_50genes.json").write_text(json.dumps({"genes": GENES}), "utf-8")
    for s in range(3):
        rng = np.random.default_rng(s)
        dark = rng.random(SPOTS)
        colour = np.array([230, 190, 215]) - dark[:, None] * (120, 120, 75)
        noise = rng.normal(0, 12, (SPOTS, 64, 64, 1))
        images = np.clip(colour[:, None, None] + noise, 0, 255).astype(np.uint8)
        names = np.array([f"{s}-{i}" for i in range(SPOTS)])
        with h5py.File(task / f"patches/S{s}.h5", "w") as f:
            f["img"] = images
            f["barcode"] = names[:, None].astype("S")
            f["coords"] = np.stack([np.arange(SPOTS) * 100, np.zeros(SPOTS, int)], 1)
        rate = np.stack([60 * dark + 5, 60 * (1 - dark) + 5, 0 * dark], 1)
        order = rng.permutation(SPOTS)  # the table has another order, and a gene of no interest
        counts = rng.poisson(np.column_stack([np.ones(SPOTS), rate[:, ::-1]])) * scale
        table = anndata.AnnData(counts[order].astype(np.float32))
        table.obs_names, table.var_names = names[order], ["OTHER", *GENES[::-1]]
        table.write_h5ad(task / f"adata/S{s}.h5ad")
    for fold, (train, test) in enumerate([([0, 1], [2]), ([2], [0, 1])]):
        for name, samples in (("train", train), ("test", test)):
            lines = [f"S{s},patches/S{s}.h5,adata/S{s}.h5ad" for s in samples]
            text = "\n".join(["sample_id,patches_path,expr_path", *lines, ""])
            (task / f"splits/{name}_{fold}.csv").write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize(("dim", "tolerance"), [(40, 1e-12), (300, 1e-3)])
def test_published_is_scikit_learns_pipeline(hest: ModuleType, dim: int, tolerance: float) -> None:
    """LSQR stops early: with 256 components, rounding moves the end by some 1e-4."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 300)) @ rng.normal(size=(300, 300)) + 5
    x = x[:, :dim]
    x[:, 7] = 3.0
    y = np.log1p(rng.poisson(np.exp(0.02 * x[:, :4])))
    pipe = make_pipeline(StandardScaler(), PCA(n_components=min(dim, 256), svd_solver="full"))
    train, test = pipe.fit_transform(x[:400]), pipe.transform(x[400:])
    alpha = 100 / (min(dim, 256) * 4)
    ridge = Ridge(alpha=alpha, solver="lsqr", fit_intercept=False, max_iter=1000, random_state=1)
    expected = ridge.fit(train, y[:400]).predict(test)
    found = hest.published(x[:400], y[:400], x[400:])
    assert np.abs(found - expected).max() < tolerance


def test_pcc_is_that_of_numpy_and_constants_have_none(hest: ModuleType) -> None:
    rng = np.random.default_rng(1)
    a, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    a[:, 1], y[:, 2] = 2.0, 4.0
    r = hest.pcc(a, y)
    assert r[0] == pytest.approx(np.corrcoef(a[:, 0], y[:, 0])[0, 1])
    assert r[1] == 0
    assert np.isnan(r[2])


def test_the_penalty_is_chosen_on_samples_left_out(hest: ModuleType) -> None:
    """Features without use, as many as spots: a large penalty; a feature that is all: a small."""
    rng = np.random.default_rng(2)
    parts = []
    for _ in range(3):
        x = rng.normal(size=(20, 40))
        parts.append((x, x[:, :1] + 3 * rng.normal(size=(20, 1))))
    x = rng.normal(size=(50, 40))
    noisy, large = hest.tuned(parts, x)
    exact, small = hest.tuned([(x[:, :2], x[:, :1]) for x, _ in parts], x[:, :2])
    assert large > small
    assert np.corrcoef(exact[:, 0], x[:, 0])[0, 1] > 0.9999
    free = hest._equations(parts).solve(1e-5)(x)
    assert hest.pcc(noisy, x[:, :1])[0] > hest.pcc(free, x[:, :1])[0]


def test_a_single_sample_is_cut_into_strips(hest: ModuleType, tmp_path: Path) -> None:
    (task,) = hest.read_tasks(drawn(tmp_path))
    sample = hest.read_sample(task, task.folds[1][0][0], load_encoder("stain"))
    parts = hest.parts_of([sample])
    assert [len(x) for x, _ in parts] == [5, 5, 5, 5, 4]
    assert np.array_equal(np.concatenate([x for x, _ in parts]), sample.x)  # ordered along x
    bare = hest.Sample(sample.name, sample.x, sample.expression, None)
    with pytest.raises(ConfigError, match="S2: the only training sample .* no coords"):
        hest.parts_of([bare])


def test_counts_are_those_of_the_barcodes(hest: ModuleType, tmp_path: Path) -> None:
    (task,) = hest.read_tasks(drawn(tmp_path))
    sample = hest.read_sample(task, task.folds[0][0][0], load_encoder("stain"))
    dark = np.random.default_rng(0).random(SPOTS)
    assert np.corrcoef(sample.expression[:, 0], dark)[0, 1] > 0.8
    assert np.corrcoef(sample.expression[:, 1], dark)[0, 1] < -0.8
    assert not sample.expression[:, 2].any()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "bench_hest.py", *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def test_it_runs_and_reports_both_ridges_beside_the_ceiling(tmp_path: Path) -> None:
    done = run(drawn(tmp_path / "data"), "--json", tmp_path / "hest.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "hest.json").read_text("utf-8"))
    per_task, folds = content["tables"]
    assert [row[0] for row in per_task["rows"]] == ["TASK", "mean of tasks"]
    assert [row[2:5] for row in folds["rows"]] == [[48, 24, 2], [24, 48, 2]]  # FLAT has no score
    published, tuned, ceiling = np.array([row[5:8] for row in folds["rows"]]).T
    assert (published > 0.5).all()
    assert (tuned > 0.8).all()
    assert (ceiling > 0.9).all()
    mean, _, sd = per_task["rows"][0][3].partition(" ± ")
    assert float(mean) == pytest.approx(tuned.mean(), abs=1e-3)
    assert float(sd) == pytest.approx(tuned.std(), abs=1e-3)


def test_values_that_are_no_counts_have_no_ceiling(hest: ModuleType, tmp_path: Path) -> None:
    (task,) = hest.read_tasks(drawn(tmp_path, scale=0.3))
    scores = {"TASK": hest.score_task(task, load_encoder("stain"))}
    assert all(np.isnan(fold["ceiling"]) for fold in scores["TASK"])
    first, second = hest.tables(scores, "stain")
    assert [row[4] for row in first.rows] == ["–", "–"]
    assert second.content()["rows"][0][7] is None


def test_another_layout_is_refused_in_one_line(hest: ModuleType, tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}: expected HEST-Bench's layout" in done.stderr
    assert done.stdout == ""
    with pytest.raises(ConfigError, match="none: expected HEST-Bench's layout"):
        hest.read_tasks(tmp_path / "none")


def test_what_a_task_lacks_is_named(hest: ModuleType, tmp_path: Path) -> None:
    folder = drawn(tmp_path)
    task, encoder = folder / "TASK", load_encoder("stain")
    row = {"sample_id": "S0", "patches_path": "patches/S0.h5", "expr_path": "adata/S0.h5ad"}
    whole = hest.read_tasks(folder)[0]
    for change, message in (
        ({"patches_path": "none.h5"}, "none.h5: expected HDF5 with img and barcode"),
        ({"patches_path": "adata/S0.h5ad"}, "S0.h5ad: expected HDF5 with img and barcode"),
        ({"expr_path": "splits/train_0.csv"}, "train_0.csv: cannot be read as h5ad"),
        ({"expr_path": "adata/S1.h5ad"}, "S1.h5ad: expected the barcode 0-0, which it lacks"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            hest.read_sample(whole, row | change, encoder)
        assert "\n" not in str(caught.value)
    unknown = hest.Task(whole.folder, ("A", "ZZZ"), whole.folds)
    with pytest.raises(ConfigError, match="expected the gene ZZZ"):
        hest.read_sample(unknown, row, encoder)
    table = task / "splits" / "test_0.csv"
    good = table.read_text("utf-8")
    for text, message in (
        (good.replace("expr_path", "path"), "test_0.csv: expected rows with sample_id, patches"),
        (good + "S1,patches/S1.h5,adata/S1.h5ad\n", "sample S1 is in train_0.csv too"),
    ):
        table.write_text(text, "utf-8")
        with pytest.raises(ConfigError, match=message):
            hest.read_tasks(folder)
    (task / "var_50genes.json").write_text("{}", "utf-8")
    with pytest.raises(ConfigError, match='var_50genes.json: expected JSON with a list "genes"'):
        hest.read_tasks(folder)
