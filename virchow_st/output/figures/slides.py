"""Read what ``vst evaluate`` left of slides: maps of the test slides, overviews of all.

=======================  =================================================================
file                     read as
=======================  =================================================================
``maps/<slide>.h5``      `SlideResult`, its gene layers read one at a time
``overview.h5``          `SlideOverview`, one a slide of the run
=======================  =================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.output.figures.rasters import Window
from virchow_st.output.figures.results import Gene
from virchow_st.types import PATCH_BINS, Array, BoolArray, Float32Array, Int64Array, UInt8Array

MAPS_FORMAT = "virchow_st.maps/1"
OVERVIEW_FORMAT = "virchow_st.overview/1"
PARTS = ("training", "validation", "test")
"""What ``patch_part`` of an overview counts through."""


@dataclass(frozen=True)
class SlideResult:
    """One test slide, open for reading; arrays are in bin orientation (row down = array_row up)."""

    path: Path
    name: str  # the patient, with a number where a patient has several slides
    patient: str
    row0: int  # array_row of the first bin
    col0: int  # array_col of the first bin
    genes: tuple[Gene, ...]
    scored_mask: BoolArray  # (R, C), True for tissue bins of evaluated patches
    image: UInt8Array  # (2R, 2C, 3), 1 µm/px
    patches: tuple[Window, ...]  # (P,) where the evaluated patches lie in the arrays
    blocks: Int64Array  # (P,) their spatial blocks, numbered through all test slides
    _file: Any

    @property
    def heading(self) -> str:
        """What a title calls the slide."""
        return _heading(self.patient, self.name)

    @property
    def whole(self) -> Window:
        """All of the slide."""
        return Window(0, 0, *self.scored_mask.shape)

    def layers(self, gene: Gene) -> tuple[Float32Array, Array]:
        """Rate float32 and counts uint16, both (R, C) and per 2 µm bin, of one gene."""
        ids = [g.id for g in self.genes]
        if gene.id not in ids:
            raise ConfigError(
                f"{self.path}: gene {gene.id} of per_gene.csv is not in it; run vst evaluate again"
            )
        g = ids.index(gene.id)
        rate = self._file["rate"][g].astype(np.float32)
        return rate, self._file["counts"][g].astype(np.uint16, copy=False)


def find_maps(run: Path) -> list[Path]:
    """The maps files of a run in order of their names; `ConfigError` if there is none."""
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder; give the folder that vst train wrote")
    paths = sorted((run / "maps").glob("*.h5"))
    if not paths:
        raise ConfigError(f"{run / 'maps'}: holds no .h5 file; run `vst evaluate {run}` first")
    return paths


@contextmanager
def open_maps(path: Path) -> Iterator[SlideResult]:
    """Open ``maps/<slide>.h5``; masks, image and patches are read now, genes when asked for.

    Raises `ConfigError` for a file that is damaged or of another format.
    """
    with _open(path, MAPS_FORMAT) as file:
        yield _slide_result(path, file)


def _slide_result(path: Path, file: Any) -> SlideResult:
    try:
        shape = file["rate"].shape
        ids, symbols = file["gene_id"].asstr()[:], file["gene_symbol"].asstr()[:]
        slide = SlideResult(
            path=path,
            name=path.stem,
            patient=str(file.attrs["patient"]),
            row0=int(file.attrs["row0"]),
            col0=int(file.attrs["col0"]),
            genes=tuple(Gene(str(i), str(s)) for i, s in zip(ids, symbols, strict=True)),
            scored_mask=file["scored_mask"][:].astype(bool),
            image=file["image"][:],
            patches=_patches(file),
            blocks=file["patch_block"][:].astype(np.int64),
            _file=file,
        )
        counts_shape = file["counts"].shape
    except (KeyError, ValueError) as e:
        raise ConfigError(f"{path}: incomplete ({e}); run vst evaluate again") from None
    rows, cols = slide.scored_mask.shape
    want = (len(slide.genes), rows, cols)
    if not (shape == counts_shape == want and slide.image.shape == (2 * rows, 2 * cols, 3)):
        raise ConfigError(
            f"{path}: expected rate and counts {want} and image {(2 * rows, 2 * cols, 3)}; got "
            f"{shape}, {counts_shape} and {slide.image.shape}; run vst evaluate again"
        )
    _check_inside(path, slide.patches, slide.blocks, rows, cols)
    return slide


@dataclass(frozen=True)
class SlideOverview:
    """A slide of the run, small; arrays are in bin orientation."""

    name: str
    patient: str
    image: UInt8Array  # (2R, 2C, 3) / um_per_px
    um_per_px: int
    tissue_mask: BoolArray  # (R, C)
    validity_mask: BoolArray  # (R, C), bins on the slide image; False outside of patches
    patches: tuple[Window, ...]  # (P,)
    parts: Int64Array  # (P,) places in `PARTS`
    blocks: Int64Array  # (P,) spatial blocks of test patches, −1 for others
    block_um: int
    total_umi: Int64Array  # (P,) UMIs of all genes

    @property
    def heading(self) -> str:
        """What a title calls the slide."""
        return _heading(self.patient, self.name)

    @property
    def whole(self) -> Window:
        """All of the slide."""
        return Window(0, 0, *self.tissue_mask.shape)


def _heading(patient: str, name: str) -> str:
    return f"patient {patient}" if name == patient else f"patient {patient}, slide {name}"


def read_overviews(run: Path) -> Iterator[SlideOverview]:
    """The slides of ``overview.h5``, one after another, in the order of the run's stores.

    Raises `ConfigError` for a file that is missing, damaged or of another format.
    """
    path = run / "overview.h5"
    if not path.is_file():
        raise ConfigError(f"{path}: not found; run `vst evaluate {run}` first")
    with _open(path, OVERVIEW_FORMAT) as file:
        for key in sorted(file, key=lambda name: (len(name), name)):
            try:
                slide = _slide_overview(file[key], int(file.attrs["block_um"]))
                rows, cols = slide.tissue_mask.shape
                side = (2 * rows // slide.um_per_px, 2 * cols // slide.um_per_px, 3)
                if slide.validity_mask.shape != (rows, cols) or slide.image.shape != side:
                    raise ValueError(f"slide {slide.name}: masks and image do not fit")
            except (KeyError, ValueError) as e:
                raise ConfigError(f"{path}: incomplete ({e}); run vst evaluate again") from None
            _check_inside(path, slide.patches, slide.blocks, rows, cols)
            yield slide


def _slide_overview(group: Any, block_um: int) -> SlideOverview:
    return SlideOverview(
        name=str(group.attrs["name"]),
        patient=str(group.attrs["patient"]),
        image=group["image"][:],
        um_per_px=int(group.attrs["um_per_px"]),
        tissue_mask=group["tissue_mask"][:].astype(bool),
        validity_mask=group["validity_mask"][:].astype(bool),
        patches=_patches(group),
        parts=group["patch_part"][:].astype(np.int64),
        blocks=group["patch_block"][:].astype(np.int64),
        block_um=block_um,
        total_umi=group["patch_total_umi"][:].astype(np.int64),
    )


@contextmanager
def _open(path: Path, expected: str) -> Iterator[Any]:
    try:
        file = h5py.File(path, "r")
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read as HDF5 ({e}); run vst evaluate again") from None
    with file:
        if (found := file.attrs.get("format")) != expected:
            raise ConfigError(
                f"{path}: expected format {expected!r}; got {found!r}; run vst evaluate again"
            )
        yield file


def _patches(group: Any) -> tuple[Window, ...]:
    rows = group["patch_row0"][:].astype(int) - int(group.attrs["row0"])
    cols = group["patch_col0"][:].astype(int) - int(group.attrs["col0"])
    places = zip(rows.tolist(), cols.tolist(), strict=True)
    return tuple(Window(row, col, PATCH_BINS, PATCH_BINS) for row, col in places)


def _check_inside(
    path: Path, patches: tuple[Window, ...], blocks: Int64Array, rows: int, cols: int
) -> None:
    inside = all(
        0 <= p.row <= rows - PATCH_BINS and 0 <= p.col <= cols - PATCH_BINS for p in patches
    )
    if not inside or not patches or len(patches) != len(blocks):
        raise ConfigError(
            f"{path}: expected patches inside of {rows} × {cols} bins, and a block for each; got "
            f"others; run vst evaluate again"
        )
