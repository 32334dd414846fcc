"""What a prediction was made from: recorded with it, and compared before one is gone on with."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from virchow_st.config import PredictConfig
from virchow_st.models.encoders.base import Encoder
from virchow_st.models.encoders.weights import parameters_hash
from virchow_st.predict.load import Run
from virchow_st.runtime.software import versions
from virchow_st.settings import to_toml
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable
from virchow_st.slide.remote import image_fingerprint
from virchow_st.slide.tissue import Tissue

FORMAT = "virchow_st.prediction/1"
_NOT_OF_THE_RATES = ("device", "weights", "keep_paths", "features", "features_layout")
_SOFTWARE = ("virchow_st", "numpy", "opencv-python-headless", "torch", "timm", "zarr")


def fingerprint(
    runs: Sequence[Run], encoder: Encoder, image: SlideImage, mpp: float, config: PredictConfig
) -> str:
    """Hash of everything that the maps of a prediction depend on, 16 hexadecimal digits."""
    content = {
        "runs": [[parameters_hash(run.decoder), parameters_hash(run.objective)] for run in runs],
        "device": runs[0].device.type,
        "encoder": [encoder.name, encoder.weights_hash, encoder.grid, encoder.dim],
        "image": [image.fingerprint(), image.width, image.height, image.provenance()],
        "mpp": mpp,
        "options": options_of(config),
        "software": versions(_SOFTWARE),
    }
    return xxhash.xxh64(json.dumps(content, sort_keys=True).encode()).hexdigest()


def options_of(config: PredictConfig) -> dict[str, Any]:
    """The options that the rates depend on."""
    return {k: v for k, v in asdict(config).items() if k not in _NOT_OF_THE_RATES}


def provenance(
    runs: Sequence[Run],
    encoder: Encoder,
    image: SlideImage,
    mpp: float,
    config: PredictConfig,
    tissue: Tissue,
    patches: PatchTable,
    share: float,
) -> dict[str, Any]:
    """What is recorded with a prediction; anything that JSON takes."""
    panel = runs[0].panel  # of factors, the table of loadings lists every gene
    return {
        "format": FORMAT,
        "unit": "expected UMIs a bin",
        "runs": [
            {
                "path": str(run.path) if config.keep_paths else run.path.resolve().name,
                "config": _config_hash(run),
                "decoder": run.config.decoder,
                "epoch": run.state["epoch"],
            }
            for run in runs
        ],
        "genes": {"id": list(panel.ids), "symbol": list(panel.symbols)},
        "encoder": runs[0].state["encoder"],
        "licence": encoder.licence,
        "image": {
            "name": image.path.name,
            "fingerprint": image.fingerprint(),
            "size_px": [image.width, image.height],
            "mpp": mpp,
            **image.provenance(),
        },
        "tissue": {"saturation_threshold": tissue.threshold, "covered": share},
        "n_patches": len(patches),
        "options": options_of(config),
        "software": versions(_SOFTWARE),
    }


def is_recorded(
    out: Path, runs: Sequence[Run], image: Path, config: PredictConfig
) -> dict[str, Any] | None:
    """Whether a finished output is a prediction of an image by these runs and options.

    Args:
        out: a prediction in any format, or anything else.
        runs, config: of the prediction.
        image: the slide image.

    Returns:
        Its number of patches, the share of the tissue in them and the slide's quality; None if it
        is something else.
    """
    try:
        about = _recorded(out)
        same = (
            about["format"] == FORMAT
            # What older versions did, which had no such options.
            and {"orientations": 1, "match_stain": False, **about["options"]}
            == {**options_of(config), "mpp": about["options"]["mpp"]}
            and config.mpp in (0.0, about["image"]["mpp"])
            and about["encoder"] == runs[0].state["encoder"]
            and about["image"]["fingerprint"] == image_fingerprint(image)
            and [(run["config"], run["epoch"]) for run in about["runs"]]
            == [(_config_hash(run), run.state["epoch"]) for run in runs]
        )
        found = {
            "n_patches": about["n_patches"],
            "covered": about["tissue"]["covered"],
            "quality": about.get("quality"),  # None in a prediction of an older version
        }
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None  # of something else
    return found if same else None


def _recorded(out: Path) -> Any:
    """What `provenance` made, as it lies in the output."""
    if out.is_dir():
        return json.loads((out / "zarr.json").read_text("utf-8"))["attributes"]["virchow_st"]
    if h5py.is_hdf5(out):
        with h5py.File(out) as file:
            return json.loads(file["uns/virchow_st"].asstr()[()])
    with np.load(out, allow_pickle=False) as file:
        return json.loads(str(file["virchow_st"]))


def _config_hash(run: Run) -> str:
    return xxhash.xxh64(to_toml(run.config).encode()).hexdigest()
