"""Losses on decoder outputs, and methods that balance the scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from virchow_st.models.losses.base import Balance, Objective
    from virchow_st.models.losses.factor_poisson import FactorStart


def build_objective(
    name: str,
    train_rate: Tensor,
    train_std: Tensor,
    scales_um: Sequence[int],
    factors: FactorStart | None = None,
) -> Objective:
    """Build the loss that ``--loss`` names.

    Args:
        name: ``poisson``, ``nb`` or ``mse``.
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches.
        train_std: (4, G) standard deviation of their counts at 2, 4, 8 and 16 µm.
        scales_um: Sides of the supervised bins, µm.
        factors: Factors that the rates of all genes are made of; None if the decoder predicts the
            genes directly. `TrainConfig` allows them with ``poisson`` alone.

    Raises:
        ValueError: Unknown name.
    """
    if factors is not None:
        from virchow_st.models.losses.factor_poisson import FactorPoisson

        return FactorPoisson(train_rate, scales_um, factors)
    if name == "poisson":
        from virchow_st.models.losses.poisson import MultiScalePoisson

        return MultiScalePoisson(train_rate, scales_um)
    if name == "nb":
        from virchow_st.models.losses.negative_binomial import MultiScaleNegativeBinomial

        return MultiScaleNegativeBinomial(train_rate, train_std, scales_um)
    if name == "mse":
        from virchow_st.models.losses.squared import MultiScaleSquared

        return MultiScaleSquared(train_rate, train_std, scales_um)
    raise ValueError(f"loss: expected poisson, nb or mse, got {name!r}")


def build_balance(name: str, n_tasks: int) -> Balance:
    """Build the method that ``--balance`` names for balancing the scales.

    Args:
        name: ``gradnorm``, ``uncertainty`` or ``equal``.
        n_tasks: Number of scales.

    Raises:
        ValueError: Unknown name.
    """
    from virchow_st.models.losses.balance import Equal, GradNorm, Uncertainty

    if name == "gradnorm":
        return GradNorm(n_tasks)
    if name == "uncertainty":
        return Uncertainty(n_tasks)
    if name == "equal":
        return Equal(n_tasks)
    raise ValueError(f"balance: expected gradnorm, uncertainty or equal, got {name!r}")
