"""Figures of a run, drawn from its result files only: no store, slide, model or GPU is needed."""

from virchow_st.output.figures.draw import draw_figures

__all__ = ["draw_figures"]
