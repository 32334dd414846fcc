"""``slides.csv`` of a folder of features: a row per slide, for survival models and STAMP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.names import csv_text
from virchow_st.predict.features import FORMAT, features_file
from virchow_st.predict.quality import SlideQuality
from virchow_st.runtime.atomic import written_table
from virchow_st.runtime.lock import locked

TABLE = "slides.csv"
_QUALITY = tuple(SlideQuality.__dataclass_fields__)


def write_feature_table(
    folder: Path, slides: Sequence[tuple[Path, str, int, SlideQuality | None]]
) -> Path:
    """Write the table: PATIENT and FILENAME, as STAMP names them, quality, and means per slide.

    Args:
        folder: of the features.
        slides: image, patient (empty if not known), number of patches and quality of each slide
            that is done. A slide without a patient is a patient of its own.

    Returns:
        The path of the table.

    Raises:
        ConfigError: a file of features is missing, damaged, or of another run than the first.
    """
    head: list[str] = []
    first: Path | None = None
    path = folder / TABLE
    rows = []
    for image, patient, n_patches, quality in slides:
        file = features_file(folder, image)
        features, rates, names, made_by = _means(file)
        columns = [f"feature_{i}" for i in range(len(features))] + names
        if first is None:
            first, head, shared = file, columns, made_by
        elif (columns, made_by) != (head, shared):
            raise ConfigError(
                f"{file}: expected features by the run, encoder and options of {first}; delete it "
                "and its prediction and predict it again, or give another --features"
            )
        values = quality.as_dict() if quality else {}
        told = ["" if (v := values.get(name)) is None else f"{v:.6g}" for name in _QUALITY]
        numbers = [f"{value:.6g}" for value in (*features.tolist(), *rates.tolist())]
        rows.append([csv_text(patient or image.stem), csv_text(file.name), n_patches, *told,
                     *numbers])  # fmt: skip
    with (
        locked(path),
        written_table(
            path, ["PATIENT", "FILENAME", "n_patches", *_QUALITY, *map(csv_text, head)]
        ) as add,
    ):
        for row in rows:
            add(row)
    return path


def _means(file: Path) -> tuple[Any, Any, list[str], Any]:
    """A slide's mean vector, mean rates and their names, and what they were made by."""
    try:
        with h5py.File(file) as opened:
            about = json.loads(opened.attrs["virchow_st"])
            group = opened["slide"]
            names = [str(name) for name in group["rate_name"].asstr()[:]]
            features, rates = np.asarray(group["feature_mean"]), np.asarray(group["rate_mean"])
        if about["format"] != FORMAT or len(names) != len(rates):
            raise ValueError
        return features, rates, names, about["made_by"]
    except (OSError, KeyError, ValueError, TypeError):
        raise ConfigError(
            f"{file}: expected features that vst predict wrote; found none; delete it and its "
            "prediction and predict it again"
        ) from None
