"""Scores within regions, against masks from shapely and accumulators of one class each."""

import csv
import json

import numpy as np
import pytest
import shapely
import tifffile
from cell_files import write_geojson
from tiny_training import few_steps, tiny_config, two_patients

from virchow_st.errors import ConfigError, SlideError
from virchow_st.evaluation import regions as scored_regions
from virchow_st.evaluation.blocks import cut_blocks
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.metrics import ScaleAccumulator
from virchow_st.predict.load import load_run
from virchow_st.run.compare import intervals
from virchow_st.run.regions import REGIONS_FILE
from virchow_st.run.results import read_metrics
from virchow_st.run.score_table import region_caption, region_rows
from virchow_st.runtime.progress import Recording
from virchow_st.store.reader import open_store
from virchow_st.training.train import train

# In bins, which are the pixels of these stores: the test patient has patches at columns 0, 128, …
TUMOUR, WITHIN, FAR = (
    shapely.box(10.2, 12.4, 200.7, 110.1),
    shapely.Polygon([(60.3, 40.1), (150.2, 35.7), (120.4, 90.6), (70.1, 80.2)]),
    shapely.box(300.3, 20.2, 400.1, 90.9),
)
SHAPES = [TUMOUR, WITHIN, FAR, shapely.box(420.5, 5.5, 440.5, 25.5)]
CLASSES = ["Tumor", "=Stroma", "Tumor", None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions")
    config = tiny_config(two_patients(folder), panel="top:3", epochs=2)
    with few_steps(3):
        train(folder / "run", config)
    return folder / "run"


def draw(path, shapes=SHAPES, classes=CLASSES):
    return write_geojson(
        path,
        np.array(shapes, dtype=object),
        objectType="annotation",
        classification=lambda i: classes[i] and {"name": classes[i], "color": [1, 2, 3]},
    )


def inside(info):
    """The class of every bin of a patch by its centre: the smallest polygon that holds it."""
    row, col = np.mgrid[info.row0 : info.row0 + 128, info.col0 : info.col0 + 128]
    found = np.full((128, 128), "elsewhere", dtype=object)
    order = sorted(range(len(SHAPES)), key=lambda i: -SHAPES[i].area)
    for i in order:
        found[shapely.contains_xy(SHAPES[i], col, row)] = CLASSES[i] or "elsewhere"
    return found


def test_classes_are_scored_as_tissue_of_their_own(run, tmp_path):
    progress = Recording()
    evaluate_run(run, "cpu", progress, regions=draw(tmp_path / "regions.geojson"))
    assert any("1 region without a class; taken for elsewhere" in w for w in progress.warnings)
    loaded = load_run(run, "cpu")
    store = open_store(loaded.config.stores[1])
    patches = [store[member.patch] for member in loaded.split.test]
    blocks = cut_blocks([[patch.info for patch in patches]])
    metrics = read_metrics(run)
    found = metrics["regions"]
    assert list(found["classes"]) == ["Tumor", "=Stroma", "elsewhere"]
    assert found["regions_without_class"] == 1
    assert found["regions_without_bins"] == 0
    with open(run / REGIONS_FILE, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 12
    n_bins_of_slide = 0
    for name, of_class in found["classes"].items():
        masks = [patch.tissue_mask & (inside(patch.info) == name) for patch in patches]
        assert of_class["tissue_bins"] == sum(int(mask.sum()) for mask in masks)
        assert of_class["n_regions"] == CLASSES.count(name)
        n_bins_of_slide += of_class["tissue_bins"]
        for scale in (2, 4, 8, 16):
            expected = ScaleAccumulator(3, scale, loaded.train_rate, blocks.n_blocks)
            for patch, mask, block in zip(patches, masks, blocks.of_patch[0], strict=True):
                counts = patch.dense_counts(loaded.panel.indices(store))
                expected.update(loaded.predict(patch), counts, mask, block=int(block))
            scores = of_class["scales"][str(scale)]
            plain = expected.compute().summary() | intervals(expected.block_sums())
            assert scores["n_bins"] == expected.compute().n_bins
            assert scores["coverage"] == pytest.approx(
                scores["n_bins"] * (scale // 2) ** 2 / of_class["tissue_bins"]
            )
            for score in ("pcc", "pcc_ceiling", "pcc_of_ceiling", "ssim", "d2_poisson",
                          "d2_poisson_test_mean", "calibration", "auprc"):  # fmt: skip
                assert (scores[score] is None) == (plain[score] is None), score
                if plain[score] is not None:
                    assert scores[score] == pytest.approx(plain[score], rel=1e-3, abs=1e-5), score
            for score in ("pcc_ci95", "d2_poisson_ci95"):
                if plain[score] is None:
                    assert scores[score] is None
                else:
                    np.testing.assert_allclose(scores[score], plain[score], rtol=1e-3, atol=1e-4)
            assert scores["pcc"] not in (None, scores["pcc_shuffled"])
            (row,) = (
                row
                for row in rows
                if row["region"].lstrip("'") == name and row["scale_um"] == str(scale)
            )
            assert float(row["pcc"] or "nan") == pytest.approx(scores["pcc"], rel=1e-5)
            assert int(row["n_genes_scored"]) == scores["n_genes_scored"] > 0
    assert n_bins_of_slide == metrics["scales"]["2"]["n_bins"]
    assert rows[4]["region"] == "'=Stroma"  # no formula of a spreadsheet

    evaluate_run(run, "cpu")  # without regions: no scores of another evaluation stay
    assert not (run / REGIONS_FILE).exists()
    assert "regions" not in read_metrics(run)


def test_regions_of_a_label_image_are_its_numbers(run, tmp_path):
    labels = np.zeros((128, 512), np.uint8)
    labels[:100, 20:220] = 3
    labels[:, 300:302] = 7  # two bins wide: no bin of 16 µm, and here none of 8 µm either
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    metrics = evaluate_run(run, "cpu", regions=tmp_path / "labels.tif")
    classes = read_metrics(run)["regions"]["classes"]
    assert list(classes) == ["elsewhere", "3", "7"] or list(classes) == ["3", "7", "elsewhere"]
    store = open_store(load_run(run, "cpu").config.stores[1])
    for number in (3, 7):
        n = sum(
            int((patch.tissue_mask & (labels[:, patch.info.col0 :][:, :128] == number)).sum())
            for patch in store
        )
        assert classes[str(number)]["tissue_bins"] == n > 0
    assert all(len(line) <= 90 for line in region_caption(metrics).split("\n"))
    heads = [row.label for row in region_rows(metrics) if row.kind == "head"]
    assert [head.split(":")[0] for head in heads] == list(classes)
    thin = classes["7"]["scales"]["16"]
    assert (thin["n_bins"], thin["coverage"], thin["pcc"], thin["pcc_ci95"]) == (0, 0.0, None, None)


@pytest.mark.parametrize(
    ("shapes", "classes", "error", "message"),
    [
        (SHAPES[:2], [None, None], ConfigError, "expected regions with classes; none of 2 has one"),
        (SHAPES[:1], ["elsewhere"], ConfigError, "expected regions with classes; none of 1"),
        (SHAPES[:1], ["a\x1b[31m"], ConfigError, "class: expected a name without control"),
        ([shapely.box(900, 900, 950, 950)], ["Tumor"], SlideError,
         r"expected regions on the tissue of P5; 1 of 1 lie off it; give the regions of this"),
        ([], [], SlideError, "expected polygons; found nothing"),
        ([shapely.box(2 * i, 50, 2 * i + 2, 60) for i in range(40, 80)], list(map(str, range(40))),
         ConfigError, "expected at most 30 classes of regions; found 40; give regions, not cells"),
    ],
)  # fmt: skip
def test_what_are_no_regions_of_the_slide_is_refused(
    run, tmp_path, shapes, classes, error, message
):
    path = draw(tmp_path / "regions.geojson", shapes, classes)
    before = sorted(p.name for p in run.iterdir())
    with pytest.raises(error, match=rf"regions.geojson: .*{message}") as refused:
        evaluate_run(run, "cpu", regions=path)
    assert "\n" not in str(refused.value)
    assert sorted(p.name for p in run.iterdir()) == before


def test_regions_of_other_patches_of_the_slide_are_refused(run, tmp_path, monkeypatch):
    """As where blocks of a slide are tested: the regions lie on tissue, not on test patches."""
    lattice = scored_regions._lattice

    def further(slide):
        found = lattice(slide)
        wide = np.pad(found.tissue, ((0, 0), (0, 256)), constant_values=True)
        return type(found)(found.name, found.homography, found.row0, found.col0, wide)

    monkeypatch.setattr(scored_regions, "_lattice", further)
    path = draw(tmp_path / "regions.geojson", [shapely.box(600, 20, 700, 90)], ["Tumor"])
    with pytest.raises(
        ConfigError, match="expected regions on tissue of the test patches; 'Tumor'"
    ):
        evaluate_run(run, "cpu", regions=path)


def test_a_region_off_the_patches_is_told(run, tmp_path):
    progress = Recording()
    shapes = [*SHAPES[:3], shapely.box(-90, 5, -50, 40)]
    classes = [*CLASSES[:3], "Necrosis"]
    evaluate_run(run, "cpu", progress, regions=draw(tmp_path / "r.geojson", shapes, classes))
    assert any("1 region left out, off the slide's patches" in w for w in progress.warnings)
    assert "Necrosis" not in read_metrics(run)["regions"]["classes"]


def test_a_file_cut_off_is_refused(run, tmp_path):
    path = tmp_path / "regions.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": []})[:-4])
    with pytest.raises(SlideError, match="the file is cut off"):
        evaluate_run(run, "cpu", regions=path)
