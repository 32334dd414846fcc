"""How far the true UMIs of a cell may be from the expected ones.

A field of ``vst denoise`` holds tables of the ratio of true to estimated rates, for squares of 2,
4, 8 and 16 µm (docs/denoise.md, "Intervals"). A cell is taken for a square of as many bins. The
tables go with the cells, so that bounds of any gene can be computed from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.field.interval import SHARE, TABLES, RateErrors
from virchow_st.types import Array, Float32Array, Float64Array

GROUP, MEAN = "interval_group", "interval_mean"
"""Columns of ``var``: group of the gene in the tables, and its mean rate per 2 µm tissue bin."""
FILLED = "filled"
"""Column of ``obs``: share of the cell in bins without counts, whose rates were filled in."""


def cell_bounds(
    errors: RateErrors, rates: Float32Array, obs: Mapping[str, Any]
) -> tuple[Float32Array, Float32Array]:
    """Lower and upper bound of the true UMIs, (n, G) float32 each; see `cell_variance`."""
    low, high = (errors.over_areas(what, rates, *rated_bins(obs)) for what in ("low", "high"))
    return rates * low, rates * high


def cell_variance(errors: RateErrors, rates: Float32Array, obs: Mapping[str, Any]) -> Float32Array:
    """Variance of the true UMIs around the expected ones, (n, G) float32.

    Args:
        errors: of the G genes.
        rates: (n, G) expected UMIs.
        obs: columns of the table. NaN is given for cells without a bin of tissue with rates.
    """
    found = errors.over_areas("sd", rates, *rated_bins(obs))
    found *= rates
    return np.square(found, out=found)


def error_columns(errors: RateErrors) -> tuple[dict[str, Any], dict[str, Array]]:
    """``uns["interval"]``, and the columns of ``var``."""
    tables = {name: getattr(errors, name) for name in TABLES}
    stored = {"share": SHARE, "scale_um": np.array(errors.scale_um, np.int32), **tables}
    return stored, {GROUP: errors.group.astype(np.int32), MEAN: errors.mean}


def stored_errors(stored: Mapping[str, Any], var: Any) -> RateErrors:
    """What `error_columns` gave, of the genes of a table's ``var``.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return RateErrors(
            tuple(np.asarray(stored["scale_um"]).tolist()),
            np.asarray(var[GROUP], np.int64),
            np.asarray(var[MEAN], np.float64),
            *(np.asarray(stored[name], np.float64) for name in TABLES),
        )
    except (KeyError, ValueError) as e:
        raise ConfigError(f"table: uns['interval'] is damaged ({e}); write the cells anew") from e


def rated_bins(obs: Any) -> tuple[Float64Array, Array]:
    """(n,) bins of tissue with rates in each cell, and whether one of them was filled."""
    bins, covered, tissue = (
        np.asarray(obs[name], np.float64) for name in ("bins", "covered", "tissue")
    )
    filled = np.asarray(obs[FILLED]) > 0 if FILLED in obs else np.zeros(len(bins), bool)
    return bins * np.minimum(covered, tissue), filled
