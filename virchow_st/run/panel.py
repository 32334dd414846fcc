"""The panel: the fixed, ordered list of genes that a run predicts."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.genes import find_genes, names_in_file
from virchow_st.store.reader import Store
from virchow_st.types import Float64Array, Int64Array

# Releases of an annotation rename a few per cent of the symbols; more than this share of renamed
# genes means that the ids are not ids at all.
_MOST_RENAMED = 0.1


@dataclass(frozen=True)
class Panel:
    """Genes by id, with their symbols, in the order of a decoder's output.

    Attributes:
        ids, symbols: of the genes.
        key: ``"id"``, or ``"symbol"`` where the run's slides give one id to different genes.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    key: str = "id"

    def __len__(self) -> int:
        return len(self.ids)

    def indices(self, store: Store) -> Int64Array:
        """Where the panel's genes are in a store, (G,); raises `ConfigError` if one is missing."""
        place = _places(store, self.key)
        wanted = self.ids if self.key == "id" else self.symbols
        if missing := [gene for gene in wanted if gene not in place]:
            raise ConfigError(
                f"{store.path}: has no counts of {len(missing)} panel genes, {missing[0]} for one; "
                f"choose a panel of genes that every slide measured"
            )
        return np.array([place[gene] for gene in wanted], np.int64)

    def index(self, gene: str) -> int:
        """Where a gene is in the panel, by symbol or id; raises `ConfigError` if it is not."""
        return int(find_genes([gene], self.ids, self.symbols, "panel")[0])

    def write(self, path: Path) -> None:
        """Write as a table of gene_id, symbol and key, tab-separated."""
        with open(path, "w", newline="", encoding="utf-8") as f:
            rows = csv.writer(f, delimiter="\t", lineterminator="\n")
            rows.writerow(_COLUMNS)
            rows.writerows((*gene, self.key) for gene in zip(self.ids, self.symbols, strict=True))

    @classmethod
    def read(cls, path: Path) -> Panel:
        """Read what `write` wrote."""
        try:
            with open(path, newline="", encoding="utf-8") as f:
                rows = list(csv.reader(f, delimiter="\t"))
        except (OSError, UnicodeDecodeError, csv.Error) as e:
            raise ConfigError(f"{path}: cannot be read as a panel ({e}); train anew") from None
        if len(rows) < 2 or rows[0] != _COLUMNS:
            raise ConfigError(f"{path}: expected a panel with the columns {', '.join(_COLUMNS)}")
        if {len(row) for row in rows} != {len(_COLUMNS)}:
            raise ConfigError(f"{path}: expected {len(_COLUMNS)} columns in every line; train anew")
        ids, symbols, keys = zip(*rows[1:], strict=True)
        return cls(ids, symbols, keys[0])


_COLUMNS = ["gene_id", "symbol", "matched_by"]


def choose_panel(
    spec: str,
    train: Sequence[Store],
    others: Sequence[Store] = (),
    progress: Progress = SILENT,
) -> Panel:
    """Panel from ``top50``, ``top:N``, or a file with a gene id or symbol in the first column.

    The top genes are those whose counts per 2 µm tissue bin vary most (variance) over the
    training stores. Only genes that every store lists can be chosen; of ``others`` (the test
    patient's) nothing but that list is read. Genes are the same where their ids are, unless the
    ids contradict the symbols; then unique symbols count, and `progress` gets a warning.

    Raises:
        ConfigError: a spec that is none of these, too few genes, a missing or ambiguous gene.
    """
    stores = [*train, *others]
    key = _matching_key(stores, progress)
    symbol_of = dict(zip(train[0].genes.ids, train[0].genes.symbols, strict=True))
    everywhere = set.intersection(*(set(_places(store, key)) for store in stores))
    common = {
        gene
        for gene, symbol in symbol_of.items()
        if (gene if key == "id" else symbol) in everywhere
    }
    if spec == "top50" or spec.startswith("top:"):
        ids = _most_variable(_size(spec), train, Panel(*_columns(sorted(common), symbol_of), key))
    else:
        ids = _named_genes(Path(spec), common, symbol_of)
    return Panel(*_columns(ids, symbol_of), key)


def _columns(
    ids: Sequence[str], symbol_of: dict[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(ids), tuple(symbol_of[gene] for gene in ids)


def _places(store: Store, key: str) -> dict[str, int]:
    """Index of each gene by id, or by symbol for those that have one of their own."""
    if key == "id":
        return {gene: i for i, gene in enumerate(store.genes.ids)}
    times = Counter(store.genes.symbols)
    return {symbol: i for i, symbol in enumerate(store.genes.symbols) if times[symbol] == 1}


def _matching_key(stores: Sequence[Store], progress: Progress) -> str:
    """``"id"``, or ``"symbol"`` where ids name different genes in different stores."""
    first = stores[0]
    symbol_of = dict(zip(first.genes.ids, first.genes.symbols, strict=True))
    for store in stores[1:]:
        common = [
            (gene, symbol)
            for gene, symbol in zip(store.genes.ids, store.genes.symbols, strict=True)
            if gene in symbol_of
        ]
        renamed = [(gene, symbol) for gene, symbol in common if symbol != symbol_of[gene]]
        if len(renamed) > _MOST_RENAMED * len(common):
            gene, symbol = renamed[0]
            progress.warn(
                f"{len(renamed)} of {len(common)} gene ids name different genes in {first.path} "
                f"and {store.path} ({gene} is {symbol_of[gene]} and {symbol}); genes are matched "
                f"by symbol"
            )
            return "symbol"
    return "id"


def _size(spec: str) -> int:
    size = spec.removeprefix("top").removeprefix(":")
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"panel: expected top50, top:N or a file; got {spec!r}")
    return int(size)


def _most_variable(size: int, train: Sequence[Store], candidates: Panel) -> tuple[str, ...]:
    variance = _variance(train, candidates)
    order = np.argsort(-variance, kind="stable")
    detected = [candidates.ids[i] for i in order if variance[i] > 0]
    if len(detected) < size:
        raise ConfigError(
            f"panel: expected at least {size} genes with counts in every store; "
            f"got {len(detected)}; ask for fewer with --panel top:N"
        )
    return tuple(detected[:size])


def _variance(stores: Sequence[Store], candidates: Panel) -> Float64Array:
    """Variance of each candidate's counts per 2 µm tissue bin, over all patches, (G,)."""
    sums: Float64Array = np.zeros((2, len(candidates)))
    n_bins = 0
    for store in stores:
        to_candidate = np.full(len(store.genes), -1)
        to_candidate[candidates.indices(store)] = np.arange(len(candidates))
        for patch in store:
            stored = patch.sparse_counts
            gene = np.repeat(to_candidate[stored.genes], np.diff(stored.indptr))
            counts = stored.counts[gene >= 0].astype(np.float64)
            gene = gene[gene >= 0]
            sums[0] += np.bincount(gene, counts, len(candidates))
            sums[1] += np.bincount(gene, counts**2, len(candidates))
            n_bins += int(patch.tissue_mask.sum())
    mean, mean_square = sums / max(n_bins, 1)
    return mean_square - mean**2


def _named_genes(path: Path, common: set[str], symbol_of: dict[str, str]) -> tuple[str, ...]:
    if not path.is_file():
        raise ConfigError(f"panel: expected top50, top:N or a readable file; got {path}")
    names = names_in_file(path)
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
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"{path}: names a gene twice; name each once")
    return tuple(chosen)
