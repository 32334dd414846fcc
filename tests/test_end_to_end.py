"""The whole way through the command line on a tiny simulated cohort."""

from __future__ import annotations

import csv
import json
import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import virchow_st
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.run.results import PER_GENE

SCALES = ("2", "4", "8", "16")
SCORES = {
    "coverage", "n_bins", "n_genes_scored", "pcc", "pcc_fisher", "pcc_median", "pcc_pooled",
    "pcc_ceiling", "pcc_ceiling_thinned", "pcc_of_ceiling", "pcc_shuffled", "pcc_shifted",
    "pcc_partial", "pcc_partial_ceiling", "pcc_partial_shuffled",
    "spearman", "ssim", "ssim_shuffled", "ssim_shifted", "ssim_all_zero", "d2_poisson",
    "d2_poisson_test_mean", "auprc", "auprc_prevalence", "auroc", "calibration",
    "morans_i_predicted", "morans_i_observed", "morans_i_residual",
}  # fmt: skip
INTERVALS = {"pcc_ci95", "d2_poisson_ci95", "pcc_partial_ci95"}
BASELINES = {"gene_mean", "nuclear_density", "ridge", "total_umi"}
EPOCHS = {"linear": 4, "hist2st": 1}


@pytest.fixture(scope="module")
def runs(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each decoder, trained and evaluated as a user does it."""
    from virchow_st_cli.main import run as vst

    folder, made = tmp_path_factory.mktemp("runs"), {}
    for decoder, epochs in EPOCHS.items():
        made[decoder] = folder / decoder
        arguments = [
            "train", *stores.values(), "--run", made[decoder], "--test-patient", "P5",
            "--panel", "top:20", "--decoder", decoder, "--epochs", epochs, "--lr", "1e-3",
            "--batch-size", 4, "--accumulate", 1, "--device", "cpu",
        ]  # fmt: skip
        assert vst([str(a) for a in arguments]) == 0
        assert vst(["evaluate", str(made[decoder]), "--device", "cpu"]) == 0
    return made


@pytest.fixture(scope="module", params=sorted(EPOCHS))
def run(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Path:
    return runs[request.param]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


@pytest.fixture
def metrics(run: Path) -> dict[str, Any]:
    return read_json(run / "metrics.json")


def test_run_directory_is_whole(run: Path, stores: dict[str, Path]) -> None:
    assert {p.name for p in run.iterdir()} - {"figures", "tensorboard"} == {
        "config.toml", "split.json", "panel.tsv", "appearance.json", "history.jsonl", "checkpoints",
        "best_metrics.json", "metrics.json", "per_gene.csv", "blocks.npz", "maps", "overview.h5",
    }  # fmt: skip
    assert not [p for p in run.rglob("*") if p.name.endswith((".part", ".old"))]
    config = tomllib.loads((run / "config.toml").read_text("utf-8"))
    assert config["stores"] == [str(s.resolve()) for s in stores.values()]
    assert (config["decoder"], config["epochs"]) == (run.name, EPOCHS[run.name])
    assert config["lr"] == 1e-3
    for checkpoint in ("last", "best"):
        assert {p.name for p in (run / "checkpoints" / checkpoint).iterdir()} == {
            "state.json", "tensors.safetensors",
        }  # fmt: skip
    panel = [line.split("\t") for line in (run / "panel.tsv").read_text("utf-8").splitlines()]
    assert panel[0][:2] == ["gene_id", "symbol"]
    assert len(panel) == 21


def test_no_patch_is_in_two_parts_of_the_split(run: Path) -> None:
    split = read_json(run / "split.json")
    members = {
        part: {(s["store"], s["patient"], p) for s in split[part] for p in s["patches"]}
        for part in ("train", "validation", "test")
    }
    assert {patient for _, patient, _ in members["test"]} == {"P5"}
    assert len(members["test"]) == 9
    others = members["train"] | members["validation"]
    assert {patient for _, patient, _ in others} == {"P1", "P2"}
    assert not members["train"] & members["validation"]
    assert len(others) == 18


def test_history_has_a_line_an_epoch(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS[run.name] + 1))
    for line in lines:
        assert set(line["train"]["loss"]) == set(line["weights"]) == set(SCALES)
        assert set(line["validation"]["loss"]) == set(line["validation"]["pcc"]) == set(SCALES)
        assert sum(line["weights"].values()) == pytest.approx(4, abs=1e-4)
        assert all(w > 0 for w in line["weights"].values())
        assert line["patches_per_s"] > 0
    best = read_json(run / "best_metrics.json")
    assert best["epoch"] == max(line["epoch"] for line in lines if line["best"])
    scores = [line["validation"]["score"] for line in lines]
    assert best["score"] == min(scores) == scores[best["epoch"] - 1]


def test_metrics_are_all_there_and_in_range(metrics: dict[str, Any]) -> None:
    assert metrics["format"] == "virchow_st.metrics/1"
    assert metrics["test_patients"] == ["P5"]
    assert (metrics["n_patches"], metrics["n_genes"]) == (9, 20)
    assert set(metrics["baselines"]) == set(metrics["differences"]) == BASELINES
    assert metrics["oracles"] == ["total_umi"]
    assert metrics["bootstrap"] == {"block_um": 256, "n_blocks": 9, "draws": 1000}
    for scales in (metrics["scales"], *metrics["baselines"].values()):
        assert set(scales) == set(SCALES)
        for figures in scales.values():
            assert set(figures) == SCORES | INTERVALS
            assert 0 < figures["coverage"] <= 1
            assert 0 <= figures["pcc_ceiling"] <= 1
            for name in ("pcc", "d2_poisson"):
                low, high = figures[f"{name}_ci95"]
                assert low <= high
    for figures in metrics["scales"].values():
        assert all(figures[name] is not None and math.isfinite(figures[name]) for name in SCORES)
        assert -1 <= figures["pcc"] <= figures["pcc_ceiling"]
        assert figures["pcc_ci95"][0] < figures["pcc"] < figures["pcc_ci95"][1]
        assert figures["pcc_of_ceiling"] == pytest.approx(figures["pcc"] / figures["pcc_ceiling"])
    assert metrics["scales"]["2"]["coverage"] == 1.0  # 384 bins: every tissue bin is in a patch


def test_shuffled_null_is_near_zero(metrics: dict[str, Any]) -> None:
    for scale, figures in metrics["scales"].items():
        assert abs(figures["pcc_shuffled"]) < 0.1, scale
        assert abs(figures["pcc_shifted"]) < 0.15, scale


def test_decoder_beats_the_gene_mean(runs: dict[str, Path]) -> None:
    metrics = read_json(runs["linear"] / "metrics.json")
    for scale in SCALES:
        actual, mean = metrics["scales"][scale], metrics["baselines"]["gene_mean"][scale]
        assert actual["d2_poisson"] > (mean["d2_poisson"] or 0.0) + 0.01, scale
        assert actual["pcc"] > abs(actual["pcc_shuffled"]) + 0.05, scale
    assert metrics["scales"]["8"]["pcc"] > 0.15


def test_gene_mean_explains_nothing(metrics: dict[str, Any]) -> None:
    for figures in metrics["baselines"]["gene_mean"].values():
        assert figures["pcc"] == pytest.approx(0, abs=1e-6)
        assert figures["d2_poisson"] == pytest.approx(0, abs=1e-6)
        assert figures["auprc"] == pytest.approx(figures["auprc_prevalence"])


def test_baselines_that_look_at_the_slide_find_something(metrics: dict[str, Any]) -> None:
    for name in ("nuclear_density", "ridge", "total_umi"):
        for scale in SCALES:
            assert metrics["baselines"][name][scale]["pcc"] > 0.02, (name, scale)
    at_8 = {name: scales["8"]["pcc"] for name, scales in metrics["baselines"].items()}
    assert at_8["ridge"] > at_8["nuclear_density"]


def test_differences_are_those_of_the_figures(metrics: dict[str, Any]) -> None:
    for name, scales in metrics["differences"].items():
        for scale, figures in scales.items():
            for figure, actual in figures.items():
                ours = metrics["scales"][scale][figure]
                theirs = metrics["baselines"][name][scale][figure]
                assert actual["difference"] == pytest.approx(ours - theirs, abs=1e-9)
                assert actual["ci95"][0] <= actual["difference"] <= actual["ci95"][1]


def test_two_runs_side_by_side(vst, runs: dict[str, Path], tmp_path: Path) -> None:
    a, b = (_copy(runs[name], tmp_path / name) for name in ("linear", "hist2st"))
    answer = vst("evaluate", a, b, "--device", "cpu", "--json", tmp_path / "comparison.json")
    assert answer.code == 0, answer.err
    comparison = read_json(tmp_path / "comparison.json")
    assert comparison["runs"] == [str(a), str(b)]
    (pair,) = comparison["pairs"]
    for scale in SCALES:
        ours, theirs = (read_json(run / "metrics.json")["scales"][scale] for run in (a, b))
        for figure in ("pcc", "d2_poisson"):
            actual = pair["scales"][scale][figure]
            assert actual["difference"] == pytest.approx(ours[figure] - theirs[figure], abs=1e-9)
    # Four epochs beat one of a larger decoder, and the table says by how much.
    assert pair["scales"]["8"]["pcc"]["ci95"][0] > 0
    assert f"{pair['scales']['8']['pcc']['difference']:+.3f}" in answer.out
    assert "A = linear, B = hist2st" in answer.out
    assert "vst figures" in answer.out

    (b / "panel.tsv").write_text("".join((a / "panel.tsv").read_text().splitlines(True)[:-1]))
    refused = vst("evaluate", a, b, "--device", "cpu")
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1


def _copy(run: Path, to: Path) -> Path:
    """The trained part of a run, to be evaluated without touching what other tests read."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("figures", "maps"))
    return to


def test_per_gene_table_averages_to_the_metrics(run: Path, metrics: dict[str, Any]) -> None:
    rows = list(csv.DictReader((run / "per_gene.csv").read_text("utf-8").splitlines()))
    assert len(rows) == 20 * 4
    assert list(rows[0]) == ["gene_id", "symbol", "scale_um", *PER_GENE]
    panel = [line.split("\t")[0] for line in (run / "panel.tsv").read_text().splitlines()[1:]]
    assert list(dict.fromkeys(row["gene_id"] for row in rows)) == panel
    for scale in SCALES:
        of_scale = [row for row in rows if row["scale_um"] == scale]
        for name in set(PER_GENE) - {"mean", "nonzero", "calibration"}:
            mean = np.mean([float(row[name]) for row in of_scale])
            assert mean == pytest.approx(metrics["scales"][scale][name], rel=1e-4, abs=1e-6)


def test_maps_give_the_metrics_anew(run: Path, metrics: dict[str, Any]) -> None:
    """PCC and calibration from the maps file with NumPy alone."""
    with h5py.File(run / "maps" / "P5.h5") as f:
        rate, counts = f["rate"][:].astype(np.float64), f["counts"][:].astype(np.float64)
        mask = f["scored_mask"][:]
    for scale in SCALES:
        k = int(scale) // 2
        g, r, c = rate.shape

        def pooled(x: np.ndarray, k: int = k, g: int = g, r: int = r, c: int = c) -> np.ndarray:
            return x.reshape(g, r // k, k, c // k, k).sum(axis=(2, 4))

        whole = mask.reshape(r // k, k, c // k, k).all(axis=(1, 3))
        p, o = pooled(rate)[:, whole], pooled(counts)[:, whole]
        pcc = [np.corrcoef(a, b)[0, 1] for a, b in zip(p, o, strict=True)]
        figures = metrics["scales"][scale]
        assert np.mean(pcc) == pytest.approx(figures["pcc"], abs=1e-6)
        assert p.sum() / o.sum() == pytest.approx(figures["calibration"], rel=1e-6)
        assert whole.sum() * k * k / mask.sum() == pytest.approx(figures["coverage"])


def test_counts_are_conserved_at_every_scale(run: Path, stores: dict[str, Path]) -> None:
    store = virchow_st.open_store(stores["P5"])
    panel = [line.split("\t")[0] for line in (run / "panel.tsv").read_text().splitlines()[1:]]
    indices = [store.genes.ids.index(gene) for gene in panel]
    with h5py.File(run / "maps" / "P5.h5") as f:
        assert dict(f.attrs)["format"] == "virchow_st.maps/1"
        assert [s.decode() for s in f["gene_id"][:]] == panel
        row0, col0 = int(f.attrs["row0"]), int(f.attrs["col0"])
        counts, rate, mask = f["counts"][:], f["rate"][:], f["scored_mask"][:]
        image = f["image"][:]
        places = np.stack([f["patch_row0"][:], f["patch_col0"][:]], axis=1)
        assert f["patch_block"][:].tolist() == list(range(9))  # so few that each is one
    np.testing.assert_array_equal(places, [(patch.row0, patch.col0) for patch in store])
    assert image.shape == (2 * mask.shape[0], 2 * mask.shape[1], 3)
    assert mask.sum() == store.manifest["tissue_bins"]["patches"]
    np.testing.assert_array_equal(counts.sum(axis=(1, 2)), store.genes.totals[indices])
    assert (counts[:, ~mask] == 0).all()
    for patch in store:
        r, c = patch.row0 - row0, patch.col0 - col0
        window = np.s_[r : r + 128, c : c + 128]
        dense = patch.counts(indices).toarray().reshape(-1, 128, 128)
        np.testing.assert_array_equal(counts[(slice(None), *window)], dense)
        np.testing.assert_array_equal(mask[window], patch.tissue_mask)
        np.testing.assert_array_equal(image[2 * r : 2 * r + 256, 2 * c : 2 * c + 256], patch.image)
        fine = np.ascontiguousarray(dense, np.float32)
        for factor in (2, 4, 8):
            coarse = sum_pool(fine, factor)
            assert coarse.shape == (20, 128 // factor, 128 // factor)
            np.testing.assert_array_equal(coarse.sum(axis=(1, 2)), dense.sum(axis=(1, 2)))
            whole = pool_mask(patch.tissue_mask, factor)
            again = patch.tissue_mask.reshape(128 // factor, factor, 128 // factor, factor)
            np.testing.assert_array_equal(whole, again.all(axis=(1, 3)))
    assert np.isfinite(rate).all()
    assert (rate >= 0).all()


def test_the_overview_shows_every_slide_with_its_split(run: Path, stores: dict[str, Path]) -> None:
    split = read_json(run / "split.json")
    with h5py.File(run / "overview.h5") as f:
        assert dict(f.attrs) == {
            "format": "virchow_st.overview/1",
            "bin_um": 2,
            "block_um": 256,
        }
        assert [f[key].attrs["name"] for key in sorted(f)] == list(stores)
        for key, (patient, path) in zip(sorted(f), stores.items(), strict=True):
            group, store = f[key], virchow_st.open_store(path)
            parts = {
                patch: place
                for place, part in enumerate(("train", "validation", "test"))
                for slide in split[part]
                if slide["patient"] == patient
                for patch in slide["patches"]
            }
            assert group["patch_part"][:].tolist() == [parts[i] for i in range(len(store))]
            assert (group["patch_block"][:] >= 0).all() == (patient == "P5")
            tissue, valid, image = (
                group[name][:] for name in ("tissue_mask", "validity_mask", "image")
            )
            um, row0, col0 = (int(group.attrs[name]) for name in ("um_per_px", "row0", "col0"))
            assert um == 1  # a slide this small is kept as it is
            for i, patch in enumerate(store):
                info = patch.info
                assert group["patch_total_umi"][i] == info.total_umi
                assert (group["patch_row0"][i], group["patch_col0"][i]) == (info.row0, info.col0)
                r, c = info.row0 - row0, info.col0 - col0
                window = np.s_[r : r + 128, c : c + 128]
                np.testing.assert_array_equal(tissue[window], patch.tissue_mask)
                np.testing.assert_array_equal(valid[window], patch.validity_mask)
                part = image[2 * r : 2 * r + 256, 2 * c : 2 * c + 256]
                np.testing.assert_array_equal(part, patch.image)


RESULTS = ("metrics.json", "per_gene.csv", "history.jsonl", "blocks.npz", "overview.h5", "maps")


def test_figures_are_drawn_from_results_alone(
    vst, runs: dict[str, Path], tmp_path: Path, stores: dict[str, Path]
) -> None:
    for name, moved in ((name, tmp_path / name) for name in runs):
        moved.mkdir()
        for part in RESULTS:
            copy = shutil.copytree if part == "maps" else shutil.copy
            copy(runs[name] / part, moved / part)
    run = tmp_path / "linear"
    symbol = (runs["linear"] / "panel.tsv").read_text().splitlines()[1].split("\t")[1]
    unknown = vst("figures", run, "--genes", "NOGENE")
    assert unknown.code == 2
    assert "NOGENE" in unknown.err
    assert not (run / "figures").exists()
    answer = vst("figures", run, "--genes", symbol, "--against", tmp_path / "hist2st")
    assert answer.code == 0, answer.err
    names = [
        f"multiscale_P5_{symbol}", f"mosaic_P5_{symbol}", "patches_P5", "genes", "sparsity",
        "calibration", "training_curves", "overview_P1", "overview_P2", "overview_P5", "against",
    ]  # fmt: skip
    assert "11/11 pictures" in answer.err
    named = [Path(line) for line in answer.out.splitlines()]
    assert named == [run / "figures" / f"{n}.{kind}" for n in names for kind in ("png", "pdf")]
    numbers = run / "figures" / "visualization_metrics.json"
    assert sorted((run / "figures").iterdir()) == sorted([*named, numbers])
    assert list(read_json(numbers)["figures"]) == names
    for path in named:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width == 2160  # 7.2 inches
                assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        else:
            pdf = path.read_bytes()
            assert pdf.startswith(b"%PDF")
            assert b"/Subtype /Type0" in pdf  # TrueType, which an editor takes for text
            assert b"/Subtype /Type3" not in pdf


def test_python_face(run: Path, stores: dict[str, Path]) -> None:
    store = virchow_st.open_store(stores["P5"])
    assert len(store) == 9
    assert store.patient == "P5"
    patch = store[0]
    t, _, d = store.token_shape
    assert patch.tokens.shape == (t, t, d)
    assert patch.tokens.dtype == np.float16
    assert patch.cls.shape == (d,)
    assert patch.image.shape == (256, 256, 3)
    assert patch.image.dtype == np.uint8
    assert patch.tissue_mask.shape == (128, 128)
    assert patch.counts().shape == (120, 128 * 128)
    loaded = virchow_st.load_run(run, "cpu")
    assert len(loaded.panel) == 20
    one = loaded.predict(patch)
    assert one.shape == (20, 128, 128)
    assert one.dtype == np.float32
    assert (one >= 0).all()
    every = list(loaded.predict_store(store))
    assert len(every) == 9
    np.testing.assert_allclose(every[0], one, rtol=1e-4, atol=1e-6)
    with h5py.File(run / "maps" / "P5.h5") as f:
        row0, col0 = int(f.attrs["row0"]), int(f.attrs["col0"])
        for patch, rate in zip(store, every, strict=True):
            r, c = patch.row0 - row0, patch.col0 - col0
            mapped = f["rate"][:, r : r + 128, c : c + 128].astype(np.float32)
            np.testing.assert_allclose(mapped, rate, rtol=2e-3, atol=1e-6)
