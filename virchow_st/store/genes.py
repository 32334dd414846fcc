"""Genes by what people call them: a symbol, or an id where the symbol stands for several."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.types import Int64Array

_HEADS = ("gene_id", "symbol", "gene")


def split_names(text: str) -> list[str]:
    """Names from an option's value: with commas between them, or else the path of a file of them.

    Raises:
        ConfigError: there is no name in it.
    """
    if "," not in text and Path(text).is_file():
        return names_in_file(Path(text))
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"genes: expected symbols or ids with commas, or a file; got {text!r}")
    return names


def names_in_file(path: Path) -> list[str]:
    """The first column of a file, a name a line, without a head such as a run's panel.tsv has.

    Raises:
        ConfigError: it cannot be read, or names nothing.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read as a list of genes ({e})") from None
    names = [line.replace(",", "\t").split("\t")[0].strip() for line in lines]
    names = [name for name in names if name and name not in _HEADS]
    if not names:
        raise ConfigError(f"{path}: expected a gene id or symbol a line; the file names none")
    return names


def find_genes(
    names: Iterable[str], ids: Sequence[str], symbols: Sequence[str], source: str
) -> Int64Array:
    """Where genes are in a list, in the order asked for.

    Args:
        names: ids or symbols.
        ids, symbols: of the list.
        source: what the list is of, for messages.

    Returns:
        (N,) int64, each once.

    Raises:
        ConfigError: a name is not in the list, or stands for several of its genes; or two names
            are the same gene.
    """
    by_name = {gene: [i] for i, gene in enumerate(ids)}
    is_id = set(ids)
    for i, symbol in enumerate(symbols):
        if symbol not in is_id:
            by_name.setdefault(symbol, []).append(i)
    found: list[int] = []
    for name in names:
        places = by_name.get(name, [])
        if not places:
            as_written = {known.upper(): known for known in by_name}
            close = [as_written[c] for c in difflib.get_close_matches(name.upper(), as_written)]
            hint = f"did you mean {', '.join(close)}?" if close else "look at its list of genes"
            raise ConfigError(f"{source}: has no gene {name!r}; {hint}")
        if len(places) > 1:
            these = ", ".join(ids[i] for i in places)
            raise ConfigError(f"{source}: symbol {name!r} stands for {these}; give one of these")
        if places[0] in found:
            raise ConfigError(f"{source}: gene {name!r} is asked for twice; name each once")
        found.append(places[0])
    return np.array(found, np.int64)
