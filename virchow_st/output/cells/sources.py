"""What cells are made from: a store, a run's test slide, or a rate field, with its frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.field.interval import RateErrors
from virchow_st.field.pieces import pieces
from virchow_st.field.read import Field, open_field
from virchow_st.output.export.sources import RunSource, Source, StoreSource, blocks, open_source
from virchow_st.output.export.sources import homography as source_homography
from virchow_st.run.all_genes import FIELDS
from virchow_st.run.panel import Panel
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.geometry import Homography
from virchow_st.store.reader import Store, open_store
from virchow_st.types import BIN_UM, PATCH_BINS, Array, BoolArray, Float32Array, Int64Array


@dataclass(frozen=True, eq=False)
class CellSource:
    """One slide with expected rates, observed counts, or both.

    Attributes:
        name: of the slide.
        patient: whose slide it is; empty where that is not recorded.
        lattice: of the expected rates, or of the counts where there are no rates.
        covered: (R, C) bool, True where there are values.
        field: the rates by factors or genes, or None.
        maps: a run's rates and counts of its panel, if it has no field; or None.
        store: the counts, or None.
        store_lattice: of the store's patches; None without a store.
        about: provenance of the output.
    """

    name: str
    patient: str
    lattice: Lattice
    covered: BoolArray
    field: Field | None
    maps: RunSource | None
    store: Store | None
    store_lattice: Lattice | None
    about: dict[str, Any]

    @property
    def genes(self) -> Panel:
        """The genes of the rates, or of the counts where there are no rates."""
        if self.field is not None:
            return Panel(self.field.genes, self.field.symbols)
        if self.maps is not None:
            return self.maps.panel
        assert self.store is not None
        return Panel(self.store.genes.ids, self.store.genes.symbols)

    @property
    def has_rates(self) -> bool:
        """Whether there are expected rates."""
        return self.field is not None or self.maps is not None

    @property
    def loadings(self) -> Float32Array | None:
        """(G, K) loadings of a field by factors; None where genes are held directly."""
        return None if self.field is None or self.field.is_direct else self.field.loadings

    def errors(self, index: Int64Array) -> RateErrors | None:
        """Errors of some genes' rates; None where they are not known."""
        known = None if self.field is None else self.field.layers.errors
        return None if known is None else known.of_genes(index)

    def rate_blocks(self, index: Int64Array) -> Iterator[tuple[int, int, Array]]:
        """Factors of the field, or the rates of some genes: first row, first column, maps."""
        if self.field is not None:
            every = np.arange(len(self.field.factor_names))
            whole = (0, 0, *self.field.shape)
            chosen = index if self.field.is_direct else every
            yield from pieces(self.field.layers, chosen, whole, BIN_UM)
        elif self.maps is not None:
            for rows, cols in blocks(self.maps):
                yield rows.start, cols.start, self.maps.read("rates", rows, cols)[index]


@contextmanager
def open_cell_source(
    path: Path, store: Path | None = None, slide: str = "", keep_paths: bool = False
) -> Iterator[CellSource]:
    """Open a store, an evaluated run, or a field, and find where its bins lie on the image.

    Args:
        path: of the store, run or field.
        store: of the same slide, for observed counts beside a run's or a field's rates.
        slide: which of a run's test slides.
        keep_paths: record where files lie, not only what they are called.

    Raises:
        ConfigError: it is none of these; the store is of another slide; or the field does not
            record where its bins lie on the image.
        StoreError, FieldError: damaged.
    """
    counts = None if store is None else open_store(store)
    if (path / "zarr.json").is_file():
        if slide:
            raise ConfigError(f"slide: {path} is a field, of one slide; leave out --slide")
        yield _of_field(open_field(path), path, counts, keep_paths)
        return
    with open_source(path, "", slide, keep_paths) as source:
        if isinstance(source, RunSource):
            yield _of_run(source, path, counts, keep_paths)
            return
        if counts is not None:
            raise ConfigError(f"--store: {path} is a store itself; leave it out")
        counts = open_store(path)
        lattice = lattice_of(source)
        yield CellSource(
            name=source.name,
            patient=counts.patient,
            lattice=lattice,
            covered=covered_by(counts, lattice),
            field=None,
            maps=None,
            store=counts,
            store_lattice=lattice,
            about={"source": source.about()},
        )


def lattice_of(source: Source) -> Lattice:
    """The lattice of a store's or a run's patches."""
    return Lattice(
        source.name, source_homography(source), source.row0, source.col0, source.tissue_mask
    )


def covered_by(store: Store, lattice: Lattice) -> BoolArray:
    """(R, C) bool, the bins of a store's patches."""
    covered = np.zeros(lattice.shape, bool)
    for info in store.patch_table:
        row, col = info.row0 - lattice.row0, info.col0 - lattice.col0
        covered[row : row + PATCH_BINS, col : col + PATCH_BINS] = True
    return covered


def _of_run(source: RunSource, run: Path, store: Store | None, keep_paths: bool) -> CellSource:
    """A run's test slide: its field where it has factors, else its maps."""
    field_path = run / FIELDS / f"{source.file_name}.zarr"
    if field_path.is_dir():
        made = _of_field(open_field(field_path), field_path, store, keep_paths)
        return replace(made, name=source.name, about={"source": source.about()})
    lattice = lattice_of(source)
    return CellSource(
        name=source.name,
        patient=str(source.manifest["patient"]),
        lattice=lattice,
        covered=source.written,
        field=None,
        maps=source,
        store=store,
        store_lattice=None if store is None else _same_slide(store, lattice.homography),
        about={"source": source.about()},
    )


def _of_field(field: Field, path: Path, store: Store | None, keep_paths: bool) -> CellSource:
    provenance = field.provenance
    image = provenance.get("image") or {}
    frame = _frame_of(field, store)
    x_um, y_um = field.corner_um
    size = image.get("size_px")
    lattice = Lattice(
        name=str(provenance.get("slide") or image.get("name") or path.stem),
        homography=frame.homography,
        row0=round(y_um / BIN_UM),
        col0=round(x_um / BIN_UM),
        tissue=field.tissue_mask,
        size_px=(int(size[0]), int(size[1])) if size else None,
    )
    store_lattice = None
    if store is not None:
        store_lattice = _same_slide(store, frame.homography if frame.is_of_array else None)
    about = {
        "source": "field",
        "field": str(path) if keep_paths else path.resolve().name,
        "provenance": {name: of for name, of in provenance.items() if name != "genes"},
    }
    return CellSource(
        name=lattice.name,
        patient=str(provenance.get("patient") or (store.patient if store else "")),
        lattice=lattice,
        covered=field.covered,
        field=field,
        maps=None,
        store=store,
        store_lattice=store_lattice,
        about={"source": about},
    )


class _Frame(NamedTuple):
    """From a field's bins to px, and whether its bins are those of the array."""

    homography: Homography
    is_of_array: bool


def _frame_of(field: Field, store: Store | None) -> _Frame:
    """Where a field's bins lie on the image.

    A field of a measured slide records the homography of its store. A predicted slide lies at
    (0, 0) and has a scaling, which is exact. An affine that stands for a homography is not: on a
    whole slide it errs by up to 5 px.
    """
    given = field.provenance.get("homography")
    is_of_store = store is not None and (
        field.provenance.get("records_xxh64") == store.manifest["records_xxh64"]
    )
    if given is None and is_of_store and store is not None:
        given = store.manifest["homography"]
    if given is not None:
        try:
            return _Frame(Homography(np.array(given, np.float64)), True)
        except (ValueError, TypeError) as e:
            raise ConfigError(f"{field.path}: homography: {e}; write the field anew") from None
    affine = field.layers.um_to_px
    image = field.provenance.get("image") or {}
    if affine is None and "size_px" in image and image.get("mpp"):  # OME-Zarr has no place for it
        affine = np.array([[1 / image["mpp"], 0, 0], [0, 1 / image["mpp"], 0]])
    if affine is None or affine[[0, 1, 0, 1], [1, 0, 2, 2]].any():
        raise ConfigError(
            f"{field.path}: expected a field that records where its bins lie on the image; found "
            "one of an older version; write it anew, or give the store that it was made from with "
            "--store"
        )
    x, y = (BIN_UM * affine[i, i] for i in (0, 1))
    return _Frame(Homography(np.array([[x, 0, x / 2], [0, y, y / 2], [0, 0, 1]])), False)


def _same_slide(store: Store, homography: Homography | None) -> Lattice:
    """The lattice of a store whose bins lie where the rates' do; of a predicted slide, anywhere."""
    lattice = lattice_of(StoreSource(store, ""))
    own = lattice.homography.matrix
    if homography is not None and not np.allclose(own, homography.matrix, rtol=1e-9, atol=0):
        raise ConfigError(
            f"{store.path}: expected the slide of the rates; its bins lie elsewhere on the image; "
            "give the store of that slide"
        )
    return lattice
