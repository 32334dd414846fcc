"""Rows of sparse counts are exactly the 16 µm bins of the patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_training import Watched, opened, two_patients

from virchow_st.training.rows import SparseRows, rows_of


def dense(rows: SparseRows) -> np.ndarray:
    out = np.zeros((len(rows), rows.n_genes))
    np.add.at(out, (rows.row, rows.gene), rows.count)
    return out


def draw(n: int = 50, G: int = 20, seed: int = 0) -> tuple[np.ndarray, SparseRows]:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.3, 3.0, (n, G)))
    counts[3], counts[:, 5] = 0, 0
    return counts, SparseRows.from_dense(counts, rng.integers(1, 65, n))


def test_rows_hold_the_counts() -> None:
    counts, rows = draw()
    np.testing.assert_array_equal(dense(rows), counts)
    np.testing.assert_array_equal(rows.totals, counts.sum(1))
    np.testing.assert_array_equal(rows.gene_totals, counts.sum(0))


def test_some_rows_are_taken() -> None:
    counts, rows = draw()
    chosen = np.array([7, 3, 0, 3, 49])
    taken = rows.taken(chosen)
    np.testing.assert_array_equal(dense(taken), counts[chosen])
    np.testing.assert_array_equal(taken.exposure, rows.exposure[chosen])


def test_thinned_parts_add_up() -> None:
    counts, rows = draw(n=4000)
    kept, left = rows.thinned(0.8, np.random.default_rng(1))
    np.testing.assert_array_equal(dense(kept) + dense(left), counts)
    assert kept.count.min() > 0
    assert kept.count.sum() / rows.count.sum() == pytest.approx(0.8, abs=0.01)
    np.testing.assert_allclose(kept.exposure + left.exposure, rows.exposure)
    np.testing.assert_allclose(kept.exposure, 0.8 * rows.exposure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exposure": np.zeros(2)}, "exposure: expected finite numbers above 0"),
        ({"gene": np.array([0, 3])}, "gene: expected 0 to 2"),
        ({"indptr": np.array([0, 1, 3])}, "rows: expected indptr of 3"),
        ({"count": np.ones(3, np.float32)}, "3 counts"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(
    change: dict[str, np.ndarray], message: str
) -> None:
    parts = {
        "indptr": np.array([0, 1, 2]),
        "gene": np.array([0, 2]),
        "count": np.ones(2, np.float32),
        "exposure": np.ones(2),
    }
    with pytest.raises(ValueError, match=message):
        SparseRows(**parts | change, n_genes=3)  # type: ignore[arg-type]


def test_rows_are_the_16_um_bins_of_the_patches(tmp_path: Path) -> None:
    """Against dense counts, bin by bin."""
    dataset, split = opened(two_patients(tmp_path))
    rows = rows_of(dataset, split.train, seed=0)
    got, at = dense(rows), 0
    for i, member in enumerate(split.train):
        patch = dataset.patch(member)
        genes = dataset.panel.indices(dataset.stores[member.store])
        counts = patch.dense_counts(genes) * patch.tissue_mask
        for cell in range(256):
            row, col = divmod(cell, 16)
            bins = np.s_[8 * row : 8 * row + 8, 8 * col : 8 * col + 8]
            n = patch.tissue_mask[bins].sum()
            if n < 32:
                continue
            assert (rows.member[at], rows.cell[at], rows.exposure[at]) == (i, cell, n)
            np.testing.assert_array_equal(got[at], counts[:, *bins].sum((1, 2)))
            at += 1
    assert at == len(rows)


def test_only_the_patches_given_are_read(tmp_path: Path) -> None:
    dataset, split = opened(two_patients(tmp_path))
    watched = Watched(dataset.stores, dataset.panel)
    watched.allowed = split.train
    assert len(rows_of(watched, split.train, 0)) > 0
    with pytest.raises(AssertionError, match="does not train"):
        rows_of(watched, split.validation, 0)


def test_of_many_bins_some_are_drawn(tmp_path: Path) -> None:
    dataset, split = opened(two_patients(tmp_path))
    every = rows_of(dataset, split.train, 0)
    few, same, other = (rows_of(dataset, split.train, seed, most=64) for seed in (0, 0, 1))
    each = -(-64 // len(split.train))
    assert np.bincount(few.member).max() == each < np.bincount(every.member).max()
    np.testing.assert_array_equal(few.cell, same.cell)
    assert not np.array_equal(few.cell, other.cell)
    places = {(m, c): i for i, (m, c) in enumerate(zip(every.member, every.cell, strict=True))}
    at = np.array([places[pair] for pair in zip(few.member, few.cell, strict=True)])
    np.testing.assert_array_equal(dense(few), dense(every)[at])


def test_no_patches_have_no_rows(tmp_path: Path) -> None:
    dataset, _ = opened(two_patients(tmp_path))
    rows = rows_of(dataset, (), 0)
    assert (len(rows), rows.n_genes) == (0, 3)
