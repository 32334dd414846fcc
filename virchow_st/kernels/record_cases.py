"""Inputs of the kernels that read a store's record of counts, and how the table runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from virchow_st.kernels import panel_reference
from virchow_st.types import PATCH_POSITIONS, Array, Float32Array, Int64Array


def draw_record(
    rng: np.random.Generator, n_genes: int = 18_085, umi_per_bin: float = 9.0
) -> tuple[Array, Array, Array]:
    """Draw the non-zero counts of a patch as dense as a 2 µm colon slide, log-normal over genes.

    A few bins get many UMIs of the most abundant genes, so that some counts are large.

    Returns:
        (N,) int64 genes, sorted; (N,) int64 positions, sorted within a gene; (N,) uint32 UMIs.
    """
    share = rng.lognormal(0.0, 2.0, n_genes)
    n_umi = rng.poisson(umi_per_bin * PATCH_POSITIONS * share / share.sum())
    gene = np.repeat(np.arange(n_genes), n_umi)
    crowded = rng.random(len(gene)) < 0.02
    position = np.where(crowded, rng.integers(0, 64, len(gene)), 64) * 256
    position[~crowded] = rng.integers(0, PATCH_POSITIONS, np.count_nonzero(~crowded))
    cells, counts = np.unique(gene * PATCH_POSITIONS + position, return_counts=True)
    return *np.divmod(cells, PATCH_POSITIONS), counts.astype(np.uint32)


def _record_parts(rng: np.random.Generator) -> tuple[Array, Array, Array, Array, Int64Array]:
    """Genes, sizes, entries and escapes of a record, and the entry ranges of a 50-gene panel."""
    gene, position, count = draw_record(rng)
    genes, sizes = np.unique(gene, return_counts=True)
    inline = np.where(count < 4, count, 0)
    entries = position + PATCH_POSITIONS * inline
    at = np.flatnonzero(inline == 0)
    escapes = np.stack([at, count[at]], axis=1).astype(np.uint32).ravel()
    strongest = rng.permutation(genes[np.argsort(-sizes)[:50]])
    spans = panel_reference.find_panel(genes, sizes, strongest)
    u16 = [x.astype(np.uint16) for x in (genes, sizes, entries)]
    return u16[0], u16[1], u16[2], escapes, spans


def fault(rng: np.random.Generator) -> tuple[Any, ...]:
    """Arguments of ``find_fault``: the parts of a record without a fault."""
    genes, sizes, entries, escapes, _ = _record_parts(rng)
    return genes, sizes, entries, np.zeros(1, np.uint16), escapes, 18_085


def wide_fault(rng: np.random.Generator) -> tuple[Any, ...]:
    """The record of a store of 70,000 genes, whose indices are uint32."""
    genes, *others, _ = fault(rng)
    return genes + np.uint32(50_000), *others, 70_000


def find(rng: np.random.Generator) -> tuple[Any, ...]:
    """Arguments of ``find_panel``: 50 genes to look for."""
    genes, sizes, *_ = _record_parts(rng)
    return genes, sizes, rng.integers(0, 18_085, 50)


def wide_find(rng: np.random.Generator) -> tuple[Any, ...]:
    """The same in a store of 70,000 genes."""
    genes, sizes, wanted = find(rng)
    return genes + np.uint32(50_000), sizes, wanted + 50_000


def gather(rng: np.random.Generator) -> tuple[Any, ...]:
    """Arguments of ``fill_dense`` and ``gather_sparse``: the entries of 50 genes."""
    _, _, entries, escapes, spans = _record_parts(rng)
    return entries, escapes, spans


def into_new(fill: Callable[..., None]) -> Callable[..., Float32Array]:
    """Wrap a function that fills its last argument into one that returns the filled array."""

    def filled(entries: Array, escapes: Array, spans: Int64Array) -> Float32Array:
        out = np.full((len(spans), PATCH_POSITIONS), np.nan, np.float32)
        fill(entries, escapes, spans, out)
        return out

    return filled


def sparse(rng: np.random.Generator) -> tuple[Any, ...]:
    """Arguments of ``pool_sparse``: sparse counts, and 4, the side of a coarse bin in fine bins."""
    return *panel_reference.gather_sparse(*gather(rng)), 4
