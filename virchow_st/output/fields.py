"""The predicted factors of a run's test slides, as ``vst evaluate`` writes them, and of cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.field.read import Field, open_field
from virchow_st.run.all_genes import FIELDS
from virchow_st.run.maps import SlideResult
from virchow_st.types import BoolArray, Float64Array, Int64Array

if TYPE_CHECKING:
    from virchow_st.slide.cells.cell_map import CellMap


def slide_field(run: Path, slide: SlideResult) -> Field:
    """Open the field of a test slide of a run with factors.

    Raises:
        ConfigError: there is none, as an older version evaluated the run.
        FieldError: it is damaged.
    """
    path = run / FIELDS / f"{slide.file_name}.zarr"
    if not path.is_dir():
        raise ConfigError(f"{path}: not found; run `vst evaluate {run}` again")
    return open_field(path)


def cell_factors(field: Field, cells: CellMap, mask: BoolArray) -> tuple[Float64Array, Int64Array]:
    """Means of a field's factors over the bins of n cells.

    Args:
        field: by K factors.
        cells: on its bins.
        mask: (R, C) bool, the bins that count.

    Returns:
        (n, K) UMIs per bin of 2 µm, and (n,) how many bins count; without any, the means are 0.
    """
    labels = np.where(mask, cells.labels, 0)
    n_bins = np.bincount(labels.ravel(), minlength=len(cells) + 1)[1:]
    sums = field.factor_sums(labels)  # up to the largest label that there is
    means = np.zeros((len(cells), sums.shape[1]))
    means[: len(sums)] = sums / np.maximum(n_bins[: len(sums)], 1)[:, None]
    return means, n_bins
