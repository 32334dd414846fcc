"""Quality of a slide: told in the prediction, and compared with the training patients."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from virchow_st.config import PredictConfig
from virchow_st.errors import ConfigError
from virchow_st.predict.runs import LoadedRuns, load_runs
from virchow_st.predict.slide import predict_slide
from virchow_st.run.appearance import APPEARANCE, read_appearance
from virchow_st.runtime.progress import SILENT

CONFIG = PredictConfig(device="cpu", mpp=0.5, overlap_um=0)


@pytest.fixture(scope="module")
def loaded(stain_run: Path) -> LoadedRuns:
    return load_runs([stain_run], CONFIG, SILENT)


def quality(loaded: LoadedRuns, image: np.ndarray, folder: Path) -> dict[str, float]:
    tifffile.imwrite(folder / "s.tif", image, tile=(256, 256), photometric="rgb")
    done = predict_slide([], folder / "s.tif", folder / "s.zarr", CONFIG, SILENT, loaded)
    attributes = json.loads((folder / "s.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["virchow_st"]["quality"] == done.quality.as_dict()
    return done.quality.as_dict()  # type: ignore[return-value]


def test_what_is_wrong_shows_in_its_own_number(
    loaded: LoadedRuns, simulated: Path, tmp_path: Path
) -> None:
    clean = tifffile.imread(simulated / "P1" / "tissue_image.tif")[:1100, :1100]
    pen = clean.copy()
    pen[300:600] = pen[300:600] * (np.array([40, 70, 190]) / 245)
    slides = {
        "clean": clean,
        "blurred": cv2.GaussianBlur(clean, (0, 0), 2.0),  # 1 µm
        "inked": pen,
        "strong": (255 * (clean / 255.0) ** 1.5).astype(np.uint8),  # densities 1.5 times as large
    }
    found = {}
    for name, image in slides.items():
        (tmp_path / name).mkdir()
        found[name] = quality(loaded, image, tmp_path / name)
    usual = found["clean"]
    assert 0.5 < usual["sharpness_ratio"] < 1.5
    assert usual["pen"] == 0
    assert usual["stain_shift"] < 1  # its patient is one of those that the run learned from
    assert usual["stain_angle"] < 2
    assert found["blurred"]["sharpness_ratio"] < 0.35 * usual["sharpness_ratio"]
    # The line covers 0.27 of the slide and 0.31 of its tissue; over dense tissue not all is found.
    assert 0.1 < found["inked"]["pen"] < 0.32
    assert found["strong"]["stain_shift"] > usual["stain_shift"] + 1


def test_a_run_keeps_its_training_patients_without_names(stain_run: Path, tmp_path: Path) -> None:
    patients = read_appearance(stain_run)
    assert len(patients) == 2  # not of P5, its test
    assert "P1" not in (stain_run / APPEARANCE).read_text()
    assert read_appearance(tmp_path) == ()  # of an older version
    (tmp_path / APPEARANCE).write_text('{"format": "virchow_st.appearance/2", "patients": [{}]}')
    with pytest.raises(ConfigError, match=r"appearance.json: .*copy the run again"):
        read_appearance(tmp_path)
