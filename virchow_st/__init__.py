"""Gene expression at 2 µm from H&E: Virchow2 tokens, Visium HD counts, a small decoder.

The names in ``__all__`` are public; each is imported when it is first used, so that importing the
package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from virchow_st.runtime.caches import place_caches

if TYPE_CHECKING:
    from virchow_st.config import (
        CellsConfig,
        DenoiseConfig,
        ExportConfig,
        ExtractConfig,
        PredictConfig,
        SimulateConfig,
        TrainConfig,
    )
    from virchow_st.denoise.store import denoise_store
    from virchow_st.errors import VirchowSTError
    from virchow_st.evaluation.evaluate import evaluate_run
    from virchow_st.evaluation.leave_one_out import leave_one_out
    from virchow_st.extract.cohort import extract_cohort
    from virchow_st.extract.slide import extract_slide
    from virchow_st.field.read import Field, open_field
    from virchow_st.models.decoders.base import Decoder, GeneHead
    from virchow_st.models.decoders.parts import TokenNorm
    from virchow_st.models.encoders.base import Encoder, Tokens
    from virchow_st.output.cells.by_gene import cell_interval, cell_rates
    from virchow_st.output.cells.table import cell_table
    from virchow_st.output.cells.write import write_cells
    from virchow_st.output.export.write import export_run
    from virchow_st.output.figures import draw_figures
    from virchow_st.output.report import write_report
    from virchow_st.plot import plot_gene, plot_sources
    from virchow_st.predict.array import ImageRates
    from virchow_st.predict.load import Run, load_run
    from virchow_st.predict.slide import predict_slide
    from virchow_st.run.compare import compare_runs
    from virchow_st.run.panel import Panel
    from virchow_st.runtime.progress import Progress
    from virchow_st.simulate.cohort import simulate_cohort
    from virchow_st.slide.cells.segmenter import Segmenter
    from virchow_st.store.reader import Patch, Store, open_store
    from virchow_st.training.train import train

place_caches()  # before numba, torch and Matplotlib are loaded by whatever follows

__version__ = "0.2.0"

_HOMES = {
    "CellsConfig": "virchow_st.config",
    "Decoder": "virchow_st.models.decoders.base",
    "DenoiseConfig": "virchow_st.config",
    "Encoder": "virchow_st.models.encoders.base",
    "ExportConfig": "virchow_st.config",
    "ExtractConfig": "virchow_st.config",
    "Field": "virchow_st.field.read",
    "GeneHead": "virchow_st.models.decoders.base",
    "ImageRates": "virchow_st.predict.array",
    "Panel": "virchow_st.run.panel",
    "Patch": "virchow_st.store.reader",
    "PredictConfig": "virchow_st.config",
    "Progress": "virchow_st.runtime.progress",
    "Run": "virchow_st.predict.load",
    "Segmenter": "virchow_st.slide.cells.segmenter",
    "SimulateConfig": "virchow_st.config",
    "Store": "virchow_st.store.reader",
    "TokenNorm": "virchow_st.models.decoders.parts",
    "Tokens": "virchow_st.models.encoders.base",
    "TrainConfig": "virchow_st.config",
    "VirchowSTError": "virchow_st.errors",
    "cell_interval": "virchow_st.output.cells.by_gene",
    "cell_rates": "virchow_st.output.cells.by_gene",
    "cell_table": "virchow_st.output.cells.table",
    "compare_runs": "virchow_st.run.compare",
    "denoise_store": "virchow_st.denoise.store",
    "draw_figures": "virchow_st.output.figures",
    "evaluate_run": "virchow_st.evaluation.evaluate",
    "export_run": "virchow_st.output.export.write",
    "extract_cohort": "virchow_st.extract.cohort",
    "extract_slide": "virchow_st.extract.slide",
    "leave_one_out": "virchow_st.evaluation.leave_one_out",
    "load_run": "virchow_st.predict.load",
    "open_field": "virchow_st.field.read",
    "open_store": "virchow_st.store.reader",
    "plot_gene": "virchow_st.plot",
    "plot_sources": "virchow_st.plot",
    "predict_slide": "virchow_st.predict.slide",
    "simulate_cohort": "virchow_st.simulate.cohort",
    "train": "virchow_st.training.train",
    "write_cells": "virchow_st.output.cells.write",
    "write_report": "virchow_st.output.report",
}

__all__ = [
    "CellsConfig",
    "Decoder",
    "DenoiseConfig",
    "Encoder",
    "ExportConfig",
    "ExtractConfig",
    "Field",
    "GeneHead",
    "ImageRates",
    "Panel",
    "Patch",
    "PredictConfig",
    "Progress",
    "Run",
    "Segmenter",
    "SimulateConfig",
    "Store",
    "TokenNorm",
    "Tokens",
    "TrainConfig",
    "VirchowSTError",
    "__version__",
    "cell_interval",
    "cell_rates",
    "cell_table",
    "compare_runs",
    "denoise_store",
    "draw_figures",
    "evaluate_run",
    "export_run",
    "extract_cohort",
    "extract_slide",
    "leave_one_out",
    "load_run",
    "open_field",
    "open_store",
    "plot_gene",
    "plot_sources",
    "predict_slide",
    "simulate_cohort",
    "train",
    "write_cells",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, for completion in notebooks."""
    return __all__
