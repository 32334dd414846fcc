"""What needs no decoder, fitted on the training patches: the figures a decoder has to beat.

docs/metrics.md, "Baselines", defines each.
"""

from virchow_st.evaluation.baselines.fit import (
    BASELINES,
    ORACLES,
    Baseline,
    Baselines,
    fit_baselines,
)

__all__ = ["BASELINES", "ORACLES", "Baseline", "Baselines", "fit_baselines"]
