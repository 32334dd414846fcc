"""Decoder, objective, balance and optimiser of a training run, and one optimiser step.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from virchow_st.config import TrainConfig
from virchow_st.models.decoders import build_decoder
from virchow_st.models.decoders.base import Decoder
from virchow_st.models.decoders.variation import variations
from virchow_st.models.losses import build_balance, build_objective
from virchow_st.models.losses.balance import gradient_norms
from virchow_st.models.losses.factor_poisson import FactorStart
from virchow_st.run.checkpoint import load_checkpoint
from virchow_st.run.split import Member
from virchow_st.runtime.distributed import Processes
from virchow_st.training.closed_form import TokenRegression
from virchow_st.training.dataset import BatchPlan, PatchDataset
from virchow_st.training.ema import RunningMean
from virchow_st.training.feed.base import DeviceBatch
from virchow_st.training.forward import Forward
from virchow_st.training.loss_watch import LossWatch
from virchow_st.training.muon import Muon, matrices
from virchow_st.training.statistics import TrainingStatistics, tissue_bins
from virchow_st.types import SCALES_UM, Int64Array

_MAX_GRADIENT_NORM = 1.0
_WEIGHT_DECAY = 1e-2
# Parameters of the objective, such as log dispersions, have to change much in few steps. They do
# not depend on the size of the decoder, so neither does their learning rate.
_OBJECTIVE_LR = 1e-2


class Learner:
    """A decoder with its objective, their optimiser, and the balance of the scales.

    Args:
        config: Settings of the run.
        dataset: Patches of the run; gives token shape and number of genes.
        members: Training patches.
        statistics: Means and standard deviations of the training patches.
        device: Device of all modules.
        processes: Processes that share every batch.
        is_compiled: Whether the decoder is compiled.
        n_steps: Optimiser steps of the whole run.
        stain_variation: Strength of the augmentation.
        regression: What the decoder begins as, if it begins as a regression; not for a resumed run.
        factors: Factors that the genes' rates are sums of; None if they are predicted directly.

    Attributes:
        decoder, objective, balance, optimizer: Modules and optimiser, equal in all processes.
        mean: Moving average of the decoder's weights with ``--ema``, else None.
        n_factors: Number of factors; 0 if genes are predicted directly.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: PatchDataset,
        members: Sequence[Member],
        statistics: TrainingStatistics,
        device: torch.device,
        processes: Processes,
        is_compiled: bool,
        n_steps: int,
        stain_variation: float,
        regression: TokenRegression | None = None,
        factors: FactorStart | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.device = device
        self.processes = processes
        self._lr, self._balance_every = config.lr, config.balance_every
        self.n_factors = 0 if factors is None else len(factors.rate_K)
        self._n_steps, self._with_muon = n_steps, config.optimizer == "muon"
        rate, std = torch.tensor(statistics.rate), torch.tensor(statistics.std)
        self.objective = build_objective(config.loss, rate, std, config.scales, factors).to(device)
        self.decoder: Decoder = build_decoder(
            config.decoder,
            dataset.token_shape[0],
            torch.tensor(statistics.token_mean),
            torch.tensor(statistics.token_std),
            self.objective.initial_bias,
        ).to(device)
        if regression is not None:
            weights, intercept = map(torch.tensor, (regression.weights, regression.intercept))
            self.decoder.begin(weights.to(device), intercept.to(device))
        for variation in variations(self.decoder):
            variation.amount = stain_variation
        self.mean = RunningMean(self.decoder, config.ema) if config.ema else None
        self.balance = build_balance(config.balance, len(self.objective.scales_um)).to(device)
        self.optimizer = Muon(self.parameter_groups(), fused=device.type == "cuda")
        self.forward = Forward(self.decoder, device, processes, is_compiled)
        self._tissue_bins: dict[Member, Int64Array] = {}
        if processes.size > 1:  # gives each part's weight in a batch without communication
            at = [SCALES_UM.index(scale) for scale in self.objective.scales_um]
            n_measured = dataset.measured_SG.sum(1)
            self._tissue_bins = {
                member: tissue_bins(dataset.patch(member).tissue_mask)[at]
                * int(n_measured[member.store])
                for member in members
            }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser, each with its peak learning rate."""
        by_muon = matrices(self.decoder) if self._with_muon else []
        taken = {id(parameter) for parameter in by_muon}
        others = [p for p in self.decoder.parameters() if id(p) not in taken]
        of_decoder = {"peak_lr": self._lr, "weight_decay": _WEIGHT_DECAY}
        groups: list[dict[str, Any]] = [{"params": others, **of_decoder}]
        if by_muon:
            groups.append({"params": by_muon, "is_muon": True, **of_decoder})
        if learned := list(self.objective.parameters()):
            groups.append({"params": learned, "peak_lr": _OBJECTIVE_LR, "weight_decay": 0.0})
        return groups

    def step(
        self,
        number: int,
        lr_share: float,
        batches: Sequence[BatchPlan],
        own_batches: Iterator[DeviceBatch],
        watch: LossWatch,
    ) -> None:
        """Take one optimiser step over the accumulated batches.

        Args:
            number: Index of the step in the run, from 0.
            lr_share: Factor of the peak learning rates.
            batches: Plans of the whole batches of the step.
            own_batches: Iterator over this process's part of each batch.
            watch: Receives the losses of each batch.
        """
        n_in_step = sum(len(batch) for batch in batches)
        for batch in batches:
            is_last = batch is batches[-1]
            with self.forward.gradients_summed(when=is_last):
                part_S = self.losses(next(own_batches), batch)  # unweighted, of this process's part
                losses_S = self.processes.sum(part_S.detach().clone())  # of the whole batch
                watch.look(batch, losses_S)  # raises if they are not finite
                if is_last and number % self._balance_every == 0:
                    norms_S = None
                    if self.balance.needs_gradient_norms:
                        shared = self.decoder.head.weight
                        norms_S = gradient_norms(part_S, shared, self.processes.sum)
                    self.balance.update(losses_S, norms_S)
                weighted = (self.balance.weights * part_S).sum() * len(batch) / n_in_step
                (weighted * self.processes.size).backward()  # gradients become the processes' mean

        for parameter in self.objective.parameters():
            self.processes.mean(parameter.grad)
        nn.utils.clip_grad_norm_(self.decoder.parameters(), _MAX_GRADIENT_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.decoder.advance((number + 1) / self._n_steps)
        if self.mean is not None:
            self.mean.update(self.decoder, number)
            self.mean.decoder.advance((number + 1) / self._n_steps)

    def losses(self, batch: DeviceBatch, whole: BatchPlan) -> Tensor:
        """Contribution of this process's part of a batch to the loss at each scale, (S,).

        A loss is a sum over genes and bins divided by the number of those that were measured in
        tissue, so a part is weighted with its share of this number.
        """
        part = self.processes.part(len(whole))
        output_BGRC = self.forward(batch, part, len(whole))
        losses_S = self.objective(output_BGRC, batch.counts, batch.exposure, batch.measured)
        if self.processes.size == 1:
            return losses_S
        own_S, all_S = (
            sum((self._tissue_bins[m] for m in members), start=np.zeros(len(losses_S)))
            for members in (whole.members[part], whole.members)
        )
        share_S = torch.tensor(own_S / np.maximum(all_S, 1), dtype=torch.float32)
        return losses_S * share_S.to(self.device)

    # --- content of checkpoints ---------------------------------------------------------------

    @property
    def eval_decoder(self) -> Decoder:
        """Decoder to validate and to save: the moving average with ``--ema``, else the decoder."""
        return self.decoder if self.mean is None else self.mean.decoder

    def inference_modules(self) -> dict[str, nn.Module]:
        """Modules needed for prediction."""
        return {"decoder": self.eval_decoder, "objective": self.objective}

    def training_modules(self) -> dict[str, nn.Module]:
        """Modules needed to resume training, besides the optimiser."""
        modules: dict[str, nn.Module] = {"decoder": self.decoder, "objective": self.objective}
        modules["balance"] = self.balance
        if self.mean is not None:
            modules["mean"] = self.mean.decoder
        return modules

    def load(self, folder: Path) -> dict[str, Any]:
        """Load a checkpoint to resume from; returns its state."""
        return load_checkpoint(folder, self.training_modules(), self.optimizer)
