"""Losses on decoder outputs, and how the scales are balanced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from virchow_st.models.losses.base import Balance, Objective


def build_objective(
    name: str, train_rate: Tensor, train_std: Tensor, scales_um: Sequence[int]
) -> Objective:
    """Loss by the name that ``--loss`` takes.

    Args:
        name: ``poisson``, ``nb`` or ``mse``.
        train_rate: (G,) mean UMIs of a tissue bin in training.
        train_std: (4, G) standard deviation of the counts at 2, 4, 8 and 16 µm.
        scales_um: sides of the bins to supervise, µm.
    """
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
    """How scales are balanced, by the name that ``--balance`` takes.

    Args:
        name: ``gradnorm``, ``uncertainty`` or ``equal``.
        n_tasks: number of scales.
    """
    from virchow_st.models.losses.balance import Equal, GradNorm, Uncertainty

    if name == "gradnorm":
        return GradNorm(n_tasks)
    if name == "uncertainty":
        return Uncertainty(n_tasks)
    if name == "equal":
        return Equal(n_tasks)
    raise ValueError(f"balance: expected gradnorm, uncertainty or equal, got {name!r}")
