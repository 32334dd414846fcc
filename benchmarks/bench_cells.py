"""Cells on the lattice, and sums of factors over them, against shapely, NumPy and SciPy.

Outlines are stars of 32 vertices and about 20 bins, side by side as in tissue. Compared are

- which bins lie in which outline: `virchow_st.kernels.outlines.paint_centres` against
  ``shapely.contains_xy`` of the bins in each outline's box, as most programs do it;
- the area that each outline covers of each bin: `covered_shares` against
  ``shapely.intersection`` with the bins' squares, of a sample of the outlines;
- sums of 32 factor maps over the cells: `virchow_st.output.cells.sums.map_sums` against
  ``numpy.bincount`` for each factor over the whole slide, and against a SciPy sparse product.

Both sides must agree. Time is processor time on one core.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/bench_cells.py [--cells 100000]
        [--rounds 3] [--json FILE]

With ``--whole`` it measures another thing: the steps from outlines to a table of 18,000 genes by 32
factors, in the order of ``vst cells``, with the process's peak memory after each.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/bench_cells.py --whole --cells 1000000
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from report import Table, publish

from virchow_st.kernels.outlines import paint_centres
from virchow_st.output.cells.sums import map_sums
from virchow_st.slide.cells.assign import by_area, by_centres
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.outlines import Outlines, ragged
from virchow_st.slide.geometry import Homography
from virchow_st.types import BLOCK_BINS

SPACING, FACTORS, SAMPLE, GENES = 6, 32, 2000, 18_000


def draw(n: int) -> tuple[Any, Lattice]:
    """Draw n outlines on a square lattice that they fill, in bin coordinates."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(n)))
    at = np.stack(np.divmod(np.arange(n), side), 1)[:, ::-1] * SPACING + SPACING
    theta = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radius = rng.uniform(2.0, 3.1, (n, 1)) * (1 + 0.08 * rng.normal(size=(n, 32)))
    xy = (at + rng.normal(0, 0.7, (n, 2)))[:, None] + radius[..., None] * np.stack(
        [np.cos(theta), np.sin(theta)], -1
    )
    bins = -(-(side + 1) * SPACING // BLOCK_BINS) * BLOCK_BINS
    lattice = Lattice("bench", Homography(np.eye(3)), 0, 0, np.ones((bins, bins), bool))
    return shapely.polygons(xy), lattice


def by_shapely(shapes: Any, order: Any, size: int) -> Any:
    """Labels by `shapely.contains_xy` on the bins of each outline's box."""
    labels = np.zeros((size, size), np.int32)
    shapely.prepare(shapes)
    boxes = shapely.bounds(shapes)
    low, high = np.ceil(boxes[:, :2]).astype(int), np.floor(boxes[:, 2:]).astype(int) + 1
    for i in order:
        (c0, r0), (c1, r1) = np.maximum(low[i], 0), high[i]
        row, col = np.mgrid[r0:r1, c0:c1]
        inside = shapely.contains_xy(shapes[i], col.ravel(), row.ravel()).reshape(row.shape)
        labels[r0:r1, c0:c1][inside] = i + 1
    return labels


def shares_by_shapely(shapes: Any, size: int) -> Any:
    """Bins and covered shares of each outline, in turn."""
    found = []
    for shape in shapes:
        c0, r0, c1, r1 = np.rint(shape.bounds).astype(int)
        row, col = np.mgrid[r0 : r1 + 1, c0 : c1 + 1].reshape(2, -1)
        squares = shapely.box(col - 0.5, row - 0.5, col + 0.5, row + 0.5)
        area = shapely.area(shapely.intersection(squares, shape))
        found.append((row[area > 1e-9] * size + col[area > 1e-9], area[area > 1e-9]))
    return found


@cache
def band(size: int) -> Any:
    """Factor maps of one band."""
    rng = np.random.default_rng(1)
    return rng.gamma(0.5, size=(FACTORS, BLOCK_BINS, size)).astype(np.float32)


def blocks(size: int) -> Iterator[tuple[int, int, Any]]:
    """Bands of factor maps, as a field is read."""
    maps = band(size)
    for row in range(0, size, BLOCK_BINS):
        yield row, 0, maps


def best(call: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Least processor time of some calls, after one to warm up; and the result."""
    result, times = call(), []
    for _ in range(rounds):
        start = time.process_time()
        result = call()
        times.append(time.process_time() - start)
    return min(times), result


def whole(n: int, json_path: Path | None) -> None:
    """From n outlines to an AnnData file of 18,000 genes, in the order of ``vst cells``."""
    import anndata

    import virchow_st as vst
    from virchow_st.output.cells.gather import CellData
    from virchow_st.output.cells.sources import CellSource
    from virchow_st.output.cells.table import to_anndata
    from virchow_st.run.panel import Panel

    shapes, lattice = draw(n)
    outlines = Outlines(Path(), shapes, tuple(f"cellid_{i:09d}-1" for i in range(n)), ("",) * n)
    warm, small = draw(100)
    of_warm = Outlines(Path(), warm, tuple(map(str, range(100))), ("",) * 100)
    map_sums(blocks(small.shape[0]), by_centres(of_warm, small), FACTORS)  # compiles
    band.cache_clear()
    band(lattice.shape[0])
    names = tuple(f"G{g}" for g in range(GENES))
    loadings = np.random.default_rng(2).gamma(0.1, 1, (GENES, FACTORS)).astype(np.float32)
    rows = [["drawing of the outlines", float("nan"), _peak_gb()]]

    def timed(what: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        rows.append([what, time.process_time() - start, _peak_gb()])
        return result

    cells = timed("bins of the outlines", lambda: by_centres(outlines, lattice))
    sums = timed(
        f"sums of {FACTORS} factors", lambda: map_sums(blocks(lattice.shape[0]), cells, FACTORS)
    )
    source = CellSource("S", "P", lattice, lattice.tissue, None, None, None, None, {})
    data = CellData(cells, Panel(names, names), sums, loadings, None, None, None)
    table = timed("table", lambda: to_anndata(source, data, {}))
    assert table.X is None or n * GENES <= 10**8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.h5ad"
        timed("writing", lambda: table.write_h5ad(path, compression="gzip"))
        size = path.stat().st_size / 1e9
        again = anndata.read_h5ad(path)
    rates = timed("one gene in every cell", lambda: vst.cell_rates(again, "G7"))
    assert np.allclose(rates, sums.of_cells @ loadings[7], rtol=1e-4)
    side = lattice.shape[0]
    title = f"{n:,} cells × {GENES:,} genes by {FACTORS} factors, {side}×{side} bins"
    dense = 4e-9 * n * GENES
    notes = [f"The file takes {size:.3g} GB; dense, its rates would take {dense:.3g} GB."]
    table_of = Table(title, ["step", "processor time, s", "peak memory so far, GB"], rows, notes)
    publish("cells-whole", [table_of], json_path, ["shapely", "anndata"])


def _peak_gb() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    if options.whole:
        whole(options.cells, options.json)
        return

    shapes, lattice = draw(options.cells)
    n, size = len(shapes), lattice.shape[0]
    order = np.lexsort((-np.arange(n), -shapely.area(shapes)))
    rows = []

    def painted() -> Any:
        xy, rings, limits, _ = ragged(shapes)
        labels, shared = np.zeros(lattice.shape, np.int32), np.zeros(lattice.shape, bool)
        paint_centres(xy, rings, limits, order, labels, shared)
        return labels

    ours, labels = best(painted, options.rounds)
    theirs, expected = best(lambda: by_shapely(shapes, order, size), 1)
    assert np.array_equal(labels, expected)
    rows.append(["bins of outlines", "shapely.contains_xy", ours, theirs, theirs / ours])

    some = shapes[:SAMPLE]
    few = Outlines(Path(), some, tuple(map(str, range(SAMPLE))), ("",) * SAMPLE)
    ours, cells = best(lambda: by_area(few, lattice), options.rounds)
    theirs, areas = best(lambda: shares_by_shapely(some, size), 1)
    total = np.bincount(
        np.concatenate([b for b, _ in areas]), np.concatenate([a for _, a in areas])
    )
    assert np.allclose(np.bincount(cells.bins, cells.share), np.minimum(total, 1), atol=1e-5)
    rows.append(
        [f"shares of {SAMPLE:,} outlines", "shapely.intersection", ours, theirs, theirs / ours]
    )

    every = Outlines(Path(), shapes, tuple(map(str, range(n))), ("",) * n)
    cells = by_centres(every, lattice)

    def by_bincount() -> Any:
        flat = cells.labels.ravel()
        sums = np.zeros((FACTORS, len(cells) + 1))
        for row, _, maps in blocks(size):
            at = flat[row * size : (row + BLOCK_BINS) * size]
            for k in range(FACTORS):
                sums[k] += np.bincount(at, maps[k].ravel(), len(cells) + 1)
        return sums[:, 1:].T

    def by_product() -> Any:
        matrix = cells.matrix().tocsc()
        sums = np.zeros((len(cells), FACTORS))
        for row, _, maps in blocks(size):
            part = matrix[:, row * size : (row + BLOCK_BINS) * size]
            sums += part @ maps.reshape(FACTORS, -1).T.astype(np.float64)
        return sums

    ours, sums = best(lambda: map_sums(blocks(size), cells, FACTORS).of_cells, options.rounds)
    for name, way in (("numpy.bincount", by_bincount), ("scipy.sparse product", by_product)):
        theirs, expected = best(way, options.rounds)
        assert np.allclose(sums, expected, rtol=1e-6)
        rows.append([f"sums of {FACTORS} factors", name, ours, theirs, theirs / ours])

    title = f"{n:,} cells on {size}×{size} bins"
    table = Table(title, ["what", "peer", "ours, s", "peer, s", "ratio"], rows, [])
    publish("cells", [table], options.json, ["shapely", "scipy"])


if __name__ == "__main__":
    main()
