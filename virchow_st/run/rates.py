"""What a rate and a count can be, checked wherever those of a run are made or read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.types import Array, Float32Array

MOST_UMIS = 65504.0
"""The largest rate of a gene in a 2 µm bin, UMIs. No bin holds so many; a float16 does."""

MOST_EXACT = 1 << 24
"""Up to here a float32 holds every whole number."""


def check_rates(rates: Float32Array, genes: Sequence[str], source: str, remedy: str) -> None:
    """Raise `ConfigError` where rates are NaN, infinite, or beyond `MOST_UMIS` either way.

    Below zero they may be: the squared error's decoder predicts z-scores.

    Args:
        rates: (…, G, R, C) float32, expected UMIs per 2 µm bin.
        genes: (G,) what to call them.
        source: the run or file that they are of, for the message.
        remedy: what to do.
    """
    if not rates.size:
        return
    axes = tuple(i for i in range(rates.ndim) if i != rates.ndim - 3)
    low, high = rates.min(axis=axes), rates.max(axis=axes)  # NaN where one is
    bad = np.flatnonzero(~((low >= -MOST_UMIS) & (high <= MOST_UMIS)))
    if bad.size:
        worst = high[bad[0]] if not high[bad[0]] <= MOST_UMIS else low[bad[0]]
        raise ConfigError(
            f"{source}: expected rates of at most {MOST_UMIS:.0f} UMIs per 2 µm bin; got "
            f"{worst:.4g} for {genes[bad[0]]}, and such rates for {bad.size} of {len(genes)} "
            f"genes; {remedy}"
        )


def exact_float32(counts: Array, source: str) -> Float32Array:
    """Counts as float32; raises `ConfigError` for one above 2²⁴, which a float32 may not hold.

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
