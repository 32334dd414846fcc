"""Settings of the tiny simulated cohort that conftest makes once per session."""

from virchow_st.config import ExtractConfig, SimulateConfig

TINY = SimulateConfig(bins=384, genes=120)
STAIN = ExtractConfig(encoder="stain", device="cpu")
