"""Observed UMIs of cells against what other programs make of the same slide and outlines.

``tests/golden/sopa_cells.json`` holds what sopa gave; where sopa is installed it is asked again.
``VST_WRITE_GOLDEN=1`` writes the file anew. Space Ranger's matrix is laid out as by Space Ranger 4
and filled by a loop over its table of bins.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import shapely
from cell_files import make_lattice, star_cells, to_px, write_geojson, write_mappings
from scipy.sparse import csc_matrix
from sopa_cells import bin_squares, sopa_counts

import virchow_st as vst
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells
from virchow_st.slide.geometry import Homography

GOLDEN = Path(__file__).parents[1] / "golden" / "sopa_cells.json"
GENES = 3


def slide_with_cells() -> tuple[Lattice, np.ndarray, np.ndarray]:
    """A mirrored and tilted lattice, (R, C, G) counts, and outlines of which none overlap."""
    lattice = make_lattice("mirrored", (60, 72))
    counts = np.random.default_rng(5).poisson(0.4, (*lattice.shape, GENES))
    kept: list[shapely.Polygon] = []
    for shape in star_cells(lattice, n=80, seed=3):
        if not any(shape.intersects(other) for other in kept):
            kept.append(shape)
    assert len(kept) > 25
    return lattice, counts, np.array(kept, dtype=object)


def test_counts_are_those_of_sopa(tmp_path: Path) -> None:
    lattice, counts, shapes = slide_with_cells()
    by_bin = counts.reshape(-1, GENES)
    cells = read_cells(write_geojson(tmp_path / "c.geojson", to_px(lattice, shapes)), lattice)
    ours = np.zeros((len(shapes), GENES), int)
    ours[[int(name[1:]) for name in cells.ids]] = np.rint(cells.matrix() @ by_bin)
    if find_spec("sopa"):
        bins = to_px(lattice, bin_squares(*lattice.shape))
        theirs = sopa_counts(bins, by_bin, to_px(lattice, shapes))
        np.testing.assert_array_equal(ours, theirs)
        if os.environ.get("VST_WRITE_GOLDEN"):
            content = {"sopa": version("sopa"), "counts": theirs.astype(int).tolist()}
            GOLDEN.write_text(json.dumps(content) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert golden["sopa"]
    np.testing.assert_array_equal(ours, golden["counts"])
    assert ours.sum() > 300


def space_rangers_matrix(outs: Path, mappings: Path, path: Path) -> None:
    """``filtered_feature_cell_matrix.h5`` of the bins' matrix and ``barcode_mappings.parquet``."""
    table = pq.read_table(mappings).to_pydict()
    cell_of = dict(zip(table["square_002um"], table["cell_id"], strict=True))
    names = sorted({f"cellid_{int(cell):09d}-1" for cell in cell_of.values() if cell})
    place = {name: i for i, name in enumerate(names)}
    with h5py.File(outs / "binned_outputs/square_002um/filtered_feature_bc_matrix.h5") as f:
        data, indices, indptr = (f[f"matrix/{name}"][:] for name in ("data", "indices", "indptr"))
        barcodes = f["matrix/barcodes"].asstr()[:]
        features = {name: f[f"matrix/features/{name}"][:] for name in ("id", "name")}
    sums = np.zeros((len(names), len(features["id"])), np.int64)
    for i, barcode in enumerate(barcodes):
        if cell := cell_of.get(barcode):
            of = slice(indptr[i], indptr[i + 1])
            np.add.at(sums[place[f"cellid_{int(cell):09d}-1"]], indices[of], data[of])
    row, gene = np.nonzero(sums)
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as f:
        matrix = f.create_group("matrix")
        matrix["barcodes"] = np.array(names, "S")
        matrix["data"], matrix["indices"] = sums[row, gene].astype(np.int32), gene
        matrix["indptr"] = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(names)))])
        matrix["shape"] = np.array(sums.shape[::-1], np.int32)
        for name, values in features.items():
            matrix[f"features/{name}"] = values


def test_counts_are_those_of_space_rangers_cell_matrix(
    simulated: Path, stores: dict[str, Path], tmp_path: Path
) -> None:
    store = vst.open_store(stores["P1"])
    homography = Homography(np.array(store.manifest["homography"]))
    shape = 384, 384
    lattice = Lattice("P1", homography, 0, 0, np.ones(shape, bool))
    labels = np.arange(1, 48 * 48 + 1).reshape(48, 48).repeat(8, 0).repeat(8, 1)
    labels[:, 5::8] = 0
    mappings = write_mappings(tmp_path / "outs" / "barcode_mappings.parquet", labels, lattice)
    theirs = tmp_path / "outs" / "segmented_outputs" / "filtered_feature_cell_matrix.h5"
    space_rangers_matrix(simulated / "P1" / "outs", mappings, theirs)
    ours = vst.cell_table(stores["P1"], mappings.parent)
    with h5py.File(theirs) as f:
        m = f["matrix"]
        matrix = csc_matrix((m["data"][:], m["indices"][:], m["indptr"][:]), m["shape"][:])
        names = m["barcodes"].asstr()[:].tolist()
        genes = m["features/id"].asstr()[:].tolist()
    whole = ours[ours.obs["covered"] == 1]
    expected = matrix.T.tocsr()[[names.index(name) for name in whole.obs_names]]
    expected = expected[:, [genes.index(gene) for gene in whole.var["gene_id"]]].toarray()
    assert whole.n_obs > 500
    assert expected.sum() > 10_000
    np.testing.assert_array_equal(whole.X.toarray(), expected)
