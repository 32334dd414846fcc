"""Exposure of slides: what multiplies all rates of a bin and is no expression.

The expected UMIs of a gene in a bin are exposure × rate. The exposure of a tissue bin is its
slide's depth times the efficiencies of its row and of its column; outside tissue it is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.metrics.stripes import Stripes, estimate_stripes
from virchow_st.run.integrity import hash_file
from virchow_st.run.panel import shared_places
from virchow_st.runtime.atomic import write_json
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.schema import Count, Length, Name, Within, read_json
from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import Store
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, Float32Array, Int64Array

FORMAT = "virchow_st.exposure/1"
EXPOSURE = "exposure.json"
"""File of a run that was trained with an exposure."""
_DECIMALS = 6  # in which efficiencies are kept and written


@dataclass(frozen=True)
class SlideExposure:
    """Depth of a slide, and efficiencies of its rows and columns of 2 µm bins.

    Attributes:
        depth: Total UMIs of all genes per 2 µm tissue bin, at row and column efficiencies of 1; 0
            without UMIs.
        row0, col0: array_row and array_col of the first row and column.
        rows, cols: Efficiencies of the rows and columns from there on, with their errors. Where
            there are no stripes, they are exactly 1.
    """

    depth: float
    row0: int
    col0: int
    rows: Stripes
    cols: Stripes

    @property
    def has_stripes(self) -> bool:
        """Whether any efficiency differs from 1."""
        return bool(self.rows.sd or self.cols.sd)

    def of_patch(self, info: PatchInfo) -> Float32Array:
        """Row × column efficiency of the bins of a patch, (128, 128) float32, depth left out.

        Raises:
            ConfigError: The patch lies outside the slide that was measured.
        """
        row, col = info.row0 - self.row0, info.col0 - self.col0
        rows = self.rows.efficiency[max(row, 0) : row + PATCH_BINS]
        cols = self.cols.efficiency[max(col, 0) : col + PATCH_BINS]
        if row < 0 or col < 0 or len(rows) < PATCH_BINS or len(cols) < PATCH_BINS:
            raise ConfigError(
                f"exposure: expected rows {info.row0} to {info.row0 + PATCH_BINS} and columns "
                f"{info.col0} to {info.col0 + PATCH_BINS} of the slide; it has "
                f"{len(self.rows.efficiency)} rows from {self.row0} and "
                f"{len(self.cols.efficiency)} columns from {self.col0}; train again"
            )
        return np.outer(rows, cols).astype(np.float32)

    def without_stripes(self) -> SlideExposure:
        """The same with all efficiencies 1, as ``--exposure depth`` takes it."""
        flat = (
            Stripes(np.ones(len(s.efficiency)), np.zeros(len(s.efficiency)), 0.0)
            for s in (self.rows, self.cols)
        )
        rows, cols = flat
        return SlideExposure(self.depth, self.row0, self.col0, rows, cols)

    def summary(self) -> dict[str, Any]:
        """Numbers that tell how large the stripes are, as ``vst inspect`` and results show them.

        ``row_sd`` and ``col_sd`` are standard deviations of the logarithms of the efficiencies, 0
        without stripes; ``row_se`` and ``col_se`` the root mean squares of their standard errors.
        """
        return {
            "umis_per_bin": self.depth,
            "row_sd": self.rows.sd,
            "row_se": self.rows.mean_se,
            "col_sd": self.cols.sd,
            "col_se": self.cols.mean_se,
        }


def slide_exposure(
    store: Store, progress: Progress = SILENT, genes: Int64Array | None = None
) -> SlideExposure:
    """Estimate the exposure of a store's slide from the total UMIs of all its patches.

    See `virchow_st.metrics.stripes` for the method. Takes 8 bytes per bin of the rectangle around
    the patches, and reads the counts once.

    Args:
        store: A finished store.
        progress: Receives the number of patches read.
        genes: Indices of the genes to sum, such as those that a cohort's stores share, whose depths
            could not be compared otherwise; all by default.

    Raises:
        ConfigError: The store has no patches.
        StoreError: The store is damaged.

    Example:
        >>> found = slide_exposure(store)  # doctest: +SKIP
        >>> found.rows.efficiency.shape, found.has_stripes  # doctest: +SKIP
        ((3328,), True)
    """
    infos = store.patch_table
    if not infos:
        raise ConfigError(f"{store.path}: expected patches to measure the exposure of; found none")
    starts = np.array([(info.row0, info.col0) for info in infos], np.int64)
    row0, col0 = (int(x) for x in starts.min(axis=0))
    n_rows, n_cols = (int(n) for n in starts.max(axis=0) - (row0, col0) + PATCH_BINS)
    umis, tissue = np.zeros((n_rows, n_cols), np.float32), np.zeros((n_rows, n_cols), bool)
    for n, patch in enumerate(store):
        info = infos[n]
        row, col = info.row0 - row0, info.col0 - col0
        at = slice(row, row + PATCH_BINS), slice(col, col + PATCH_BINS)
        if genes is None:
            stored = patch.sparse_counts
            of_bins = np.bincount(stored.positions, stored.counts, PATCH_POSITIONS)
        else:
            of_genes = patch.panel_counts(genes)
            of_bins = np.bincount(of_genes.position, of_genes.count, PATCH_POSITIONS)
        umis[at] = of_bins.reshape(PATCH_BINS, PATCH_BINS)
        tissue[at] = patch.tissue_mask
        progress.step(n + 1, len(store), "patches read for their exposure", store.patient)
    total = float(umis[tissue].sum(dtype=np.float64))
    rows, cols = (s.rounded(_DECIMALS) for s in estimate_stripes(umis, tissue))
    n_exposed = float(rows.efficiency @ (tissue @ cols.efficiency))
    return SlideExposure(total / max(n_exposed, 1.0), row0, col0, rows, cols)


@dataclass(frozen=True)
class CohortExposure:
    """Exposure of the slides of a run, relative to the training slides.

    Where stores list different genes, depths are those of the genes that all stores of the run
    list.

    Attributes:
        mode: ``auto``, depth and stripes; or ``depth`` alone.
        reference: Geometric mean of the training slides' depths, UMIs per bin.
        slides: Exposure of each slide, by the index of its store.
    """

    mode: str
    reference: float
    slides: Mapping[int, SlideExposure]

    @classmethod
    def of_training(
        cls,
        mode: str,
        stores: Sequence[Store],
        training: Sequence[int],
        progress: Progress = SILENT,
    ) -> CohortExposure:
        """Measure the training slides.

        Args:
            mode: ``auto`` or ``depth``.
            stores: Stores of the run; of those that do not train, only the list of genes is read.
            training: Indices of the training slides' stores.
            progress: Receives the number of patches read, and a line per slide.

        Raises:
            ConfigError: A slide has no UMIs in tissue.
        """
        slides = {}
        shared = shared_places(stores)
        for i in training:
            genes = None if shared is None else shared[i]
            slides[i] = _in_mode(slide_exposure(stores[i], progress, genes), mode)
            if not slides[i].depth > 0:
                raise ConfigError(
                    f"{stores[i].path}: expected UMIs in tissue; found none; leave the store out"
                )
        depths = [slide.depth for slide in slides.values()]
        reference = float(np.exp(np.mean(np.log(depths))))
        return cls(mode, round(reference, _DECIMALS), slides)

    def with_slide(
        self, index: int, stores: Sequence[Store], progress: Progress = SILENT
    ) -> CohortExposure:
        """The same with one more slide of the run's stores, measured alike."""
        shared = shared_places(stores)
        genes = None if shared is None else shared[index]
        slide = _in_mode(slide_exposure(stores[index], progress, genes), self.mode)
        return CohortExposure(self.mode, self.reference, {**self.slides, index: slide})

    def relative_depth(self, index: int) -> float:
        """Depth of a slide relative to the training slides, whose geometric mean is 1."""
        return round(self.slides[index].depth / self.reference, _DECIMALS)

    def of_patch(self, index: int, info: PatchInfo) -> Float32Array:
        """Exposure of the bins of a patch as if all were tissue, (128, 128) float32.

        Args:
            index: Index of the patch's store.
            info: Where the patch lies.
        """
        return np.float32(self.relative_depth(index)) * self.slides[index].of_patch(info)

    def stripes_of_patch(self, index: int, info: PatchInfo) -> Float32Array:
        """The same without the slide's depth."""
        return self.slides[index].of_patch(info)

    def write(self, run: Path, stores: Sequence[Store]) -> str:
        """Write ``exposure.json``; returns its hash."""
        slides = [
            {
                "store": i,
                "records_xxh64": stores[i].manifest["records_xxh64"],
                "umis_per_bin": slide.depth,
                "row0": slide.row0,
                "col0": slide.col0,
                **{
                    name: {
                        "sd": lines.sd,
                        "efficiency": lines.efficiency.tolist(),
                        "se": lines.se.tolist(),
                    }
                    for name, lines in (("rows", slide.rows), ("cols", slide.cols))
                },
            }
            for i, slide in self.slides.items()
        ]
        content = {"format": FORMAT, "mode": self.mode, "reference": self.reference}
        write_json(run / EXPOSURE, {**content, "slides": slides})
        return hash_file(run / EXPOSURE)

    @classmethod
    def read(cls, run: Path, xxh64: str, stores: Sequence[Store]) -> CohortExposure:
        """Read what `write` wrote.

        Args:
            run: Run directory.
            xxh64: Hash that the run's checkpoint has of the file.
            stores: Stores of the run.

        Raises:
            ConfigError: The file is missing, damaged, changed, or of other stores.
        """
        path = run / EXPOSURE
        content = cast("_File", read_json(path, _File, "copy the run again, or train anew"))
        if hash_file(path) != xxh64:
            raise ConfigError(
                f"{path}: does not match the hash in the run's checkpoint, so it was changed; copy "
                f"the run again, or train anew"
            )
        slides = {}
        for slide in content["slides"]:
            i = slide["store"]
            if i >= len(stores) or stores[i].manifest["records_xxh64"] != slide["records_xxh64"]:
                raise ConfigError(f"{path}: is of other stores than those of the run; train anew")
            rows, cols = (
                Stripes(np.array(lines["efficiency"]), np.array(lines["se"]), lines["sd"])
                for lines in (slide["rows"], slide["cols"])
            )
            slides[i] = SlideExposure(
                slide["umis_per_bin"], slide["row0"], slide["col0"], rows, cols
            )
        return cls(content["mode"], content["reference"], slides)


def _in_mode(slide: SlideExposure, mode: str) -> SlideExposure:
    return slide if mode == "auto" else slide.without_stripes()


class _Lines(TypedDict):
    sd: float
    efficiency: Annotated[list[Annotated[float, Within(1e-6, 1e6)]], Length(PATCH_BINS)]
    se: Annotated[list[float], Length(PATCH_BINS)]


class _Slide(TypedDict):
    store: Count
    records_xxh64: Name
    umis_per_bin: float
    row0: int
    col0: int
    rows: _Lines
    cols: _Lines


class _File(TypedDict):
    """What ``exposure.json`` holds."""

    format: Literal["virchow_st.exposure/1"]
    mode: Literal["auto", "depth"]
    reference: float
    slides: Annotated[list[_Slide], Length(1)]
