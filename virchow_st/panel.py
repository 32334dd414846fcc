"""The panel: the fixed, ordered list of genes that a run predicts."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.store.reader import Store
from virchow_st.types import Float64Array, Int64Array


@dataclass(frozen=True)
class Panel:
    """Genes by id, with their symbols, in the order of a decoder's output."""

    ids: tuple[str, ...]
    symbols: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def indices(self, store: Store) -> Int64Array:
        """Where the panel's genes are in a store, (G,); raises `ConfigError` if one is missing."""
        place = {gene: i for i, gene in enumerate(store.genes.ids)}
        if missing := [gene for gene in self.ids if gene not in place]:
            raise ConfigError(
                f"{store.path}: has no counts of {len(missing)} panel genes, {missing[0]} for one; "
                f"choose a panel of genes that every slide measured"
            )
        return np.array([place[gene] for gene in self.ids], np.int64)

    def write(self, path: Path) -> None:
        """Write as a table of gene_id and symbol, tab-separated."""
        with open(path, "w", newline="", encoding="utf-8") as f:
            rows = csv.writer(f, delimiter="\t", lineterminator="\n")
            rows.writerow(["gene_id", "symbol"])
            rows.writerows(zip(self.ids, self.symbols, strict=True))

    @classmethod
    def read(cls, path: Path) -> Panel:
        """Read what `write` wrote."""
        with open(path, newline="", encoding="utf-8") as f:
            rows = list(csv.reader(f, delimiter="\t"))
        if not rows or rows[0] != ["gene_id", "symbol"]:
            raise ConfigError(f"{path}: expected a panel with the columns gene_id and symbol")
        return cls(tuple(r[0] for r in rows[1:]), tuple(r[1] for r in rows[1:]))


def choose_panel(spec: str, train: Sequence[Store], others: Sequence[Store] = ()) -> Panel:
    """Panel from ``top50``, ``top:N``, or a file with a gene id or symbol in the first column.

    The top genes are those whose counts per 2 µm tissue bin vary most (variance) over the
    training stores. Only genes that every store lists can be chosen; of ``others`` (the test
    patient's) nothing but that list is read.

    Raises:
        ConfigError: a spec that is none of these, too few genes, a missing or ambiguous gene.
    """
    common = set(train[0].genes.ids).intersection(*(s.genes.ids for s in [*train[1:], *others]))
    symbol_of = dict(zip(train[0].genes.ids, train[0].genes.symbols, strict=True))
    if spec == "top50" or spec.startswith("top:"):
        ids = _most_variable(_size(spec), train, common)
    else:
        ids = _named_genes(Path(spec), common, symbol_of)
    return Panel(ids, tuple(symbol_of[gene] for gene in ids))


def _size(spec: str) -> int:
    size = spec.removeprefix("top").removeprefix(":")
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"panel: expected top50, top:N or a file; got {spec!r}")
    return int(size)


def _most_variable(size: int, train: Sequence[Store], common: set[str]) -> tuple[str, ...]:
    variance = _variance(train, sorted(common))
    detected = sorted((gene for gene in variance if variance[gene] > 0), key=lambda g: -variance[g])
    if len(detected) < size:
        raise ConfigError(
            f"panel: expected at least {size} genes with counts in every store; "
            f"got {len(detected)}; ask for fewer with --panel top:N"
        )
    return tuple(detected[:size])


def _variance(stores: Sequence[Store], ids: Sequence[str]) -> dict[str, float]:
    """Variance of each gene's counts per 2 µm tissue bin, over all patches."""
    sums: Float64Array = np.zeros((2, len(ids)))
    n_bins = 0
    for store in stores:
        place = {gene: i for i, gene in enumerate(ids)}
        to_id = np.array([place.get(gene, -1) for gene in store.genes.ids])
        for patch in store:
            stored = patch.sparse_counts
            gene = np.repeat(to_id[stored.genes], np.diff(stored.indptr))
            counts = stored.counts[gene >= 0].astype(np.float64)
            gene = gene[gene >= 0]
            sums[0] += np.bincount(gene, counts, len(ids))
            sums[1] += np.bincount(gene, counts**2, len(ids))
            n_bins += int(patch.tissue_mask.sum())
    mean, mean_square = sums / max(n_bins, 1)
    return dict(zip(ids, mean_square - mean**2, strict=True))


def _named_genes(path: Path, common: set[str], symbol_of: dict[str, str]) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"panel: expected top50, top:N or a readable file; got {path}") from None
    names = [line.replace(",", "\t").split("\t")[0].strip() for line in lines]
    names = [name for name in names if name and name not in ("gene_id", "symbol", "gene")]
    by_symbol: dict[str, list[str]] = {}
    for gene in sorted(common):
        by_symbol.setdefault(symbol_of[gene], []).append(gene)
    chosen: list[str] = []
    for name in names:
        found = [name] if name in common else by_symbol.get(name, [])
        if not found:
            raise ConfigError(f"{path}: gene {name} is not in every store; take it out")
        if len(found) > 1:
            raise ConfigError(
                f"{path}: symbol {name} stands for {', '.join(found)}; give the gene id"
            )
        chosen += found
    if not chosen:
        raise ConfigError(f"{path}: expected a gene id or symbol a line; the file names none")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"{path}: names a gene twice; name each once")
    return tuple(chosen)
