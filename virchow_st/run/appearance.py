"""``appearance.json`` of a run: how the slides of its training patients look, without their names.

Slides that are predicted later are compared with it. A run of an older version has none, or one of
format 1, whose strengths are along other directions of the stains and cannot be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from virchow_st.errors import ConfigError
from virchow_st.metrics.appearance import Appearance
from virchow_st.run.integrity import CONFIG
from virchow_st.runtime.atomic import write_json
from virchow_st.schema import Length, Within, read_json

APPEARANCE = "appearance.json"
FORMAT = "virchow_st.appearance/2"
_Strength = Annotated[float, Within(0.001)]


class _Patient(TypedDict):
    haematoxylin: _Strength
    eosin: _Strength
    colour: Annotated[list[float], Length(3, 3)]
    sharpness: Annotated[float, Within(0)]


class _File(TypedDict):
    format: Literal["virchow_st.appearance/1", "virchow_st.appearance/2"]
    patients: list[_Patient]


def write_appearance(run: Path, patients: Sequence[Appearance]) -> None:
    """Write the file: an entry per training patient, in no order that tells who it is."""
    entries = sorted((asdict(patient) for patient in patients), key=lambda e: e["haematoxylin"])
    write_json(run / APPEARANCE, {"format": FORMAT, "patients": entries})


def read_appearance(run: Path) -> tuple[Appearance, ...]:
    """The training patients' appearances; empty for a run of an older version.

    Raises:
        ConfigError: the file is damaged.
    """
    if not (run / APPEARANCE).exists():
        return ()
    found: _File = read_json(run / APPEARANCE, _File, "copy the run again, or train again")
    if found["format"] != FORMAT:
        return ()
    return tuple(
        Appearance(p["haematoxylin"], p["eosin"], (p["colour"][0], p["colour"][1], p["colour"][2]),
                   p["sharpness"])
        for p in found["patients"]
    )  # fmt: skip


def known_appearance(run: Path) -> tuple[Appearance, ...]:
    """How the training patients of a run look.

    Raises:
        ConfigError: there is no run, or it is of a version that did not keep this.
    """
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run}: expected a run of vst train; found none; check --match-stain")
    if not (training := read_appearance(run)):
        raise ConfigError(
            f"{run}: expected {APPEARANCE} of format 2, which says how strong the stains of its "
            "training slides are; found none, as in runs of older versions; train again, or leave "
            "out --match-stain"
        )
    return training
