"""Divides patients into test and training, and training patches into training and validation."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

import numpy as np
import xxhash

from virchow_st.errors import ConfigError
from virchow_st.runtime.atomic import write_json
from virchow_st.runtime.progress import Progress
from virchow_st.schema import Count, Length, MismatchError, Name, read_json
from virchow_st.store.patients import alike_warnings
from virchow_st.types import PATCH_BINS, Int64Array

if TYPE_CHECKING:
    from virchow_st.store.reader import Store

VALIDATION_SHARE = 0.15
BLOCK_PATCHES = 2
"""Side of a spatial block in patches, 512 µm: wider than tissue texture repeats."""
LEAST_BLOCKS = 8
"""Where a bootstrap would draw from fewer blocks than these, they have a side of one patch."""


@dataclass(frozen=True, order=True)
class Member:
    """A patch of a run: index of the run's store, and index of the patch in it."""

    store: int
    patch: int


@dataclass(frozen=True)
class Split:
    """The training, validation and test patches of a run; a test patient is in no other part.

    Attributes:
        train, validation, test: patches.
        slides: hash over all records of each of the run's stores; it changes when a store is
            extracted again.
    """

    train: tuple[Member, ...]
    validation: tuple[Member, ...]
    test: tuple[Member, ...]
    slides: tuple[str, ...]

    def write(self, path: Path, stores: Sequence[Store]) -> None:
        """Write as JSON, grouped by store, with the hash `xxh64`."""
        content = {**self._content(stores), "xxh64": self.xxh64(stores)}
        write_json(path, {"format": _FORMAT, **content})

    def xxh64(self, stores: Sequence[Store]) -> str:
        """Hash over the whole split; the run's checkpoints and results hold it as well."""
        return _digest(self._content(stores))

    def _content(self, stores: Sequence[Store]) -> dict[str, Any]:
        return {
            "slides": [
                {"store": i, "patient": store.patient, "records_xxh64": slide}
                for i, (store, slide) in enumerate(zip(stores, self.slides, strict=True))
            ],
            **{name: _by_store(getattr(self, name), stores) for name in PARTS},
        }

    @classmethod
    def read(cls, path: Path) -> Split:
        """Read a split written by `write`; raises `ConfigError` for anything else."""
        return cls.of(read_split(path))

    @classmethod
    def of(cls, content: SplitFile) -> Split:
        """Convert the content of ``split.json`` to a split."""
        train, validation, test = (
            tuple(Member(store["store"], patch) for store in part for patch in store["patches"])
            for part in (content["train"], content["validation"], content["test"])
        )
        slides = tuple(slide["records_xxh64"] for slide in content["slides"])
        return cls(train, validation, test, slides)

    def check_stores(self, stores: Sequence[Store]) -> None:
        """Raise `ConfigError` unless these are the stores that the split was made of."""
        for store, slide in zip(stores, self.slides, strict=True):
            if store.manifest["records_xxh64"] != slide:
                raise ConfigError(
                    f"{store.path}: is not the store the run was trained with, its records differ; "
                    f"train again"
                )


_FORMAT = "virchow_st.split/1"


class _Slide(TypedDict):
    store: Count
    patient: Name
    records_xxh64: str


class _Patches(TypedDict):
    store: Count
    patient: Name
    patches: list[Count]


class SplitFile(TypedDict):
    """Content of ``split.json``."""

    format: Literal["virchow_st.split/1"]
    slides: Annotated[list[_Slide], Length(1)]
    train: list[_Patches]
    validation: list[_Patches]
    test: list[_Patches]
    xxh64: str


def read_split(path: Path) -> SplitFile:
    """Read ``split.json`` and compare its hash; raises `ConfigError` for anything else."""
    return cast("SplitFile", read_json(path, SplitFile, "train again", also=_check_split))


def with_patients(content: SplitFile, name_of: Mapping[str, str]) -> SplitFile:
    """The same split with other names of the patients, and its hash computed anew.

    Args:
        content: what `read_split` read.
        name_of: the new name of every patient, by the old one.
    """
    rest: dict[str, Any] = {
        part: [{**e, "patient": name_of[e["patient"]]} for e in content[part]]  # type: ignore[literal-required]
        for part in ("slides", *PARTS)
    }
    return cast("SplitFile", {"format": _FORMAT, **rest, "xxh64": _digest(rest)})


def _check_split(content: Any) -> None:
    rest = {name: value for name, value in content.items() if name not in ("format", "xxh64")}
    if content["xxh64"] != _digest(rest):
        raise MismatchError("does not match its hash, so the split was changed")
    n_stores = len(content["slides"])
    for part in PARTS:
        if any(store["store"] >= n_stores for store in content[part]):
            raise MismatchError(f"{part}: expected stores of 0 to {n_stores - 1}")


PARTS = ("train", "validation", "test")
"""Parts of a split, in the order in which result files count through them."""


def _by_store(members: Sequence[Member], stores: Sequence[Store]) -> list[dict[str, Any]]:
    return [
        {
            "store": i,
            "patient": store.patient,
            "patches": sorted(m.patch for m in members if m.store == i),
        }
        for i, store in enumerate(stores)
        if any(m.store == i for m in members)
    ]


def _digest(content: dict[str, Any]) -> str:
    return xxhash.xxh64(json.dumps(content, sort_keys=True).encode()).hexdigest()


def split_patients(stores: Sequence[Store], test_patient: str, seed: int) -> Split:
    """Hold out one patient for the test, and spatial blocks of the others for validation.

    Args:
        stores: stores of all patients, one or several per patient.
        test_patient: the patient whose stores are the test set.
        seed: seed of the draw of validation blocks.

    Raises:
        ConfigError: the patient is not there, no other patient is, a slide is given twice, or one
            is too small.
    """
    patients = sorted({store.patient for store in stores})
    if test_patient not in patients:
        raise ConfigError(
            f"test patient: expected one of {', '.join(patients)}; got {test_patient!r}"
        )
    if len(patients) == 1:
        raise ConfigError(
            f"test patient: all stores are of {test_patient}; give those of another patient too"
        )
    from virchow_st.store.same_slide import check_different_slides  # loads the store's libraries

    check_different_slides(stores)
    train: list[Member] = []
    validation: list[Member] = []
    test: list[Member] = []
    for i, store in enumerate(stores):
        members = [Member(i, p) for p in range(len(store))]
        if store.patient == test_patient:
            test += members
            continue
        held_out = _validation_patches(store, range(len(store)), np.random.default_rng([seed, i]))
        train += [m for m in members if m.patch not in held_out]
        validation += [m for m in members if m.patch in held_out]
    if not train or not validation:
        raise ConfigError("stores: expected at least two training patches; give larger slides")
    slides = tuple(store.manifest["records_xxh64"] for store in stores)
    return Split(tuple(train), tuple(validation), tuple(test), slides)


def split_blocks(store: Store, test: Collection[int], seed: int) -> Split:
    """Hold out patches of one slide for the test, and spatial blocks of the others for validation.

    Args:
        store: the slide's store.
        test: indices of the patches that are the test set.
        seed: seed of the draw of validation blocks.

    Raises:
        ConfigError: fewer than two patches with tissue are left to train on and to validate.
    """
    rest = [p for p, patch in enumerate(store) if p not in test and patch.tissue_mask.any()]
    held_out = _validation_patches(store, rest, np.random.default_rng([seed, 0]))
    train, validation, tested = (
        tuple(Member(0, p) for p in sorted(part))
        for part in (set(rest) - held_out, held_out, set(test))
    )
    if not train or not validation:
        raise ConfigError(
            f"{store.path}: expected at least two patches to train on beside those left out; got "
            f"{len(rest)} of {len(store)}; give a larger slide"
        )
    return Split(train, validation, tested, (store.manifest["records_xxh64"],))


def warn_of_alike_patients(stores: Sequence[Store], progress: Progress) -> None:
    """Warn if names of two patients differ only in upper and lower case or in spaces."""
    for warning in alike_warnings(store.patient for store in stores):
        progress.warn(warning)


def square_blocks(row: Int64Array, col: Int64Array, side: int) -> Int64Array:
    """Number of the square block that each of N places lies in.

    Args:
        row, col: (N,) places, in any unit.
        side: of a block, in the same unit; the first block begins at (0, 0).

    Returns:
        (N,) int64 from 0 on, row-major over those blocks that hold a place.

    Example:
        >>> import numpy as np
        >>> square_blocks(np.array([0, 3, 1]), np.array([5, 0, 4]), side=2).tolist()
        [0, 1, 0]
    """
    places = np.stack([row // side, col // side], axis=1)
    return np.unique(places, axis=0, return_inverse=True)[1].reshape(-1)


def _validation_patches(store: Store, among: Sequence[int], rng: np.random.Generator) -> set[int]:
    """Patches of whole blocks, drawn until they make up the validation share of those given."""
    infos = [store.patch_table[p] for p in among]
    row0, col0 = (np.array(x, np.int64) for x in ([i.row0 for i in infos], [i.col0 for i in infos]))
    for size in (BLOCK_PATCHES, 1):  # a slide too small for several blocks is cut finer
        block_of = square_blocks(row0, col0, size * PATCH_BINS)
        n_blocks = int(block_of.max(initial=-1)) + 1
        if n_blocks >= 4:
            break
    if n_blocks < 2:
        return set()
    share = VALIDATION_SHARE * len(among)
    held_out: set[int] = set()
    for i in rng.permutation(n_blocks)[:-1]:
        block = [among[p] for p in np.flatnonzero(block_of == i).tolist()]
        if held_out and len(held_out) + len(block) > 2 * share:
            continue  # on a small slide, one more whole block may take half of it
        held_out.update(block)
        if len(held_out) >= share:
            break
    return held_out
