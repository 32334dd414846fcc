"""Sparse rows of counts: the 16 µm bins of the training patches, with all genes of the panel.

Letters: n rows, G genes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from virchow_st.kernels.pooling import sum_pool
from virchow_st.run.split import Member
from virchow_st.runtime.devices import core_count
from virchow_st.training.coverage import Coverage
from virchow_st.training.dataset import PatchDataset
from virchow_st.types import BIN_UM, PATCH_BINS, Array, Float32Array, Float64Array, Int64Array

ROW_UM = 16
"""Side of the bin that a row holds the counts of, µm."""
MOST_ROWS = 16_384
"""Rows that a factorisation is fitted to; where there are more, this many are drawn."""


@dataclass(frozen=True)
class SparseRows:
    """Non-zero counts, row by row (CSR).

    Attributes:
        indptr: (n + 1,) int64, index of each row's first count, and the end of the last row's.
        gene: (nnz,) int32 genes, increasing within a row.
        count: (nnz,) float32 UMIs, > 0.
        exposure: (n,) float64 > 0, exposure summed over the 2 µm tissue bins of a row: their
            number, where each has an exposure of 1.
        n_genes: Number of genes G.
        coverage: Genes that were measured in each row; None if all of them were in every row.

    Raises:
        ValueError: Arrays that do not belong together, a gene out of range, or an exposure that is
            not above 0.

    Example:
        >>> counts = np.array([[0, 2, 1], [0, 0, 0]])
        >>> rows = SparseRows.from_dense(counts, exposure=np.array([64.0, 32.0]))
        >>> len(rows), rows.gene.tolist(), rows.totals.tolist()
        (2, [1, 2], [3.0, 0.0])
    """

    indptr: Int64Array
    gene: Array
    count: Float32Array
    exposure: Float64Array
    n_genes: int
    coverage: Coverage | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        n, nnz = len(self.exposure), len(self.gene)
        if self.indptr.shape != (n + 1,) or self.indptr[-1] != nnz or len(self.count) != nnz:
            raise ValueError(
                f"rows: expected indptr of {n + 1} for {n} exposures, ending at the number of "
                f"genes and counts; got {len(self.indptr)} ending at {self.indptr[-1:]}, {nnz} "
                f"genes and {len(self.count)} counts"
            )
        if nnz and not 0 <= self.gene.min() <= self.gene.max() < self.n_genes:
            raise ValueError(f"gene: expected 0 to {self.n_genes - 1}; got others")
        if not (np.isfinite(self.exposure) & (self.exposure > 0)).all():
            raise ValueError("exposure: expected finite numbers above 0; got others")

    def __len__(self) -> int:
        return len(self.exposure)

    @classmethod
    def from_dense(cls, counts: Array, exposure: Array) -> SparseRows:
        """The non-zero counts of a dense matrix (n, G)."""
        row, gene = np.nonzero(counts)
        return cls(
            indptr=np.searchsorted(row, np.arange(len(counts) + 1)),
            gene=gene.astype(np.int32),
            count=counts[row, gene].astype(np.float32),
            exposure=np.asarray(exposure, np.float64),
            n_genes=counts.shape[1],
        )

    @property
    def row(self) -> Int64Array:
        """(nnz,) int64, the row of each count."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))

    @property
    def totals(self) -> Float64Array:
        """(n,) UMIs of each row."""
        return np.bincount(self.row, self.count, len(self)).astype(np.float64)

    @property
    def gene_totals(self) -> Float64Array:
        """(G,) UMIs of each gene."""
        return np.bincount(self.gene, self.count, self.n_genes).astype(np.float64)

    @property
    def gene_shares(self) -> Float64Array:
        """(G,) > 0, share of each gene in all UMIs, with half a UMI more for every gene.

        Where genes were not measured in all rows, of the UMIs per exposure of the rows that have
        them.
        """
        totals = self.gene_totals + 0.5
        if self.coverage is not None:
            exposed = self.coverage.of_rows(self.exposure[:, None])[:, 0]
            totals = totals / np.where(exposed > 0, exposed, self.exposure.sum())
        return np.asarray(totals / totals.sum())

    def shares(self, loadings: Float64Array) -> Float64Array:
        """Sum of the loadings (G, K) over the genes that each row measured, (1 or n, K)."""
        if self.coverage is None:
            return loadings.sum(0)[None]
        return self.coverage.of_genes(loadings)

    def taken(self, chosen: Int64Array) -> SparseRows:
        """Some of the rows, in the order given.

        Example:
            >>> rows = SparseRows.from_dense(np.array([[0, 2], [3, 0]]), np.array([64.0, 32.0]))
            >>> rows.taken(np.array([1])).count.tolist()
            [3.0]
        """
        sizes = np.diff(self.indptr)[chosen]
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        at = np.arange(indptr[-1]) + np.repeat(self.indptr[chosen] - indptr[:-1], sizes)
        return SparseRows(
            indptr, self.gene[at], self.count[at], self.exposure[chosen], self.n_genes,
            coverage=None if self.coverage is None else self.coverage.taken(chosen),
        )  # fmt: skip

    def thinned(self, share: float, rng: np.random.Generator) -> tuple[SparseRows, SparseRows]:
        """Split every count at random (binomial thinning) into two sets of rows.

        The parts of a Poisson count are independent Poisson counts. The exposures are divided in
        the same proportion, so that the rates of both parts are those of the whole.

        Args:
            share: Expected share of the UMIs in the first part, between 0 and 1.
            rng: Source of the random numbers.
        """
        kept = rng.binomial(self.count.astype(np.int64), share).astype(np.float32)
        return self._with(kept, share), self._with(self.count - kept, 1.0 - share)

    def _with(self, count: Float32Array, share: float) -> SparseRows:
        there = count > 0
        ends = np.concatenate([[0], np.cumsum(there)])
        return SparseRows(
            ends[self.indptr], self.gene[there], count[there], share * self.exposure, self.n_genes,
            coverage=self.coverage,
        )  # fmt: skip


@dataclass(frozen=True)
class PatchRows(SparseRows):
    """Rows that are 16 µm bins of patches.

    Attributes:
        member: (n,) int64, index of each row's patch among the members that were read.
        cell: (n,) int64, ``row * 16 + col`` of the bin in the patch's grid of 16 × 16; the index of
            its token, where a patch has 16 × 16 tokens.
    """

    member: Int64Array
    cell: Int64Array


def rows_of(
    dataset: PatchDataset, members: Sequence[Member], seed: int, most: int = MOST_ROWS
) -> PatchRows:
    """Read the 16 µm bins of patches as rows of sparse counts.

    A bin is taken if at least half of its 2 µm bins are tissue; counts outside tissue are left out.
    Patches are read in parallel and joined in order.

    Args:
        dataset: Patches of the run; G is the size of its panel.
        members: Patches to read, such as those that train; no others are read.
        seed: Draws the bins that are kept where there are more than ``most``.
        most: Largest number of rows, divided evenly among the patches.
    """
    each = math.ceil(most / max(len(members), 1))
    seeds = np.random.SeedSequence(seed).spawn(len(members))
    with ThreadPoolExecutor(core_count()) as pool:
        parts = list(
            pool.map(lambda m, s: _of_patch(dataset, m, np.random.default_rng(s), each),
                     members, seeds)
        )  # fmt: skip
    sizes = [part[0] for part in parts]
    n_rows = [len(size) for size in sizes]
    return PatchRows(
        indptr=np.concatenate([[0], np.cumsum(np.concatenate([[], *sizes]))]).astype(np.int64),
        gene=np.concatenate([np.empty(0, np.int32), *(part[1] for part in parts)]),
        count=np.concatenate([np.empty(0, np.float32), *(part[2] for part in parts)]),
        exposure=np.concatenate([np.empty(0), *(part[3] for part in parts)]),
        n_genes=len(dataset.panel),
        member=np.repeat(np.arange(len(members)), n_rows),
        cell=np.concatenate([np.empty(0, np.int64), *(part[4] for part in parts)]),
        coverage=_coverage(dataset, members, n_rows),
    )


def _coverage(
    dataset: PatchDataset, members: Sequence[Member], n_rows: Sequence[int]
) -> Coverage | None:
    if dataset.measured(members) is None:
        return None
    stores = np.array([member.store for member in members], np.int64)
    return Coverage(np.repeat(stores, n_rows), dataset.measured_SG)


def _of_patch(
    dataset: PatchDataset, member: Member, rng: np.random.Generator, most: int
) -> tuple[Int64Array, Array, Float32Array, Float64Array, Int64Array]:
    """Number of counts per row, genes, counts, exposures and cells of a patch's rows."""
    factor = ROW_UM // BIN_UM
    side = PATCH_BINS // factor
    mask = dataset.patch(member).tissue_mask
    n_bins = sum_pool(mask[None].astype(np.float32), factor).ravel()
    cells = np.flatnonzero(2 * n_bins >= factor**2)
    if len(cells) > most:
        cells = np.sort(rng.choice(cells, most, replace=False))
    exposure = n_bins
    if dataset.cohort_exposure is not None:
        exposure = sum_pool(dataset.exposure(member)[None], factor).ravel()
    counts = dataset.panel_counts(member)
    inside = mask.ravel()[counts.position]
    counts = replace(
        counts,
        gene=counts.gene[inside],
        position=counts.position[inside],
        count=counts.count[inside],
    ).pooled(ROW_UM)
    row_of = np.full(side * side, -1)
    row_of[cells] = np.arange(len(cells))
    row = row_of[counts.position]
    order = np.argsort(row, kind="stable")  # the counts are sorted by gene
    order = order[np.count_nonzero(row < 0) :]
    sizes = np.bincount(row[order], minlength=len(cells))
    gene, count = counts.gene[order].astype(np.int32), counts.count[order].astype(np.float32)
    return sizes, gene, count, exposure[cells].astype(np.float64), cells
