"""``vst predict`` of a run with factors: a field of every gene."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from cli_place import Vst

import virchow_st
from virchow_st.config import PredictConfig
from virchow_st.field.loadings import Loadings
from virchow_st.field.ngff import Folder
from virchow_st.field.read import open_field
from virchow_st.predict.factors import maps_of
from virchow_st.predict.rates import RateImages
from virchow_st.predict.slide import predict_slide
from virchow_st.run.panel import Panel

MPP = 0.5
SIDE = 1100  # px; 275 bins, which is no multiple of 8


@pytest.fixture(scope="module")
def runs(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of two factors that differ by their seed, and one without factors."""
    from virchow_st_cli.main import run as vst

    folder = tmp_path_factory.mktemp("runs")
    made = [folder / name for name in ("a", "b", "direct")]
    for seed, path in enumerate(made):
        genes = ["--panel", "top:3"] if path.name == "direct" else ["--panel", "all:top:3",
                                                                    "--factors", 2]  # fmt: skip
        arguments = [
            "train", *stores.values(), "--run", path, "--test-patient", "P5", *genes,
            "--decoder", "linear", "--optimizer", "adamw", "--epochs", 1, "--lr", "5e-4",
            "--batch-size", 4, "--accumulate", 1, "--device", "cpu", "--seed", seed,
        ]  # fmt: skip
        assert vst([str(a) for a in arguments]) == 0
    return made


@pytest.fixture(scope="module")
def pixels(simulated: Path) -> np.ndarray:
    whole = tifffile.imread(simulated / "P5" / "tissue_image.tif")
    middle = [n // 2 for n in whole.shape[:2]]
    cut = whole[middle[0] - 350 : middle[0] + 350, middle[1] - 350 : middle[1] + 350]
    return cv2.resize(np.ascontiguousarray(cut), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def image(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "slide.png"
    cv2.imwrite(str(path), pixels[..., ::-1])
    return path


def predict(runs: list[Path], image: Path, out: Path, **options: object) -> Path:
    config = PredictConfig(mpp=MPP, device="cpu", **options)  # type: ignore[arg-type]
    predict_slide(runs, image, out, config)
    return out


@pytest.fixture(scope="module")
def predicted(runs: list[Path], image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predict(runs[:1], image, tmp_path_factory.mktemp("one") / "a.zarr")


def test_every_gene_is_in_the_field(runs: list[Path], pixels: np.ndarray, predicted: Path) -> None:
    """Against the rates of the panel in memory, and the loadings of the run."""
    run = virchow_st.load_run(runs[0], "cpu")
    field = virchow_st.open_field(predicted)
    assert not field.is_direct
    assert field.genes == run.genes.all.ids
    assert len(field.genes) > len(run.panel)
    assert run.loadings is not None
    np.testing.assert_array_equal(field.loadings, run.loadings)
    in_memory = run.predict_image(pixels, mpp=MPP, min_tissue=0.5)
    rows, cols = in_memory.rates.shape[1:]
    actual = field.window(0, 0, rows, cols, list(run.panel.ids))
    np.testing.assert_allclose(actual, in_memory.rates, rtol=1e-3)  # NaN at NaN
    assert field.covered.any()
    assert [one["path"] for one in field.provenance["runs"]] == ["a"]


def test_several_runs_give_the_mean(runs: list[Path], image: Path, tmp_path: Path) -> None:
    both = open_field(predict(runs[:2], image, tmp_path / "both.zarr"))
    one, other = (open_field(predict([r], image, tmp_path / f"{r.name}.zarr")) for r in runs[:2])
    assert both.genes == one.genes == other.genes
    assert len(both.factor_names) == 4
    for gene in (both.genes[0], both.genes[-1]):
        expected = (one.gene(gene) + other.gene(gene)) / 2
        np.testing.assert_allclose(both.gene(gene), expected, rtol=2e-3)


def run_of(ids: tuple[str, ...], n_factors: int) -> Any:
    """Loadings that tell gene and factor."""
    genes = Panel(ids, tuple(f"S{gene}" for gene in ids))
    values = np.array([[10 * int(gene) + k for k in range(n_factors)] for gene in ids], np.float32)
    return SimpleNamespace(
        path=Path("run"), state={}, wants_image=False, loadings=values,
        genes=SimpleNamespace(all=genes),
    )  # fmt: skip


def test_several_runs_share_the_genes_of_all() -> None:
    runs = [run_of(("1", "2", "3", "4"), 1), run_of(("4", "9", "2"), 2)]
    given, loadings = maps_of(runs)
    assert loadings.genes.ids == ("2", "4")
    assert loadings.values is not None
    np.testing.assert_array_equal(loadings.values, np.array([[20, 20, 21], [40, 40, 41]]) / 2)
    assert [run.n_genes for run in given] == [1, 2]


def test_runs_of_two_kinds_are_refused(
    vst: Vst, runs: list[Path], image: Path, tmp_path: Path
) -> None:
    answer = vst(
        "predict", runs[0], image, "--out", tmp_path / "a", "--mpp", MPP, "--also", runs[2]
    )
    assert answer.code == 2
    assert "expected a run that predicts factors" in answer.err
    assert "got one that predicts genes directly" in answer.err
    assert not list(tmp_path.iterdir())


def test_a_file_holds_the_panel(runs: list[Path], image: Path, predicted: Path, tmp_path: Path):
    out = predict(runs[:1], image, tmp_path / "a.npz", format="npz")
    field = virchow_st.open_field(predicted)
    panel = virchow_st.load_run(runs[0], "cpu").panel
    with np.load(out) as found:
        assert tuple(found["gene_id"]) == panel.ids
        for gene, rates in zip(panel.ids, found["rates_8um"], strict=True):
            np.testing.assert_allclose(rates, field.gene(gene, 8), rtol=2e-3)
        np.testing.assert_array_equal(found["tissue"], field.tissue_mask[::4, ::4])
    if find_spec("anndata") is not None:
        assert predict(runs[:1], image, tmp_path / "a.h5ad", format="h5ad").stat().st_size
    assert {p.name for p in tmp_path.iterdir()} <= {"a.npz", "a.h5ad", "a_tissue.png"}


def test_a_bin_that_one_run_left_out_has_no_mean(tmp_path: Path) -> None:
    loadings = Loadings(Panel(("E1", "E2", "E3"), ("A", "B", "C")), np.ones((3, 4), np.float32))
    folder = Folder(tmp_path / "a.zarr", "spatialdata", {})
    images = RateImages(folder, loadings, 2, (16, 16))
    maps = np.ones((4, 16, 16), np.float32)
    maps[:2, 3, 5] = np.nan
    images.write(0, 0, maps, np.ones((16, 16), bool))
    folder.add_labels("tissue", (16, 16), 2)
    images.finish({})
    field = virchow_st.open_field(tmp_path / "a.zarr")
    assert np.argwhere(~field.covered).tolist() == [[3, 5]]
    assert np.isnan(field.gene("A")).sum() == 1
