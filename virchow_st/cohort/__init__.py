"""A list of jobs shared by workers of any executor: claimed, done once, resumed by itself."""

from virchow_st.cohort.job import Done, Item, Job, Outcome
from virchow_st.cohort.run import run_cohort

__all__ = ["Done", "Item", "Job", "Outcome", "run_cohort"]
