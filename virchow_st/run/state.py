"""``state.json`` of a checkpoint: shapes of the decoder, progress of the training, and hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

from virchow_st.errors import ConfigError
from virchow_st.run.integrity import FILES, GENES, check_files, hash_file, hash_of
from virchow_st.run.lock import CHECKPOINTS
from virchow_st.runtime.atomic import settled
from virchow_st.schema import Count, Length, MismatchError, Name, Within, read_json
from virchow_st.store.format import MAX_DIM
from virchow_st.types import PATCH_BINS, SCALES_UM

FORMAT = "virchow_st.checkpoint/1"
STATE, TENSORS = "state.json", "tensors.safetensors"


class Encoder(TypedDict):
    """The encoder of the tokens that a decoder was trained on."""

    name: Name
    weights: str
    licence: str


TokenBlock = tuple[Count, Annotated[int, Within(1)]]


class State(TypedDict):
    """Content of ``state.json``; runs of older versions lack the hashes and ``token_layout``."""

    format: Literal["virchow_st.checkpoint/1"]
    epoch: Count
    best_epoch: Count
    best_score: float | None
    first_losses: Annotated[list[float], Length(1, len(SCALES_UM))] | None
    grid: Annotated[int, Within(1, PATCH_BINS)]
    dim: Annotated[int, Within(1, MAX_DIM)]
    encoder: Encoder
    token_layout: NotRequired[list[TokenBlock]]  # as in the manifest of the stores
    split_xxh64: NotRequired[str]
    files: NotRequired[dict[str, str]]
    n_factors: NotRequired[Count]  # with --panel all
    decoder_package: NotRequired[Name]  # that adds the decoder, where another package does
    exposure_xxh64: NotRequired[str]  # of exposure.json, in runs with an exposure
    tensors_xxh64: NotRequired[str]
    xxh64: NotRequired[str]


def _check_state(state: Any) -> None:
    """Raise `MismatchError` for what a type cannot say."""
    if PATCH_BINS % state["grid"]:
        raise MismatchError(f"grid: expected a divisor of {PATCH_BINS}; got {state['grid']}")
    if state["best_epoch"] > state["epoch"]:
        raise MismatchError(
            f"best_epoch: expected at most {state['epoch']}; got {state['best_epoch']}"
        )
    for start, side in state.get("token_layout", []):
        if start + side**2 > state["dim"]:
            raise MismatchError(
                f"token_layout: expected blocks within {state['dim']} channels; got {[start, side]}"
            )
    files = (*FILES, GENES) if "n_factors" in state else FILES
    if "files" in state and sorted(state["files"]) != sorted(files):
        raise MismatchError(f"files: expected the hashes of {', '.join(files)}")
    rest = {name: value for name, value in state.items() if name != "xxh64"}
    if state.get("xxh64", expected := hash_of(rest)) != expected:
        raise MismatchError("does not match its own hash, so it was changed")


def read_state(folder: Path) -> dict[str, Any]:
    """Read the JSON part of a checkpoint; raises `ConfigError` for anything but a `State`."""
    file = settled(folder) / STATE
    if not file.is_file():
        raise ConfigError(f"{folder}: no checkpoint there; run `vst train` first")
    state = read_json(file, State, "copy the run again, or train again", also=_check_state)
    return cast("dict[str, Any]", state)


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with the hash over all of its other entries, ``xxh64``, computed anew."""
    content = {name: value for name, value in state.items() if name != "xxh64"}
    return {**content, "xxh64": hash_of(content)}


def tensors_file(folder: Path, state: Mapping[str, Any]) -> Path:
    """Path of a checkpoint's tensors, after comparing the file's hash with that in the state.

    Raises:
        ConfigError: there is no such file, or it is not the one that was saved with the state.
    """
    file = settled(folder) / TENSORS
    if not file.is_file():
        raise ConfigError(f"{file}: cannot be read (no such file); train again")
    if state.get("tensors_xxh64", found := hash_file(file)) != found:
        raise ConfigError(
            f"{file}: is damaged, its hash is {found}, expected {state['tensors_xxh64']}; copy the "
            f"run again, or train again"
        )
    return file


def check_run(run: Path) -> None:
    """Raise `ConfigError` unless configuration, panel and split are those the run was trained with.

    A folder that holds only results, without checkpoints, passes.
    """
    best = run / CHECKPOINTS / "best"
    if (settled(best) / STATE).is_file():
        check_files(run, read_state(best))
