"""``vst export``: bins lie where they should, in micrometres and on the original image."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import zarr
from cli_place import Vst
from exported import SPATIAL, run_alone
from tiny_cohort import STAIN
from tiny_slide import TinySlide, draw_markers, write_image
from tiny_store import write_store

import virchow_st
from virchow_st.extract.slide import extract_slide
from virchow_st.slide.geometry import Homography

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
