"""Checks the values of rates and counts wherever a run writes or reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.types import Array, BoolArray, Float32Array

MOST_UMIS = 65504.0
"""The largest rate of a gene in a 2 µm bin, UMIs. No bin holds so many; a float16 does."""

MOST_LEFT_OUT = 0.01
"""Share of a job's bins that may be left out for an impossible rate.

A pen mark or a fold can lead a decoder without bounds to one. Where more bins have one, the weights
are damaged or training diverged, and the other rates are not to be trusted either.
"""

MOST_EXACT = 1 << 24
"""Up to here a float32 holds every whole number."""

_EXPECTED = f"expected rates of at most {MOST_UMIS:.0f} UMIs per 2 µm bin"


def check_rates(rates: Float32Array, genes: Sequence[str], source: str, remedy: str) -> None:
    """Raise `ConfigError` if rates are NaN, infinite, or beyond ± `MOST_UMIS`.

    Negative rates are allowed, because a decoder trained with squared error predicts z-scores.

    Args:
        rates: (…, G, R, C) float32, expected UMIs per 2 µm bin.
        genes: (G,) names of the genes, for the message.
        source: run or file of the rates, for the message.
        remedy: what to do.
    """
    low, high = _range(rates)
    bad = np.flatnonzero(~((low >= -MOST_UMIS) & (high <= MOST_UMIS)))
    if bad.size:
        worst = high[bad[0]] if not high[bad[0]] <= MOST_UMIS else low[bad[0]]
        raise ConfigError(
            f"{source}: {_EXPECTED}; got "
            f"{worst:.4g} for {genes[bad[0]]}, and such rates for {bad.size} of {len(genes)} "
            f"genes; {remedy}"
        )


def leave_out_impossible(
    rates: Float32Array, genes: Sequence[str], source: str, remedy: str
) -> Float32Array:
    """Set bins with a rate beyond ± `MOST_UMIS` to NaN for every gene; returns the rates.

    The caller counts these bins and calls `check_left_out`.

    Args:
        rates, genes, source, remedy: see `check_rates`.

    Returns:
        ``rates`` itself where there is no such bin, else a copy.

    Raises:
        ConfigError: a rate is NaN or infinite, which no input makes of good weights.

    Example:
        >>> rates = np.array([[[1.0, 1e9]], [[2.0, 3.0]]], np.float32)  # 2 genes, 1 × 2 bins
        >>> leave_out_impossible(rates, ["A", "B"], "run", "train again").tolist()
        [[[1.0, nan]], [[2.0, nan]]]
    """
    low, high = _range(rates)
    if not (np.isfinite(low) & np.isfinite(high)).all():
        check_rates(rates, genes, source, remedy)
    if (low >= -MOST_UMIS).all() and (high <= MOST_UMIS).all():
        return rates
    impossible = (np.abs(rates) > MOST_UMIS).any(axis=-3, keepdims=True)
    return np.where(impossible, np.float32(np.nan), rates)


def left_out(rates: Float32Array) -> BoolArray:
    """Mask of the bins that `leave_out_impossible` left out: (…, G, R, C) to (…, R, C) bool."""
    found: BoolArray = np.isnan(rates[..., 0, :, :])
    return found


def check_left_out(n: int, n_bins: int, source: str) -> None:
    """Raise `ConfigError` if more than `MOST_LEFT_OUT` of the bins were left out.

    Args:
        n: bins left out so far.
        n_bins: bins that the whole job predicts.
        source: the run that predicts, for the message.
    """
    if n > MOST_LEFT_OUT * n_bins:
        raise ConfigError(
            f"{source}: {_EXPECTED}; got larger ones in {n:,} of {n_bins:,} bins, and where they "
            f"are more than {MOST_LEFT_OUT:.0%} the weights are damaged or training diverged; "
            f"train again with a lower --lr"
        )


def left_out_warning(n: int, n_bins: int, source: str) -> str:
    """Warning with the number of bins left out; see `check_left_out`."""
    return (
        f"{source}: {n:,} of {n_bins:,} bins ({n / n_bins:.2g} of them) are left out as not "
        f"predicted, since a rate there is beyond {MOST_UMIS:.0f} UMIs, as at pen marks and folds"
    )


def _range(rates: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Smallest and largest rate of each gene, (G,); NaN where one is."""
    if not rates.size:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    axes = tuple(i for i in range(rates.ndim) if i != rates.ndim - 3)
    return rates.min(axis=axes), rates.max(axis=axes)


def exact_float32(counts: Array, source: str) -> Float32Array:
    """Convert counts to float32; raises `ConfigError` above 2²⁴, where float32 is not exact.

    Args:
        counts: whole numbers of UMIs, of any shape.
        source: the run or store that they are of, for the message.
    """
    if counts.size and counts.max() > MOST_EXACT:
        raise ConfigError(
            f"{source}: expected at most {MOST_EXACT:,} UMIs of a gene in a bin, which this format "
            f"holds exactly; got {int(counts.max()):,}; look at the counts of the slide"
        )
    return counts.astype(np.float32)
