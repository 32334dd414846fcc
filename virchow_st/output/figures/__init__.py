"""Figures of a run, drawn from its result files only: no store, slide, model or GPU is needed."""

from virchow_st.output.figures.choice import find_genes, strongest_genes
from virchow_st.output.figures.draw import draw_figures

__all__ = ["draw_figures", "find_genes", "strongest_genes"]
