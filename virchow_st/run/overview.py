"""Small images and masks of a run's slides, for figures that show the split without the stores.

``overview.h5``: attributes ``format``, ``bin_um`` and ``block_um``, and one group per slide, ``0``,
``1``, … in the order of the run's stores. Of each group, attributes ``name`` (that of the slide's
maps and pictures), ``patient``, ``row0``, ``col0`` (array_row and array_col of the first bin) and
``um_per_px``, 1, 2, 4, …; datasets ``image`` (2R, 2C, 3) / um_per_px, uint8; ``tissue_mask`` and
``validity_mask`` (R, C) bool, tissue and the bins on the slide image, False outside of patches; and
of its P patches ``patch_row0``, ``patch_col0``, ``patch_part`` (0 training, 1 validation, 2 test),
``patch_block`` (the spatial block, −1 where it is not a test patch) int32, and ``patch_total_umi``
int64, all (P,).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.names import file_names
from virchow_st.run.hdf5 import Window, array, heading, naming_file, open_hdf5, patch_windows
from virchow_st.run.split import PARTS, Member, Split
from virchow_st.runtime.atomic import written_whole
from virchow_st.runtime.hdf5 import written_hdf5
from virchow_st.types import (
    BIN_UM,
    PATCH_BINS,
    STORED_IMAGE_PX,
    BoolArray,
    Int64Array,
    UInt8Array,
)

if TYPE_CHECKING:
    from virchow_st.store.reader import Patch, Store

FORMAT = "virchow_st.overview/1"
OVERVIEW = "overview.h5"
LONGEST_PX = 1700
"""Most pixels along a slide's longer side; a full slide of 26 patches has 1664, at 4 µm/px."""


def slide_names(stores: Sequence[Store]) -> list[str]:
    """Names of slides in result files: the patient, with a number if a patient has several."""
    return slide_names_of([store.patient for store in stores])


def slide_names_of(patients: Sequence[str]) -> list[str]:
    """As `slide_names`, from the patient of each of the run's stores.

    Example:
        >>> slide_names_of(["P1", "P2", "P1"])
        ['P1-0', 'P2', 'P1-2']
    """
    times = Counter(patients)
    names: list[str] = []
    for i, patient in enumerate(patients):
        name = patient
        while times[patient] > 1 and (name in times or name in names):
            name += f"-{i}"
        names.append(name)
    return names


def write_overview(
    path: Path, stores: Sequence[Store], split: Split, block_of: Mapping[Member, int], block_um: int
) -> None:
    """Write the slides of a run; the file appears under its name when complete.

    Args:
        path: of the file.
        stores: of the run, in its order.
        split: which patches train, validate and test.
        block_of: the spatial block of each test patch.
        block_um: side of a block, µm.
    """
    part_of = {member: i for i, name in enumerate(PARTS) for member in getattr(split, name)}
    with written_whole(path) as aside, written_hdf5(aside) as output:
        file = output.file
        file.attrs.update(format=FORMAT, bin_um=BIN_UM, block_um=block_um)
        for i, (store, name) in enumerate(zip(stores, slide_names(stores), strict=True)):
            members = sorted(member for member in part_of if member.store == i)
            if not members:
                continue
            group = file.create_group(str(i))
            group.attrs.update(name=name, patient=store.patient)
            _write_slide(group, [store[member.patch] for member in members])
            group["patch_part"] = np.array([part_of[m] for m in members], np.int32)
            group["patch_block"] = np.array([block_of.get(m, -1) for m in members], np.int32)
            output.check()


def _write_slide(group: h5py.Group, patches: Sequence[Patch]) -> None:
    infos = [patch.info for patch in patches]
    row0, col0 = min(info.row0 for info in infos), min(info.col0 for info in infos)
    rows = max(info.row0 for info in infos) + PATCH_BINS - row0
    cols = max(info.col0 for info in infos) + PATCH_BINS - col0
    shrink = 1
    while max(rows, cols) * STORED_IMAGE_PX // PATCH_BINS > shrink * LONGEST_PX:
        shrink *= 2
    px = STORED_IMAGE_PX // shrink
    tissue, valid = np.zeros((rows, cols), bool), np.zeros((rows, cols), bool)
    image = np.full((rows // PATCH_BINS * px, cols // PATCH_BINS * px, 3), 255, np.uint8)
    for patch, info in zip(patches, infos, strict=True):
        row, col = info.row0 - row0, info.col0 - col0
        bins = np.s_[row : row + PATCH_BINS, col : col + PATCH_BINS]
        tissue[bins], valid[bins] = patch.tissue_mask, patch.validity_mask
        top, left = row // PATCH_BINS * px, col // PATCH_BINS * px
        squares = patch.image.reshape(px, shrink, px, shrink, 3)
        image[top : top + px, left : left + px] = squares.mean(axis=(1, 3)).round()
    packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 1}
    group.attrs.update(row0=row0, col0=col0, um_per_px=shrink)
    group.create_dataset("image", data=image, **packed)
    group.create_dataset("tissue_mask", data=tissue, **packed)
    group.create_dataset("validity_mask", data=valid, **packed)
    group["patch_row0"] = np.array([info.row0 for info in infos], np.int32)
    group["patch_col0"] = np.array([info.col0 for info in infos], np.int32)
    group["patch_total_umi"] = np.array([info.total_umi for info in infos], np.int64)


@dataclass(frozen=True, eq=False)
class SlideOverview:
    """A slide of the run at reduced size; arrays are in bin orientation.

    Attributes:
        name, file_name: name of the slide, and its form in names of figure files.
        patient: whose slide it is.
        image: (2R, 2C, 3) / um_per_px, uint8 RGB.
        um_per_px: of the image.
        tissue_mask: (R, C) bool, True = tissue.
        validity_mask: (R, C) bool, bins on the slide image; False outside of patches.
        patches: (P,) where the patches lie in the arrays.
        parts: (P,) int64, places in `PARTS`.
        blocks: (P,) int64, spatial blocks of test patches, −1 for others.
        block_um: side of a block.
        total_umi: (P,) int64, UMIs of all genes.
    """

    name: str
    file_name: str
    patient: str
    image: UInt8Array
    um_per_px: int
    tissue_mask: BoolArray
    validity_mask: BoolArray
    patches: tuple[Window, ...]
    parts: Int64Array
    blocks: Int64Array
    block_um: int
    total_umi: Int64Array

    @property
    def heading(self) -> str:
        """Name of the slide in titles."""
        return heading(self.patient, self.name)

    @property
    def whole(self) -> Window:
        """The whole slide as a window."""
        return Window(0, 0, *self.tissue_mask.shape)


def read_overviews(run: Path) -> Iterator[SlideOverview]:
    """Iterate over the slides of ``overview.h5``, in the order of the run's stores.

    Raises `ConfigError` for a file that is missing, damaged or of another format.
    """
    path = run / OVERVIEW
    if not path.is_file():
        raise ConfigError(f"{path}: not found; run `vst evaluate {run}` first")
    with open_hdf5(path, FORMAT) as file:
        with naming_file(path):
            keys = sorted(file, key=lambda name: (len(name), name))
            files = file_names([str(file[key].attrs["name"]) for key in keys])
        for key, file_name in zip(keys, files, strict=True):
            with naming_file(path):
                slide = _read_slide(file[key], int(file.attrs["block_um"]), file_name)
            yield slide


def _read_slide(group: Any, block_um: int, file_name: str) -> SlideOverview:
    tissue = array(group, "tissue_mask", "b")
    rows, cols = tissue.shape
    um_per_px = int(group.attrs["um_per_px"])
    if not 1 <= um_per_px <= STORED_IMAGE_PX or block_um < 1:
        raise ValueError(f"expected 1 to {STORED_IMAGE_PX} µm/px and blocks of 1 µm or more")
    patches, blocks = patch_windows(group, rows, cols)
    parts = array(group, "patch_part", "iu", blocks.shape).astype(np.int64)
    if not ((parts >= 0) & (parts < len(PARTS))).all():
        raise ValueError(f"patch_part: expected 0 to {len(PARTS) - 1}")
    side = 2 * rows // um_per_px, 2 * cols // um_per_px, 3
    return SlideOverview(
        name=str(group.attrs["name"]),
        file_name=file_name,
        patient=str(group.attrs["patient"]),
        image=array(group, "image", "u", side),
        um_per_px=um_per_px,
        tissue_mask=tissue,
        validity_mask=array(group, "validity_mask", "b", (rows, cols)),
        patches=patches,
        parts=parts,
        blocks=blocks,
        block_um=block_um,
        total_umi=array(group, "patch_total_umi", "iu", blocks.shape).astype(np.int64),
    )
