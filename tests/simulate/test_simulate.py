"""Simulated slides: the files, the law of the counts, and the image in register with the bins."""

from __future__ import annotations

import csv
import json

import cv2
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from scipy import ndimage
from simulated_slide import Slide, assert_poisson
from skimage.color import rgb2hed

from virchow_st.config import SimulateConfig
from virchow_st.errors import ConfigError, SlideError
from virchow_st.extract.cohort import read_cohort
from virchow_st.runtime.lock import LOCK_NAME, locked
from virchow_st.simulate import simulate_cohort, true_rate
from virchow_st.simulate.fields import voronoi
from virchow_st.simulate.frame import draw_frame
from virchow_st.simulate.morphology import MARGIN_BINS, PX_PER_BIN

BINS = 250  # no multiple of 128
CONFIG = SimulateConfig(patients=("P1", "P5"), bins=BINS, genes=120, seed=3)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> list[Slide]:
    out = tmp_path_factory.mktemp("cohort")
    seen: list[str] = []
    folders = simulate_cohort(out, CONFIG, seen.append)
    assert seen == ["P1", "P5"]
    assert folders == [out / "P1", out / "P5"]
    return [Slide(folder) for folder in folders]


def project(h: np.ndarray, cols: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Full-res (x, y), by plain matrix algebra."""
    xyw = h @ np.stack([cols.ravel(), rows.ravel(), np.ones(cols.size)])
    return xyw[:2] / xyw[2]


def test_layout_and_manifest(cohort):
    out = cohort[0].folder.parent
    assert sorted(p.name for p in out.iterdir()) == ["P1", "P5", "slides.csv"]
    for slide in cohort:
        files = {str(p.relative_to(slide.folder)) for p in slide.folder.rglob("*") if p.is_file()}
        square = "outs/binned_outputs/square_002um"
        assert files == {
            "tissue_image.tif",
            "truth.h5",
            f"{square}/raw_feature_bc_matrix.h5",
            f"{square}/filtered_feature_bc_matrix.h5",
            f"{square}/spatial/tissue_positions.parquet",
            f"{square}/spatial/scalefactors_json.json",
            f"{square}/spatial/tissue_hires_image.png",
            f"{square}/spatial/tissue_lowres_image.png",
            f"{square}/spatial/cytassist_image.tiff",
        }
    with (out / "slides.csv").open(newline="") as f:
        rows = list(csv.reader(f))
    assert rows[0] == ["patient", "outs", "image", "store"]
    assert rows[1] == ["P1", "P1/outs", "P1/tissue_image.tif", "P1.vst"]
    assert len(rows) == 3


@pytest.mark.parametrize("which", ["raw", "filtered"])
def test_matrix_has_the_schema_of_space_ranger(cohort, which):
    expected = {
        "barcodes": "|S21",
        "data": "<i4",
        "indices": "<i8",
        "indptr": "<i8",
        "shape": "<i4",
        "features/_all_tag_keys": "|S6",
        "features/feature_type": "|S15",
        "features/genome": "|S6",
        "features/id": "|S15",
    }
    with h5py.File(cohort[0].square / f"{which}_feature_bc_matrix.h5") as f:
        assert f.attrs["filetype"] == "matrix"
        assert f.attrs["version"] == 2
        assert f.attrs["software_version"].startswith("spaceranger-3.")
        m = f["matrix"]
        assert {k: m[k].dtype.str for k in expected} == expected
        for name in ("barcodes", "data", "indices", "indptr"):
            d = m[name]
            assert (d.chunks, d.compression, d.shuffle) == ((80_000,), "gzip", True)
        genes, bins = m["shape"][:]
        assert m["indptr"].shape == (bins + 1,)
        assert m["indptr"][-1] == m["data"].size == m["indices"].size
        assert set(m["features/feature_type"][:]) == {b"Gene Expression"}
        ids, symbols = m["features/id"][:], m["features/name"][:]
    assert len(set(ids)) == genes == CONFIG.genes
    assert len(set(symbols)) == genes - 1  # one symbol has two ids
    assert {b"EPCAM", b"PIGR", b"COL1A1", b"MT-CO1", b"SIM0061"} <= set(symbols)


def test_positions_have_the_schema_of_space_ranger(cohort):
    path = cohort[0].square / "spatial" / "tissue_positions.parquet"
    meta = pq.ParquetFile(path).metadata
    assert meta.num_row_groups == 1
    assert meta.row_group(0).column(0).compression == "ZSTD"
    table = cohort[0].positions()
    assert {f.name: str(f.type) for f in table.schema} == {
        "barcode": "string",
        "in_tissue": "uint8",
        "array_row": "uint32",
        "array_col": "uint32",
        "pxl_row_in_fullres": "double",
        "pxl_col_in_fullres": "double",
    }
    rows, cols = table["array_row"].to_numpy(), table["array_col"].to_numpy()
    assert len(set(zip(rows.tolist(), cols.tolist(), strict=True))) == BINS**2
    names = [f"s_002um_{r:05d}_{c:05d}-1" for r, c in zip(rows, cols, strict=True)]
    assert table["barcode"].to_pylist() == names


def test_columns_and_positions_lie_in_unrelated_random_orders(cohort):
    table = cohort[0].positions()
    orders = [table["array_row"].to_numpy().astype(float)]
    orders += [cohort[0].counts(which)[1].astype(float) for which in ("raw", "filtered")]
    for rows in orders:
        assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02  # neighbours tell nothing
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < 0.02


def test_filtered_is_raw_within_the_tissue(cohort):
    for slide in cohort:
        raw, rows, _ = slide.counts("raw")
        filtered, frows, fcols = slide.counts("filtered")
        tissue = slide.tissue()
        assert rows.size == BINS**2
        assert 0.5 < tissue.mean() < 0.95
        assert frows.size == tissue.sum()
        assert tissue[frows, fcols].all()
        np.testing.assert_array_equal(filtered, raw * tissue)
        outside = raw[:, ~tissue].sum() / (~tissue).sum()
        assert 0 < outside < 0.2 * filtered.sum() / tissue.sum()


def test_positions_are_the_homography_exactly(cohort):
    for slide in cohort:
        table = slide.positions()
        xy = project(slide.homography, table["array_col"].to_numpy() * 1.0,
                     table["array_row"].to_numpy() * 1.0)  # fmt: skip
        assert np.abs(xy[0] - table["pxl_col_in_fullres"].to_numpy()).max() < 1e-8
        assert np.abs(xy[1] - table["pxl_row_in_fullres"].to_numpy()).max() < 1e-8


def test_poses_turn_mirror_and_tilt(cohort):
    h1, h5 = (slide.homography for slide in cohort)
    assert np.linalg.det(h1[:2, :2]) > 0 > np.linalg.det(h5[:2, :2])
    for h in (h1, h5):
        degrees = np.degrees(np.arctan2(h[1, 0], h[0, 0]))
        assert 0.5 < abs((degrees + 45) % 90 - 45) < 5
        assert np.abs(h[2, :2]).min() > 1e-7
        cols, rows = np.meshgrid(np.arange(0.0, BINS, 7), np.arange(0.0, BINS, 7))
        bins = np.stack([cols.ravel(), rows.ravel(), np.ones(cols.size)], 1)
        xy = project(h, cols, rows).T
        affine = bins @ np.linalg.lstsq(bins, xy, rcond=None)[0]
        assert 0.01 < np.abs(affine - xy).max() < 5  # no affine fits


def test_a_few_bins_lie_off_the_image_where_it_overhangs(cohort):
    off = []
    for slide in cohort:
        table, (height, width, _) = slide.positions(), slide.image.shape
        x, y = table["pxl_col_in_fullres"].to_numpy(), table["pxl_row_in_fullres"].to_numpy()
        off.append(np.mean((x < 0) | (y < 0) | (x > width) | (y > height)))
    assert all(0 < share < 0.05 for share in off)
    whole = draw_frame(np.random.default_rng(0), BINS, mirrored=False, overhang=False)
    corners = np.array([-0.5, BINS - 0.5])
    x, y = project(whole.homography, *np.meshgrid(corners, corners))
    assert 0 < x.min() < x.max() < whole.width
    assert 0 < y.min() < y.max() < whole.height


def test_scale_factors_fit_the_images(cohort):
    for slide in cohort:
        spatial = slide.square / "spatial"
        factors = json.loads((spatial / "scalefactors_json.json").read_text())
        assert set(factors) == {
            "spot_diameter_fullres",
            "bin_size_um",
            "microns_per_pixel",
            "regist_target_img_scalef",
            "tissue_lowres_scalef",
            "fiducial_diameter_fullres",
            "tissue_hires_scalef",
        }
        full = np.array(slide.image.shape[:2])
        for name in ("hires", "lowres"):
            small = np.array(cv2.imread(str(spatial / f"tissue_{name}_image.png")).shape[:2])
            assert np.abs(small / factors[f"tissue_{name}_scalef"] / full - 1).max() < 0.01
        # The pitch of neighbouring bins gives the same µm per pixel as the file.
        xy = project(slide.homography, np.array([100.0, 101.0]), np.array([100.0, 100.0]))
        pitch = np.hypot(*(xy[:, 1] - xy[:, 0]))
        assert 2.0 / pitch == pytest.approx(factors["microns_per_pixel"], rel=5e-3)
        assert tifffile.imread(spatial / "cytassist_image.tiff").shape == (300, 320)


def test_image_is_a_tiled_bigtiff_pyramid_for_both_readers(cohort):
    import openslide

    path = cohort[0].folder / "tissue_image.tif"
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        assert tiff.pages[0].is_tiled
        shapes = [level.shape for level in tiff.series[0].levels]
    assert len(shapes) >= 2
    with openslide.OpenSlide(path) as slide:
        assert [(h, w, 3) for w, h in slide.level_dimensions] == shapes
        corner = np.asarray(slide.read_region((200, 300), 0, (64, 64)).convert("RGB"))
    np.testing.assert_array_equal(corner, cohort[0].image[300:364, 200:264])


def test_a_marker_is_found_where_the_homography_puts_it():
    for seed, mirrored in ((0, False), (1, True)):
        frame = draw_frame(np.random.default_rng(seed), BINS, mirrored, False)
        side = (BINS + 2 * MARGIN_BINS) * PX_PER_BIN
        for col, row in ((0, 0), (BINS - 1, 3), (120, 200)):
            canvas = np.zeros((side, side, 2), np.float32)
            r, c = (np.array([row, col]) + MARGIN_BINS) * PX_PER_BIN
            canvas[r : r + PX_PER_BIN, c : c + PX_PER_BIN] = 1  # the bin, c - 1/2 to c + 1/2
            y, x = ndimage.center_of_mass(frame.warp(canvas)[..., 0])
            expected = project(frame.homography, np.array([col * 1.0]), np.array([row * 1.0]))
            assert np.abs(np.array([x + 0.5, y + 0.5]) - expected[:, 0]).max() < 0.1  # px


def test_nuclei_in_the_image_lie_on_the_true_nuclei(cohort):
    for slide in cohort:
        haematoxylin = rgb2hed(slide.image)[..., 0].astype(np.float32)
        smooth = cv2.blur(haematoxylin, (4, 4), anchor=(1, 1))
        rows, cols = np.mgrid[8 : BINS - 8, 8 : BINS - 8]
        nuclei = slide.truth("nuclei")[8 : BINS - 8, 8 : BINS - 8].ravel()

        def agreement(
            d_row: float, d_col: float, slide=slide, smooth=smooth, grid=(rows, cols), truth=nuclei
        ) -> float:
            x, y = project(slide.homography, grid[1] + d_col, grid[0] + d_row)
            seen = ndimage.map_coordinates(smooth, [y - 0.5, x - 0.5], order=1, mode="nearest")
            return float(np.corrcoef(seen, truth)[0, 1])

        best = agreement(0, 0)
        assert best > 0.7
        for d_row, d_col in ((4, 0), (-4, 0), (0, 4), (0, -4)):
            assert agreement(d_row, d_col) < 0.6 * best
        for d_row, d_col in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # and to within a bin
            assert agreement(d_row, d_col) < best


def test_counts_follow_the_rates(cohort):
    slide = cohort[0]
    tissue = slide.tissue()
    ids = slide.truth("gene_id")
    rate = true_rate(slide.folder / "truth.h5", ids, 0, 0, BINS, BINS)[:, tissue].astype(float)
    assert_poisson(slide.counts("raw")[0][:, tissue], rate)


def test_non_zero_share_of_the_top_genes(cohort):
    for slide in cohort:
        count = slide.counts("filtered")[0][:, slide.tissue()]
        top = np.argsort(count.sum(1))[::-1][:50]
        assert 0.03 < (count[top] > 0).mean() < 0.06
        assert count.sum(0).mean() < 12


def test_rates_follow_fine_structure(cohort):
    """Nuclear and epithelial genes part ways from bin to bin, not just from region to region."""
    slide = cohort[0]
    symbols, ids = slide.truth("gene_symbol"), slide.truth("gene_id")
    chosen = [ids[list(symbols).index(s)] for s in ("MALAT1", "MT-CO1")]
    nuclear, mito = true_rate(slide.folder / "truth.h5", chosen, 0, 0, BINS, BINS)
    tissue = slide.tissue()
    fine = [r - ndimage.uniform_filter(r, 9) for r in (nuclear, mito, slide.truth("nuclei"))]
    r = np.corrcoef([f[tissue] for f in fine])
    assert r[0, 2] > 0.6
    assert r[1, 2] < -0.05


def test_true_rate_windows(cohort):
    path = cohort[0].folder / "truth.h5"
    ids = cohort[0].truth("gene_id")
    whole = true_rate(path, ids[:5], 0, 0, BINS, BINS)
    part = true_rate(path, [ids[3], ids[1]], 17, 130, 33, 120)
    assert part.dtype == np.float32
    np.testing.assert_allclose(part, whole[[3, 1], 17:50, 130:250], rtol=1e-5)
    loadings, maps = cohort[0].truth("loadings")[3], cohort[0].truth("programmes")
    by_hand = sum(float(w) * m[20, 140] for w, m in zip(loadings, maps, strict=True))
    by_hand *= cohort[0].truth("depth")[20, 140]
    assert whole[3, 20, 140] == pytest.approx(by_hand, rel=1e-5)
    with pytest.raises(SlideError, match="gene ids"):
        true_rate(path, ["ENSG_none"], 0, 0, 1, 1)
    with pytest.raises(SlideError, match="window"):
        true_rate(path, ids[:1], 0, BINS - 1, 1, 2)
    with pytest.raises(SlideError, match=r"truth\.h5"):
        true_rate(path.with_name("tissue_image.tif"), ids[:1], 0, 0, 1, 1)


def test_patients_differ_in_stain_and_depth(cohort):
    means, totals = [], []
    for slide in cohort:
        image = slide.image
        means.append(np.median(image[image.min(axis=2) < 200], axis=0))
        totals.append(slide.counts("filtered")[0].sum() / slide.tissue().sum())
    assert np.abs(means[0] - means[1]).max() > 5
    assert abs(np.log(totals[0] / totals[1])) > 0.02
    assert (cohort[0].truth("nuclei") != cohort[1].truth("nuclei")).any()


def test_a_slide_depends_on_seed_and_name_alone(cohort, tmp_path):
    alone = SimulateConfig(patients=("P5",), bins=BINS, genes=120, seed=3)
    again = Slide(simulate_cohort(tmp_path, alone)[0])
    np.testing.assert_array_equal(again.image, cohort[1].image)
    for a, b in zip(again.counts("filtered"), cohort[1].counts("filtered"), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.truth("loadings"), cohort[1].truth("loadings"))


def test_standing_slides_are_kept_and_others_refused(tmp_path):
    small = SimulateConfig(patients=("A",), bins=128, genes=60)
    (folder,) = simulate_cohort(tmp_path, small)
    before = (folder / "truth.h5").stat().st_mtime_ns
    simulate_cohort(tmp_path, SimulateConfig(patients=("B", "A"), bins=128, genes=60))
    assert (folder / "truth.h5").stat().st_mtime_ns == before
    assert (tmp_path / "slides.csv").read_text().splitlines()[1:] == [
        "A,A/outs,A/tissue_image.tif,A.vst",
        "B,B/outs,B/tissue_image.tif,B.vst",
    ]
    with pytest.raises(ConfigError, match="holds patient=A, seed=0"):
        simulate_cohort(tmp_path, SimulateConfig(patients=("A",), bins=128, genes=60, seed=1))
    for other, message in [
        ("name,path\n", "column 'patient' is missing"),
        ("patient,outs,image,store,note\n", "expected the columns patient,outs,image,store; got"),
        ("patient,outs,image,store\nB,o\n", "line 2: expected 4 fields; got 2"),
        ('patient,outs,image,store\n"B\r",o,i,s\n', r"line \d: expected a name without control"),
    ]:
        (tmp_path / "slides.csv").write_text(other)
        with pytest.raises(ConfigError, match=rf"slides\.csv: {message}"):
            simulate_cohort(tmp_path, SimulateConfig(patients=("D",), bins=128, genes=60))
        assert not (tmp_path / "D").exists(), "refused before it is made"
        assert (tmp_path / "slides.csv").read_bytes().decode() == other
    (tmp_path / "C").mkdir()
    with pytest.raises(ConfigError, match="no simulated slide"):
        simulate_cohort(tmp_path, SimulateConfig(patients=("C",), bins=128, genes=60))


def test_rows_of_others_in_the_list_of_slides_come_back(tmp_path):
    """Their names too that a spreadsheet would compute."""
    listed = "patient,outs,image,store\n'=cmd,'-o,'@i,'+s.vst\n\"a, b\",o,i,s.vst\n"
    (tmp_path / "slides.csv").write_text(listed)
    simulate_cohort(tmp_path, SimulateConfig(patients=("A",), bins=128, genes=60))
    row = "A,A/outs,A/tissue_image.tif,A.vst\n"
    assert (tmp_path / "slides.csv").read_text() == listed + row
    patients = [(slide.patient, slide.outs.name) for slide in read_cohort(tmp_path / "slides.csv")]
    assert patients == [("=cmd", "-o"), ("a, b", "o"), ("A", "outs")]


def test_what_a_killed_simulation_left_goes_and_a_living_one_s_stays(tmp_path):
    small = SimulateConfig(patients=("A",), bins=128, genes=60)
    simulate_cohort(tmp_path, small)
    left = tmp_path / ".B.part"
    left.mkdir()
    (left / "half").write_text("")
    with locked(tmp_path, tmp_path / LOCK_NAME):
        with pytest.raises(ConfigError, match="being written by process"):
            simulate_cohort(tmp_path, small)
        assert (left / "half").exists()
    simulate_cohort(tmp_path, small)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_interrupted_slide_leaves_nothing(tmp_path, monkeypatch):
    import virchow_st.simulate.cohort as cohort_module

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(cohort_module, "write_truth", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate_cohort(tmp_path, SimulateConfig(patients=("A",), bins=128, genes=60))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("patients", [(), ("a/b",), ("..",), ("P1", "P1"), ("",)])
def test_unusable_names_are_refused(tmp_path, patients):
    with pytest.raises(ConfigError, match="patients: expected"):
        simulate_cohort(tmp_path, SimulateConfig(patients=patients, bins=128, genes=60))


def test_points_at_the_edge_have_a_cell():
    """A nucleus may lie at the far edge, where rounding leads off the map."""
    cell = voronoi(8, np.array([[7.6, 2.0], [0.0, 7.9]]))
    assert cell[2, 7] == cell[3, 7] != cell[7, 0]
