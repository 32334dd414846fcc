"""``vst export``: what is written is what is in the run or store, and lies where it should."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from cli_place import Answer
from tiny_cohort import STAIN
from tiny_run import LICENCE, TILTED
from tiny_slide import TinySlide, draw_markers, write_image
from tiny_store import make_records, write_records, write_store

import virchow_st
from virchow_st.extract.slide import extract_slide
from virchow_st.field.bins import rounded
from virchow_st.slide.geometry import Homography

Vst = Callable[..., Answer]
SPATIAL = "pip install 'virchow_st[spatial]'"
needs_anndata = pytest.mark.skipif(find_spec("anndata") is None, reason=SPATIAL)


def refused(answer: Answer, *words: str) -> None:
    assert answer.code == 2, answer
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error")]
    for word in words:
        assert word in line, line


def run_alone(code: str, *arguments: object) -> None:
    """In a process of its own: spatialdata brings dask, pandas and a hundred warnings."""
    code = "import sys, warnings\nwarnings.simplefilter('ignore')\n" + code
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def pooled(values: np.ndarray, factor: int = 4) -> np.ndarray:
    g, rows, cols = values.shape
    shape = g, rows // factor, factor, cols // factor, factor
    return values.astype(float).reshape(shape).sum(axis=(2, 4))


# --- a run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from virchow_st_cli.main import run as vst

    out = tmp_path_factory.mktemp("of_run") / "T.zarr"
    assert vst(["export", str(tiny_run), "--out", str(out)]) == 0
    return out


def test_a_run_as_images(of_run: Path, tiny_run: Path) -> None:
    assert [p.name for p in of_run.parent.iterdir()] == ["T.zarr"]
    root = zarr.open_group(of_run, mode="r")
    names = {"he", "rates_2um", "rates_8um", "counts_2um", "counts_8um"}
    assert set(root["images"]) == names
    with h5py.File(tiny_run / "maps" / "T.h5") as f:
        rate, counts, mask, image = (
            f[name][:] for name in ("rate", "counts", "scored_mask", "image")
        )
    there = np.ones(mask.shape, bool)
    there[128:, 128:] = False  # the fourth place has no patch
    for name, expected in ("rates", rounded(rate.astype(np.float32))), ("counts", counts):
        actual = root[f"images/{name}_2um/s0"][:]
        np.testing.assert_array_equal(actual[:, there], expected[:, there])
        assert np.isnan(actual[:, ~there]).all()
        coarse = root[f"images/{name}_8um/s0"][:]
        np.testing.assert_allclose(coarse[:, :32], pooled(expected[:, :128]), rtol=1e-4)
        assert np.isnan(coarse[:, 32:, 32:]).all()
        half = root[f"images/{name}_2um/s1"][:, :64]
        np.testing.assert_allclose(half, pooled(expected[:, :128], 2) / 4, rtol=1e-4)
    np.testing.assert_array_equal(root["labels/tissue/s0"][:], mask)
    np.testing.assert_array_equal(np.moveaxis(root["images/he/s0"][:], 0, 2), image)


def test_a_run_says_where_it_came_from(of_run: Path, tiny_run: Path) -> None:
    about = zarr.open_group(of_run, mode="r").attrs["virchow_st"]
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert about["format"] == "virchow_st.export/1"
    assert about["run"]["path"] == tiny_run.name
    assert about["run"]["epoch"] == metrics["epoch"]
    assert (about["patient"], about["slide"]) == ("T", "T")
    assert about["encoder"] == {"name": "tiny", "weights": "0" * 16}
    assert about["licence"] == LICENCE
    assert about["homography"] == TILTED.matrix.tolist()
    panel = (tiny_run / "panel.tsv").read_text().splitlines()[1:]
    assert about["genes"]["id"] == [line.split("\t")[0] for line in panel]


def test_genes_in_the_order_asked_for(vst: Vst, tiny_run: Path, of_run: Path, tmp_path: Path):
    genes = zarr.open_group(of_run, mode="r").attrs["virchow_st"]["genes"]
    names = tmp_path / "genes.tsv"
    names.write_text(f"gene_id\tsymbol\n{genes['id'][3]}\tx\n{genes['symbol'][1]}\n")
    for given, out in (
        (f"{genes['id'][3]}, {genes['symbol'][1]}", "a.npz"), (str(names), "b.npz"),
    ):  # fmt: skip
        answer = vst("export", tiny_run, "--out", tmp_path / out, "--format", "npz", "--genes",
                     given)  # fmt: skip
        assert answer.code == 0, answer.err
        assert f"warning: tiny: {LICENCE}" in answer.err
        every = zarr.open_group(of_run, mode="r")
        with np.load(tmp_path / out) as actual:
            assert list(actual["gene_id"]) == [genes["id"][3], genes["id"][1]]
            for kind in ("rates_8um", "counts_8um"):
                expected = every[f"images/{kind}/s0"][:][[3, 1]]
                np.testing.assert_allclose(actual[kind], expected, rtol=2e-4)
            tissue = every["labels/tissue/s0"][:][None]
            np.testing.assert_array_equal(actual["tissue_bins"], pooled(tissue)[0])
            assert json.loads(str(actual["virchow_st"]))["options"]["format"] == "npz"


@needs_anndata
def test_scores_of_the_table_are_those_of_evaluation(
    vst: Vst, tiny_run: Path, tmp_path: Path
) -> None:
    """Rows are the bins that are scored at 8 µm, so anybody can check per_gene.csv."""
    out = tmp_path / "T.h5ad"
    answer = vst("export", tiny_run, "--out", out, "--format", "h5ad")
    assert answer.code == 0, answer.err
    with open(tiny_run / "per_gene.csv") as f:
        scores = {r["gene_id"]: float(r["pcc"]) for r in csv.DictReader(f) if r["scale_um"] == "8"}
    with h5py.File(out) as f:
        rates, counts = f["X"][:], f["layers/counts"][:]
        genes = f["var/gene_id"].asstr()[:]
        for g, gene in enumerate(genes):
            pcc = np.corrcoef(rates[:, g], counts[:, g])[0, 1]
            assert pcc == pytest.approx(scores[gene], abs=2e-5)
        row, col = f["obs/array_row"][:], f["obs/array_col"][:]
        xy = np.stack([col, row], axis=1) * 8 + 4
        np.testing.assert_array_equal(f["obsm/spatial"][:], xy)
        x, y = TILTED.to_px(4 * col + 1.5, 4 * row + 1.5)
        np.testing.assert_allclose(f["obsm/spatial_fullres_px"][:], np.stack([x, y], 1))
        hires = f["uns/spatial/T/images/hires"][:]
        assert hires.shape == (512, 512, 3)
        assert f["uns/spatial/T/scalefactors/tissue_hires_scalef"][()] == 1


# --- a store ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tiny_run: Path) -> virchow_st.Store:
    return virchow_st.open_store(tiny_run.parent / "T.vst")


def test_counts_of_a_store(vst: Vst, store: virchow_st.Store, tmp_path: Path) -> None:
    out = tmp_path / "T.npz"
    answer = vst("export", store.path, "--out", out, "--format", "npz", "--genes", "GENE2,GENE0")
    assert answer.code == 0, answer.err
    with np.load(out) as actual:
        assert list(actual["gene_symbol"]) == ["GENE2", "GENE0"]
        for patch in store:
            r, c = patch.row0 // 4, patch.col0 // 4
            expected = pooled(patch.dense_counts([2, 0]))
            np.testing.assert_array_equal(actual["counts_8um"][:, r : r + 32, c : c + 32], expected)


@needs_anndata
def test_every_gene_of_a_store(vst: Vst, store: virchow_st.Store, tmp_path: Path) -> None:
    out = tmp_path / "T.h5ad"
    answer = vst("export", store.path, "--out", out, "--format", "h5ad")
    assert answer.code == 0, answer.err
    assert "6 genes" in answer.out
    import anndata

    table = anndata.read_h5ad(out)
    np.testing.assert_array_equal(np.asarray(table.X.sum(axis=0)).ravel(), store.genes.totals)
    patch = store[1]
    at_8um = pooled(patch.dense_counts(range(6)))
    for name, r, c in ("s_008um_00005_00040-1", 5, 8), ("s_008um_00031_00063-1", 31, 31):
        np.testing.assert_array_equal(table[name].X.toarray()[0], at_8um[:, r, c])
    n_tissue = sum(int(p.tissue_mask.sum()) for p in store)
    assert table.obs["tissue_bins"].sum() == n_tissue
    assert table.obs["tissue_bins"].min() >= 1


@needs_anndata
def test_a_lattice_off_the_8_um_bins_has_names_of_its_own(vst: Vst, tmp_path: Path) -> None:
    (record,) = make_records(1)
    moved = replace(record, info=replace(record.info, row0=5, col0=3))
    store = write_records(tmp_path / "a.vst", [moved], 6)
    out = tmp_path / "a.h5ad"
    answer = vst("export", store.path, "--out", out, "--format", "h5ad")
    assert answer.code == 0, answer.err
    with h5py.File(out) as f:
        names, xy = f["obs/_index"].asstr()[:], f["obsm/spatial"][:]
    assert not any(name.startswith("s_008um") for name in names)
    row2, col2 = (int(part) for part in names[-1].split("_")[1:])
    np.testing.assert_array_equal(xy[-1], (2 * col2 + 4, 2 * row2 + 4))
    assert (row2 - 5) % 4 == (col2 - 3) % 4 == 0


# --- where things lie ---------------------------------------------------------------------------

MARKER = 150, 60  # row, column


@pytest.fixture(scope="module", params=["turn 1 mirror perspective", "turn 2", "mirror"])
def marked(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    markers_for_tissue: None,
) -> tuple[Path, Homography, np.ndarray]:
    """Store of a slide that lies askew, whose only counts and only dark spot are at one bin."""
    folder = tmp_path_factory.mktemp("marked")
    slide = TinySlide(rows=264, cols=256, kind=request.param, n_genes=8)
    slide.tissue[:] = True
    slide.counts[:] = 0
    slide.counts[2][MARKER] = 7
    outs = slide.write(folder / "outs")
    image = draw_markers(slide.homography, slide.image_size, [MARKER], side=6)
    path = write_image(folder / "slide.tif", image, "tiles")
    store = extract_slide(outs, path, folder / "slide.vst", "P9", STAIN)
    return store.path, slide.homography, image


def transformations(group: zarr.Group) -> dict[str, np.ndarray]:
    """(2, 3) on ``(x, y, 1)`` of an image's pixels, by the coordinate system it leads to."""
    found = {}
    for step in group.attrs["ome"]["multiscales"][0]["coordinateTransformations"]:
        if step["type"] == "scale":
            y, x = step["scale"][-2:]
            affine = np.array([[x, 0, 0], [0, y, 0]])
        else:
            rows = np.array(step["affine"])[-2:][::-1]
            affine = rows[:, [-2, -3, -1]]
        found[step["output"]["name"]] = affine
    return found


def test_a_marker_lies_at_its_bin_and_on_the_original_image(
    vst: Vst, marked: tuple[Path, Homography, np.ndarray], tmp_path: Path
) -> None:
    store, homography, image = marked
    out = tmp_path / "a.zarr"
    gene = virchow_st.open_store(store).genes.ids[2]
    arguments = ["--format", "ome-zarr"] if find_spec("anndata") is None else []
    answer = vst("export", store, "--out", out, "--genes", gene, *arguments)
    assert answer.code == 0, answer.err
    if arguments:
        pytest.skip(SPATIAL)
    root = zarr.open_group(out, mode="r")
    row, col = MARKER
    counts = root["images/counts_2um/s0"][0]
    assert np.nansum(counts) == counts[row, col] == 7
    assert root["images/counts_8um/s0"][0][row // 4, col // 4] == 7
    darkness = 255 - root["images/he/s0"][:].mean(axis=0)
    darkness = np.where(darkness > 100, darkness, 0)
    y, x = (
        float((darkness.sum(axis=1 - a) * (np.arange(n) + 0.5)).sum() / darkness.sum())
        for a, n in enumerate(darkness.shape)
    )
    frames = transformations(root["images/he"])
    np.testing.assert_allclose(frames["global"] @ (x, y, 1), (2 * col + 1, 2 * row + 1), atol=0.5)
    seen = image.mean(axis=2) < 150
    spot = [float(np.flatnonzero(seen.any(axis)).mean()) + 0.5 for axis in (0, 1)]
    error = root.attrs["virchow_st"]["fullres_px"]["largest_error"]
    assert error < 1
    np.testing.assert_allclose(frames["fullres_px"] @ (x, y, 1), spot, atol=1.5)
    # The bin's own place by way of its pixel in the counts, and by the homography.
    of_counts = transformations(root["images/counts_2um"])["fullres_px"] @ (col + 0.5, row + 0.5, 1)
    np.testing.assert_allclose(of_counts, homography.to_px(col, row), atol=error + 1e-6)


def test_ome_zarr_says_where_its_corner_lies(vst: Vst, tmp_path: Path) -> None:
    records_store = write_store(tmp_path / "a.vst", n_patches=1)
    out = tmp_path / "a.zarr"
    answer = vst(
        "export", records_store.path, "--out", out, "--format", "ome-zarr", "--genes", "GENE1"
    )
    assert answer.code == 0, answer.err
    root = zarr.open_group(out, mode="r")
    assert set(root["images"]) == {"he", "counts_2um", "counts_8um"}
    (scales,) = root["images/counts_8um"].attrs["ome"]["multiscales"]
    assert scales["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 8.0, 8.0]}
    ]
    assert root["OME"].attrs["ome"]["series"] == [
        "images/he", "images/counts_2um", "images/counts_8um"
    ]  # fmt: skip


# --- other programs -----------------------------------------------------------------------------


@pytest.mark.parametrize("marked", ["turn 1 mirror perspective"], indirect=True)
def test_spatialdata_opens_it(
    vst: Vst, of_run: Path, marked: tuple[Path, Homography, np.ndarray], tmp_path: Path
) -> None:
    pytest.importorskip("spatialdata", reason=SPATIAL)
    out = tmp_path / "a.zarr"
    assert vst("export", marked[0], "--out", out).code == 0
    x, y = marked[1].to_px(MARKER[1], MARKER[0])
    run_alone(
        """
import numpy as np, spatialdata
from spatialdata.transformations import get_transformation
run, store = (spatialdata.read_zarr(path) for path in sys.argv[1:3])
assert set(run.images) == {"he", "rates_2um", "rates_8um", "counts_2um", "counts_8um"}, run
assert set(run.labels) == {"tissue"} and not run.tables
assert set(run.coordinate_systems) == {"fullres_px", "global"}
assert run.attrs["virchow_st"]["source"] == "run"
assert run["rates_8um"].dims == ("c", "y", "x")
assert set(store.images) == {"he"} and set(store.labels) == {"tissue", "bins_8um"}
table = store["table"]
assert table.shape[1] == 7, table
joined, matched = spatialdata.join_spatialelement_table(
    store, spatial_element_names="bins_8um", table_name="table", how="left"
)
assert len(matched) == len(table)
row = int(np.flatnonzero(np.asarray(table.X.sum(axis=1)).ravel())[0])
assert table.X[row].sum() == 7
labels = store["bins_8um"]
at = np.argwhere(labels.values == table.obs["instance_id"].iloc[row])[0]
to_px = get_transformation(labels, "fullres_px").to_affine_matrix(("x", "y"), ("x", "y"))
came = to_px @ (at[1] + 0.5, at[0] + 0.5, 1)
want = np.array(sys.argv[3:], float)
assert np.hypot(*(came[:2] - want)) < 4 * 6, (came, want)  # in that bin of four 6 px bins a side
""",
        of_run, out, float(x), float(y),
    )  # fmt: skip


# --- refusals -----------------------------------------------------------------------------------


def test_refusals_leave_nothing(
    vst: Vst, tiny_run: Path, store: virchow_st.Store, tmp_path: Path
) -> None:
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    outputs.mkdir()
    out = outputs / "a"
    refused(vst("export", tmp_path / "none", "--out", out), "none", "a store, or a run")
    refused(vst("export", inputs, "--out", out), "neither")
    (inputs / "fold-A").mkdir()
    (inputs / "fold-B").mkdir()
    (inputs / "config.toml").touch()
    refused(vst("export", inputs, "--out", out), "fold-A, fold-B", "give one")
    refused(vst("export", tiny_run, "--out", out, "--genes", "GENEX"), "GENEX", "did you mean")
    refused(vst("export", tiny_run, "--out", out, "--genes", " , "), "genes: expected")
    many = ",".join(f"NONE{i}" for i in range(1000))  # longer than any path may be
    refused(vst("export", tiny_run, "--out", out, "--genes", many), "'NONE0'")
    refused(vst("export", tiny_run, "--out", out, "--slide", "T-2"), "one of T of", "T-2")
    refused(vst("export", store.path, "--out", out, "--slide", "T"), "--slide")
    for name in ("npz", "ome-zarr"):
        refused(vst("export", store.path, "--out", out, "--format", name), name, "--genes")
    refused(vst("export", store.path, "--out", out, "--format", "csv"), "csv")
    if find_spec("anndata") is None:
        refused(vst("export", store.path, "--out", out), SPATIAL)
    (inputs / "job.json").write_text("{}")
    refused(vst("export", inputs, "--out", out), "unfinished")
    assert not list(outputs.iterdir())
    out.write_text("mine")
    refused(vst("export", tiny_run, "--out", out), str(out), "already there")
    assert out.read_text() == "mine"


def test_a_run_that_is_not_evaluated_or_damaged(vst: Vst, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    maps = run / "maps" / "T.h5"
    with h5py.File(maps, "a") as f:
        del f.attrs["store"]
    out = tmp_path / "out"
    refused(vst("export", run, "--out", out), "T.h5", "older version", "vst evaluate")
    maps.write_bytes(maps.read_bytes()[:1000])
    refused(vst("export", run, "--out", out), "T.h5", "HDF5", "vst evaluate")
    maps.unlink()
    refused(vst("export", run, "--out", out), f"vst evaluate {run}")
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_of_several_slides_one_is_named(vst: Vst, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for name in ("T-1", "T-2"):
        shutil.copy(run / "maps" / "T.h5", run / "maps" / f"{name}.h5")
    (run / "maps" / "T.h5").unlink()
    out = tmp_path / "out.npz"
    refused(vst("export", run, "--out", out, "--format", "npz"), "one of T-1, T-2", "got none")
    answer = vst("export", run, "--out", out, "--format", "npz", "--slide", "T-2")
    assert answer.code == 0, answer.err


def test_stopped_on_the_way_leaves_nothing(
    vst: Vst, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / ".a.zarr.part").mkdir()  # of one that was killed
    monkeypatch.setattr("virchow_st.output.export.write.BinImages.write", stop)
    answer = vst("export", tiny_run, "--out", tmp_path / "a.zarr")
    assert answer.code == 130
    assert "nothing was kept" in answer.err
    assert not list(tmp_path.iterdir())
