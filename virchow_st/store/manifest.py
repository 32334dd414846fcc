"""The manifest of a store, whose presence makes a folder a finished store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

from virchow_st.errors import StoreError
from virchow_st.names import is_plain
from virchow_st.runtime.lock import holder
from virchow_st.schema import Count, Length, MismatchError, Name, Within, check, read_json
from virchow_st.store.format import (
    FORMAT,
    FORMAT_WIDE,
    MAX_DIM,
    MAX_GENES,
    MAX_NARROW_GENES,
    MAX_PATCHES,
)
from virchow_st.types import PATCH_BINS

MANIFEST = "store.json"
JOB = "job.json"
DATA = "data.mdb"
LOCK = "writer.lock"

_U63 = Annotated[int, Within(0, (1 << 63) - 1)]
_Row = Annotated[list[float], Length(3, 3)]


class _Genes(TypedDict):
    id: list[str]
    symbol: list[str]
    total: list[_U63]


class _TissueBins(TypedDict):
    slide: Count
    patches: Count


class _Encoder(TypedDict):
    name: Name
    weights: str
    licence: str


class _File(TypedDict):
    name: NotRequired[str]
    fingerprint: NotRequired[str]


class _Inputs(TypedDict):
    image: NotRequired[_File]


class _Job(TypedDict):
    options: dict[str, Any]
    inputs: _Inputs


class _Registration(TypedDict):
    verdict: str
    shift_row_um: float
    shift_col_um: float
    uncertainty_um: float
    correlation: float
    correlation_at_zero: float
    strength: float
    searched_um: float


class Manifest(TypedDict):
    """Content of ``store.json``; docs/store-format.md describes the entries."""

    format: Literal["virchow_st.store/1", "virchow_st.store/2"]
    patient: Name
    slide: Name
    n_patches: Annotated[int, Within(0, MAX_PATCHES)]
    grid: Annotated[int, Within(1, PATCH_BINS)]
    dim: Annotated[int, Within(1, MAX_DIM)]
    token_dtype: Literal["float16", "int8"]
    token_um: Count
    token_layout: list[tuple[Count, Annotated[int, Within(1)]]]
    homography: Annotated[list[_Row], Length(3, 3)]
    mpp: float
    tissue_bins: _TissueBins
    encoder: _Encoder
    job: _Job
    software: dict[str, Any]
    records_xxh64: str
    registration: NotRequired[_Registration]


class _WithGenes(Manifest):
    genes: _Genes


def is_finished(store: Path) -> bool:
    """Whether the folder has a manifest, which extraction writes last."""
    return (store / MANIFEST).is_file()


def read_manifest(store: Path) -> dict[str, Any]:
    """Read the manifest of a finished store.

    Raises:
        StoreError: the folder is missing, is not a store or not finished, or the manifest is
            damaged or of an unknown format.
    """
    try:
        if not store.exists():
            raise StoreError(
                f"{store}: no such store; write it with `vst extract --store {store} …`"
            )
        if not is_finished(store):
            raise _unfinished(store)
    except OSError as e:
        raise StoreError(f"{store}: cannot be read ({e.strerror}); check permissions") from None
    content = read_json(
        store / MANIFEST, Any, "copy the store or extract it again", error=StoreError
    )
    actual = content.get("format") if isinstance(content, dict) else None
    if actual not in (FORMAT, FORMAT_WIDE):
        actual = actual if isinstance(actual, str | None) else type(actual).__name__
        raise StoreError(
            f"{store}: expected format {FORMAT} or {FORMAT_WIDE}, got {actual!r}; read it with "
            f"the version of virchow_st that wrote it, or extract the slide again"
        )
    try:
        check_manifest(content)
    except ValueError as e:
        raise StoreError(f"{store / MANIFEST}: {e}; copy the store or extract it again") from None
    return cast("dict[str, Any]", content)


def check_manifest(content: Any, with_genes: bool = True) -> None:
    """Check the content of a manifest.

    Args:
        content: the parsed JSON.
        with_genes: whether the list of genes is required and checked.

    Raises:
        ValueError: an entry is missing, of the wrong type, or out of range.
    """
    check(content, _WithGenes if with_genes else Manifest)
    if PATCH_BINS % content["grid"]:
        raise MismatchError(f"grid: expected a divisor of {PATCH_BINS}; got {content['grid']}")
    for start, side in content["token_layout"]:
        if start + side**2 > content["dim"]:
            raise MismatchError(
                f"token_layout: expected blocks within {content['dim']} channels; got "
                f"{[start, side]}"
            )
    if with_genes:
        _check_genes(content["format"], content["genes"])


def _check_genes(file_format: str, genes: dict[str, list[Any]]) -> None:
    ids, symbols = genes["id"], genes["symbol"]
    if len({len(ids), len(symbols), len(genes["total"])}) > 1:
        raise MismatchError("genes: expected id, symbol and total, lists of equal length")
    most = MAX_GENES if file_format == FORMAT_WIDE else MAX_NARROW_GENES
    if len(ids) > most:
        raise MismatchError(f"genes: expected at most {most} in {file_format}; got {len(ids)}")
    if len(set(ids)) < len(ids):
        raise MismatchError("genes: expected every id once")
    if not is_plain("".join([*ids, *symbols])):
        raise MismatchError("genes: expected ids and symbols without control characters")


def _unfinished(store: Path) -> StoreError:
    if not (store / JOB).is_file():
        return StoreError(
            f"{store}: not a store (no {MANIFEST}); give a folder `vst extract` wrote"
        )
    remedy = "run its `vst extract` again, it will resume"
    if (writer := holder(store / LOCK)) is not None:
        return StoreError(
            f"{store}: unfinished, being written by {writer}; wait for that to end, or {remedy}"
        )
    return StoreError(f"{store}: unfinished; {remedy}")
