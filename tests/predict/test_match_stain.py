"""``--match-stain``: a slide of another laboratory is predicted as if stained like training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from virchow_st.config import ExtractConfig, PredictConfig
from virchow_st.errors import ConfigError, StoreError
from virchow_st.extract.slide import extract_slide
from virchow_st.field.read import open_field
from virchow_st.metrics.appearance import matching_factors
from virchow_st.models.encoders.stain import STAINS, UNMIX
from virchow_st.predict.provenance import is_recorded
from virchow_st.predict.runs import LoadedRuns, load_runs
from virchow_st.predict.slide import predict_slide
from virchow_st.run.appearance import APPEARANCE
from virchow_st.runtime.progress import SILENT
from virchow_st.slide.restain import Restain
from virchow_st.store.reader import open_store

PLANTED = (0.6, 1.5)  # haematoxylin, eosin
CONFIG = PredictConfig(device="cpu", mpp=0.5, overlap_um=0, match_stain=True)


@pytest.fixture(scope="module")
def loaded(stain_run: Path) -> LoadedRuns:
    return load_runs([stain_run], CONFIG, SILENT)


@pytest.fixture(scope="module")
def slides(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same part of a training slide, as it is and with its stains planted anew."""
    folder = tmp_path_factory.mktemp("stained")
    clean = tifffile.imread(simulated / "P1" / "tissue_image.tif")[:1100, :1100]
    stain = Restain(*PLANTED, STAINS)
    for name, image in (("clean", clean), ("other", stain(clean))):
        tifffile.imwrite(folder / f"{name}.tif", image, tile=(256, 256), photometric="rgb")
    return folder


def predicted(loaded: LoadedRuns, image: Path, out: Path, match: bool) -> tuple[np.ndarray, dict]:
    predict_slide([], image, out, replace(CONFIG, match_stain=match), SILENT, loaded)
    about = json.loads((out / "zarr.json").read_text("utf-8"))["attributes"]["virchow_st"]
    field = open_field(out)
    rates = np.stack([field.gene(name, scale_um=8) for name in field.genes])
    return rates, about


def test_another_stain_is_predicted_as_that_of_training(
    loaded: LoadedRuns, slides: Path, tmp_path: Path
) -> None:
    truth, _ = predicted(loaded, slides / "clean.tif", tmp_path / "clean.zarr", match=False)
    errors = {}
    for match in (False, True):
        out = tmp_path / f"other-{match}.zarr"
        rates, about = predicted(loaded, slides / "other.tif", out, match)
        errors[match] = np.nanmean(np.abs(np.log(rates + 1e-6) - np.log(truth + 1e-6)))
        assert about["quality"]["stain_shift"] > 1  # of the slide as it is
        assert ("stain_factors" in about) == match
    assert errors[True] < 0.4 * errors[False]
    found = about["stain_factors"]
    clean = matching_factors_of(slides / "clean.tif", loaded, tmp_path)
    np.testing.assert_allclose(
        [found["haematoxylin"] * PLANTED[0], found["eosin"] * PLANTED[1]], clean, rtol=0.04
    )
    # The picture in the result is the slide's own.
    pictures = [
        sorted(
            p.read_bytes() for p in (tmp_path / f"other-{m}.zarr" / "images/he").rglob("c/*/*/*")
        )
        for m in (False, True)
    ]
    assert pictures[0] == pictures[1]
    # What was made without matching is not taken for the same.
    image, runs = slides / "other.tif", loaded.runs
    assert is_recorded(tmp_path / "other-True.zarr", runs, image, CONFIG) is not None
    assert is_recorded(tmp_path / "other-False.zarr", runs, image, CONFIG) is None


def matching_factors_of(image: Path, loaded: LoadedRuns, folder: Path) -> tuple[float, float]:
    """Factors of a slide, from its own prediction."""
    _, about = predicted(loaded, image, folder / "own.zarr", match=True)
    return about["stain_factors"]["haematoxylin"], about["stain_factors"]["eosin"]


def test_a_store_of_a_slide_with_matched_stains(
    simulated: Path, stain_run: Path, tmp_path: Path
) -> None:
    outs, image = simulated / "P5" / "outs", simulated / "P5" / "tissue_image.tif"
    plain = ExtractConfig("stain", device="cpu")
    matched = replace(plain, match_stain=str(stain_run))
    as_it_is = extract_slide(outs, image, tmp_path / "plain.vst", "P5", plain)
    store = extract_slide(outs, image, tmp_path / "matched.vst", "P5", matched)
    assert "stain_factors" not in as_it_is.manifest["job"]
    factors = store.manifest["job"]["stain_factors"]
    assert 0.3 < factors["haematoxylin"] < 3
    stain = Restain(factors["haematoxylin"], factors["eosin"], STAINS)
    for before, after in zip(as_it_is, store, strict=True):
        assert (before.counts() != after.counts()).nnz == 0
        off = stain(before.image).astype(int) - after.image  # both are compressed
        assert np.abs(off).mean() < 4
    # The same again is the same job; without, or with another run's stain, it is another.
    assert extract_slide(outs, image, store.path, "P5", matched).manifest == store.manifest
    with pytest.raises(StoreError, match=r"stain_factors.*then, None now"):
        extract_slide(outs, image, store.path, "P5", plain)
    assert matching_factors(*look_and_training(store, stain_run)) == pytest.approx((1, 1), abs=0.06)


def look_and_training(store, run: Path):
    """How the patches of a store look, and the training patients of a run."""
    from virchow_st.metrics.appearance import appearance
    from virchow_st.run.appearance import read_appearance

    patches = list(open_store(store.path))
    masks = [p.tissue_mask.repeat(2, 0).repeat(2, 1) for p in patches]
    return appearance([p.image for p in patches], masks, UNMIX[:, :2]), read_appearance(run)


def test_a_run_that_cannot_tell_is_refused_in_a_line(
    simulated: Path, stain_run: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(stain_run, old)
    (old / APPEARANCE).unlink()
    with pytest.raises(ConfigError, match=r"old: expected .*of format 2.*train again"):
        load_runs([old], CONFIG, SILENT)
    # Format 1 had the strengths along other directions.
    before = (stain_run / APPEARANCE).read_text("utf-8").replace("appearance/2", "appearance/1")
    (old / APPEARANCE).write_text(before, "utf-8")
    with pytest.raises(ConfigError, match=r"old: expected appearance.json of format 2"):
        load_runs([old], CONFIG, SILENT)
    assert not load_runs([old], replace(CONFIG, match_stain=False), SILENT).training
    outs, image = simulated / "P5" / "outs", simulated / "P5" / "tissue_image.tif"
    config = ExtractConfig("stain", device="cpu", match_stain=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"none: expected a run of vst train; found none"):
        extract_slide(outs, image, tmp_path / "x.vst", "P5", config)
    assert not (tmp_path / "x.vst").exists()
