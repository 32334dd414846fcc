"""Gene expression at 2 µm from H&E: Virchow2 tokens, Visium HD counts, a small decoder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virchow_st.plot import plot_gene
    from virchow_st.predict.array import ImageRates
    from virchow_st.predict.load import Run, load_run
    from virchow_st.run.panel import Panel
    from virchow_st.store.reader import Patch, Store, open_store

__version__ = "0.1.0"

_HOMES = {
    "ImageRates": "virchow_st.predict.array",
    "Panel": "virchow_st.run.panel",
    "Patch": "virchow_st.store.reader",
    "Run": "virchow_st.predict.load",
    "Store": "virchow_st.store.reader",
    "load_run": "virchow_st.predict.load",
    "open_store": "virchow_st.store.reader",
    "plot_gene": "virchow_st.plot",
}

__all__ = [
    "ImageRates",
    "Panel",
    "Patch",
    "Run",
    "Store",
    "__version__",
    "load_run",
    "open_store",
    "plot_gene",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
