"""The panel: the fixed, ordered list of genes that a run predicts."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.schema import MismatchError, read_table
from virchow_st.store.genes import find_genes, names_in_file
from virchow_st.types import Float64Array, Int64Array

if TYPE_CHECKING:
    from virchow_st.store.reader import Store

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

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The genes, one by one."""
        return tuple(map(Gene, self.ids, self.symbols))

    @property
    def labels(self) -> list[str]:
        """What each gene is called, see `gene_labels`."""
        return list(gene_labels(self.genes).values())

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
        """Read what `write` wrote; raises `ConfigError` for anything else."""
        columns = dict.fromkeys(_COLUMNS, str)
        rows = read_table(path, columns, "train anew", delimiter="\t", also=_check_rows)
        ids, symbols, keys = zip(*(row.values() for row in rows), strict=True)
        return cls(ids, symbols, keys[0])


@dataclass(frozen=True)
class Gene:
    """A gene of the panel; the id is unique, the symbol need not be."""

    id: str
    symbol: str


def find_in(panel: Sequence[Gene], names: Iterable[str], source: str) -> list[Gene]:
    """The genes of these symbols or ids, in this order; see `find_genes`."""
    ids, symbols = [gene.id for gene in panel], [gene.symbol for gene in panel]
    return [panel[i] for i in find_genes(names, ids, symbols, source)]


def gene_labels(panel: Sequence[Gene]) -> dict[str, str]:
    """What each gene is called, by id: its symbol; with the id where several have that symbol.

    The id alone where there is no symbol. No two genes have one label.
    """
    times = Counter(gene.symbol for gene in panel)
    found = {}
    for gene in panel:
        if not gene.symbol:
            found[gene.id] = gene.id
        else:
            found[gene.id] = f"{gene.symbol} ({gene.id})" if times[gene.symbol] > 1 else gene.symbol
    return found


def _check_rows(rows: Any) -> None:
    if not rows:
        raise MismatchError("holds no gene")
    if len({row["gene_id"] for row in rows}) < len(rows):
        raise MismatchError("gene_id: expected every gene once")
    if len({row["matched_by"] for row in rows}) > 1 or rows[0]["matched_by"] not in _KEYS:
        raise MismatchError(f"matched_by: expected one of {', '.join(_KEYS)} in every line")


_KEYS = ("id", "symbol")
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
