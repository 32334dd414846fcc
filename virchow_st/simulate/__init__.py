"""Simulated Visium HD slides whose H&E image and counts are generated from one known tissue.

The public names are imported on first use, so that importing the package stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virchow_st.simulate.cohort import simulate_cohort
    from virchow_st.simulate.truth import true_exposure, true_rate

__all__ = ["simulate_cohort", "true_exposure", "true_rate"]


def __getattr__(name: str) -> Any:
    if name == "simulate_cohort":
        from virchow_st.simulate.cohort import simulate_cohort

        return simulate_cohort
    if name == "true_rate":
        from virchow_st.simulate.truth import true_rate

        return true_rate
    if name == "true_exposure":
        from virchow_st.simulate.truth import true_exposure

        return true_exposure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
