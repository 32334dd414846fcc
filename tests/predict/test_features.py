"""Vectors of patches for other tools: read by the rules of their layouts, and the same again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from dying import Killed

from virchow_st.config import PredictConfig
from virchow_st.errors import ConfigError
from virchow_st.field.read import open_field
from virchow_st.predict.cohort import predict_cohort
from virchow_st.predict.features import check_replaceable
from virchow_st.predict.journal import Journal
from virchow_st.predict.runs import LoadedRuns, load_runs
from virchow_st.predict.slide import predict_slide
from virchow_st.runtime.progress import SILENT

MPP = 0.5


@pytest.fixture(scope="module")
def images(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two crops, A.tif and B.tif."""
    folder = tmp_path_factory.mktemp("images")
    pixels = tifffile.imread(simulated / "P1" / "tissue_image.tif")
    for name, top in (("A", 300), ("B", 420)):
        crop = pixels[top : top + 600, 300:900]
        tifffile.imwrite(folder / f"{name}.tif", crop, tile=(256, 256), photometric="rgb")
    return folder


@pytest.fixture(scope="module")
def loaded(stain_run: Path) -> LoadedRuns:
    return load_runs([stain_run], config(""), SILENT)


def config(features: object, layout: str = "stamp") -> PredictConfig:
    return PredictConfig(
        device="cpu", mpp=MPP, min_tissue=0.1, features=str(features), features_layout=layout
    )


def stamp_coords(file: h5py.File) -> tuple[Any, float]:
    """Coordinates and tile size in µm, as STAMP 2 looks for them."""
    if file.attrs.get("tile_size") and file.attrs.get("unit") == "um":
        return file["coords"][:], float(file.attrs["tile_size"])
    return file["coords"][:], float(file.attrs["tile_size_um"])


def test_both_layouts_hold_the_class_tokens_where_the_patches_are(
    loaded: LoadedRuns, images: Path, tmp_path: Path
) -> None:
    vectors = {}
    for layout in ("stamp", "trident"):
        folder = tmp_path / layout
        predict_slide(
            [], images / "A.tif", folder / "A.zarr", config(folder, layout), SILENT, loaded
        )
        with h5py.File(folder / "A.h5") as file:
            if layout == "stamp":
                assert str(file.attrs["feat_type"]) == "tile"
                assert "stamp_version" not in file.attrs  # a reader refuses what is newer than it
                corners_um, side_um = stamp_coords(file)
                side_px, found = int(file.attrs["tile_size_px"]), file["feats"][:]
                assert (side_um, side_px, corners_um.dtype) == (256, 256, np.float32)
            else:
                attributes = dict(file["coords"].attrs)
                assert attributes["patch_size_level0"] == 512
                assert attributes["level0_magnification"] == 20
                assert (attributes["level0_width"], attributes["level0_height"]) == (600, 600)
                scale = attributes["level0_magnification"] / attributes["target_magnification"]
                assert attributes["patch_size"] * scale == pytest.approx(512)
                corners_um, found = file["coords"][:] * MPP, file["features"][:]
                assert file["coords"].dtype == np.int64
            assert found.dtype == np.float16
            assert len(found) == len(corners_um) > 1
            vectors[layout] = found, corners_um
    for a, b in zip(vectors["stamp"], vectors["trident"], strict=True):
        np.testing.assert_array_equal(a, b)
    # The vectors are what the encoder gives for the picture at these places.
    found, corners_um = vectors["stamp"]
    encoder = loaded.with_encoder(config(""), SILENT)
    pixels = tifffile.imread(images / "A.tif")
    inside = [i for i, (x, y) in enumerate(corners_um) if max(x, y) <= 44]
    for i in inside:
        x, y = (corners_um[i] / MPP).astype(int)
        patch = pixels[y : y + 512, x : x + 512].astype(float)
        patch = patch.reshape(256, 2, 256, 2, 3).mean((1, 3)).round().astype(np.uint8)
        (expected,) = encoder.encode(patch[None]).cls
        assert np.square(found - expected).sum(axis=1).argmin() == i
        assert np.corrcoef(found[i], expected)[0, 1] > 0.97
    assert inside


def test_means_of_slides_are_those_of_vectors_and_field(
    stain_run: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "slides.csv").write_text(
        f"image,out,patient\n{images / 'A.tif'},A.zarr,Q1\n{images / 'B.tif'},B.zarr,\n"
    )
    folder = tmp_path / "features"
    outcomes = predict_cohort([stain_run], tmp_path / "slides.csv", config(folder))
    assert all(o.is_done for o in outcomes)
    with open(folder / "slides.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [(r["PATIENT"], r["FILENAME"]) for r in rows] == [("Q1", "A.h5"), ("B", "B.h5")]
    for row, outcome in zip(rows, outcomes, strict=True):
        with h5py.File(folder / row["FILENAME"]) as file:
            vectors = file["feats"][:].astype(float)
        names = [name for name in row if name.startswith("feature_")]
        assert len(names) == vectors.shape[1]
        np.testing.assert_allclose([float(row[n]) for n in names], vectors.mean(0), rtol=1e-4)
        assert int(row["n_patches"]) == len(vectors) == outcome.n_patches
        assert outcome.quality is not None
        assert float(row["sharpness"]) == pytest.approx(outcome.quality.sharpness, rel=1e-5)
        field = open_field(outcome.slide.out)
        tissue = field.tissue_mask[::4, ::4]
        for gene in field.symbols:
            rates = field.gene(gene, 8)
            expected = rates[tissue & ~np.isnan(rates)].mean()
            assert float(row[gene]) == pytest.approx(float(expected), rel=1e-4)
    # Again: what is there stays; a file that is gone cannot be made for a prediction that is there.
    before = (folder / "slides.csv").read_bytes()
    assert all(o.is_done for o in predict_cohort([stain_run], tmp_path / "slides.csv",
                                                 config(folder)))  # fmt: skip
    assert (folder / "slides.csv").read_bytes() == before
    (folder / "B.h5").unlink()
    found = predict_cohort([stain_run], tmp_path / "slides.csv", config(folder))
    assert [o.is_done for o in found] == [True, False]
    assert "was made without --features; delete it" in found[1].text
    # A file of another run is not put into one table with this one's.
    (folder / "B.h5").write_bytes((folder / "A.h5").read_bytes())
    with h5py.File(folder / "B.h5", "r+") as file:
        about = json.loads(file.attrs["virchow_st"])
        about["made_by"]["runs"][0]["epoch"] += 1
        file.attrs["virchow_st"] = json.dumps(about)
    with pytest.raises(ConfigError, match="B.h5: expected features by the run, encoder and"):
        predict_cohort([stain_run], tmp_path / "slides.csv", config(folder))


def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    loaded: LoadedRuns, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    predict_slide([], images / "A.tif", whole / "A.zarr", config(whole), SILENT, loaded)
    real, lines = Journal._append, [0]
    for nth in (2, 3, 4):

        def append(self: Journal, line: Any, nth: int = nth) -> None:
            real(self, line)
            lines[0] += 1
            if lines[0] == nth:
                raise Killed

        lines[0] = 0
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "_append", append)
            try:
                predict_slide([], images / "A.tif", again / "A.zarr", config(again), SILENT, loaded)
            except Killed:
                assert not (again / "A.h5").exists()
                continue
        break
    else:
        predict_slide([], images / "A.tif", again / "A.zarr", config(again), SILENT, loaded)
    assert (again / "A.h5").read_bytes() == (whole / "A.h5").read_bytes()


def test_other_files_are_not_replaced(images: Path, loaded: LoadedRuns, tmp_path: Path) -> None:
    (tmp_path / "A.h5").write_bytes(b"features of somebody else")
    with pytest.raises(ConfigError, match="A.h5: is already there, and holds no features of this"):
        predict_slide([], images / "A.tif", tmp_path / "A.zarr", config(tmp_path), SILENT, loaded)
    assert (tmp_path / "A.h5").read_bytes() == b"features of somebody else"
    check_replaceable(tmp_path / "none.h5", "")
    (tmp_path / "slides.csv").write_text("image,out\na/S.svs,1.zarr\nb/S.tif,2.zarr\n")
    with pytest.raises(ConfigError, match="S.h5: expected a file per slide; .* have one name"):
        predict_cohort([tmp_path / "run"], tmp_path / "slides.csv", config(tmp_path))
