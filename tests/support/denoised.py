"""What the tests of denoising share."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

import virchow_st
from virchow_st.denoise.slide import SlideCounts
from virchow_st.metrics.stripes import Stripes
from virchow_st.run.panel import Panel
from virchow_st.training.rows import SparseRows


def exposure_of(field: virchow_st.Field) -> np.ndarray:
    """Row × column efficiency of each bin (R, C), which a field's rates leave out."""
    lines = []
    for name, n in zip(("rows", "cols"), field.shape, strict=True):
        found = field.provenance["exposure"][name]["efficiency"]
        lines.append(np.ones(n) if found is None else np.array(found))
    return np.outer(*lines)


def patchwork(
    side: int, umis_per_bin: float, n_genes: int = 60, seed: int = 0
) -> tuple[SlideCounts, np.ndarray]:
    """Counts of a square of tissue with three programmes, and their true rates (n, G)."""
    rng = np.random.default_rng(seed)
    noise = np.stack(
        [gaussian_filter(rng.normal(size=(side, side)), width) * width for width in (4.0, 6.0, 3.0)]
    )
    programmes = np.exp(2.5 * noise / noise.std(axis=(1, 2), keepdims=True) / 2)
    programmes = programmes.reshape(3, -1).T
    rates = programmes @ rng.dirichlet(np.full(n_genes, 0.3), 3)
    rates *= umis_per_bin * len(rates) / rates.sum()
    counts = rng.poisson(rates)
    seen = np.flatnonzero(counts.sum(axis=0) >= 10)
    flat = Stripes(np.ones(side), np.zeros(side), 0.0)
    names = tuple(f"GENE{g}" for g in seen)
    slide = SlideCounts(
        panel=Panel(names, names),
        rows=SparseRows.from_dense(counts[:, seen], np.ones(side * side)),
        place=np.arange(side * side),
        unseen=np.empty(0, np.int64),
        tissue=np.ones((side, side), bool),
        corner=(0, 0),
        dead=([], []),
        stripes=(flat, flat),
    )
    return slide, rates[:, seen]
