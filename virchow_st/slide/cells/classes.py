"""Regions by class: every bin of a lattice belongs to one class of regions, or to none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.names import check_plain
from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.slide.cells.geojson import REGIONS
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells
from virchow_st.types import Array

ELSEWHERE = "elsewhere"
"""Name of the bins that belong to no class."""
MOST_CLASSES = 30
"""Classes of regions are few; more are the numbers of cells."""


@dataclass(frozen=True, eq=False)
class RegionClasses:
    """Classes of regions on the (R, C) bins of a lattice.

    Attributes:
        names: C classes, in the order in which the file names them.
        labels: (R, C) int32: 0 elsewhere, ``i + 1`` the class ``names[i]``, as
            `virchow_st.Field.sum_over` takes them.
        n_regions: regions of each class that have a bin.
        n_shared: bins that several regions claimed.
        n_without_bins: regions off the lattice, or covered by smaller ones.
        n_unclassed: regions without a class, whose bins are elsewhere.
    """

    names: tuple[str, ...]
    labels: Array
    n_regions: tuple[int, ...]
    n_shared: int
    n_without_bins: int
    n_unclassed: int


def read_region_classes(path: Path, lattice: Lattice) -> RegionClasses:
    """Read regions and find the class of every bin.

    A bin belongs to the region that its centre lies in. Of overlapping regions the smallest one has
    it, whatever their classes, so that a region drawn within another is cut out of it. Bins of
    regions without a class, or of the class ``elsewhere``, are elsewhere. The classes of a label
    image are its numbers.

    Args:
        path: GeoJSON such as QuPath writes, a label image, or shapes of a SpatialData folder.
        lattice: bins of the slide.

    Raises:
        ConfigError: no region has a class, or there are more than `MOST_CLASSES`.
        SlideError: the file cannot be read, holds no regions, or is of another slide.

    Example:
        >>> found = read_region_classes(Path("regions.geojson"), lattice)  # doctest: +SKIP
        >>> found.names  # doctest: +SKIP
        ('Tumor', 'Stroma')
        >>> field.sum_over(found.labels, ["PIGR"]).shape  # doctest: +SKIP
        (2, 1)
    """
    regions = read_cells(path, lattice, want=REGIONS)
    is_image = regions.outlines is None  # numbers of pixels, without classes of their own
    of_region = regions.ids if is_image else regions.classes
    names = tuple(name for name in dict.fromkeys(of_region) if name not in ("", ELSEWHERE))
    if not names:
        raise ConfigError(
            f"{path}: expected regions with classes; none of {len(regions)} has one; give each its "
            "class, as in QuPath by Annotations › Set class"
        )
    if len(names) > MOST_CLASSES:
        raise ConfigError(
            f"{path}: expected at most {MOST_CLASSES} classes of regions; found {len(names):,}; "
            "give regions, not cells"
        )
    for name in names:
        check_plain(name, f"{path}: class")
    number = {name: i for i, name in enumerate(names, start=1)}
    class_of = np.array([0, *(number.get(name, 0) for name in of_region)], np.int32)
    return RegionClasses(
        names,
        class_of[regions.labels],
        tuple(of_region.count(name) for name in names),
        regions.n_shared,
        regions.n_elsewhere,
        _unclassed(regions) if not is_image else 0,
    )


def _unclassed(regions: CellMap) -> int:
    return sum(not name for name in regions.classes)
