"""``vst train``: stores → a run directory with the best decoder."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from virchow_st.checkpoint import load_checkpoint, save_checkpoint, whole
from virchow_st.config import TrainConfig, from_toml, to_toml
from virchow_st.dataset import Batch, PatchDataset, TrainingStatistics, training_statistics
from virchow_st.decoders import build_decoder, decode
from virchow_st.devices import pick_device
from virchow_st.errors import ConfigError
from virchow_st.files import write_json
from virchow_st.folds import Member, Split, split_patients
from virchow_st.kernels.moments import masked_moments
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.losses import build_balance, build_objective
from virchow_st.losses.balance import gradient_norms
from virchow_st.metrics.correlation import pearson_from_moments
from virchow_st.panel import Panel, choose_panel
from virchow_st.progress import SILENT, Progress
from virchow_st.store.reader import open_store
from virchow_st.types import BIN_UM, Array, BoolArray, Float64Array

_MAX_GRADIENT_NORM = 1.0
# An epoch is one pass over the training patches, or as many as make this many optimiser steps: two
# small slides give a step or two a pass, and a recipe written in epochs would end before it began.
_LEAST_STEPS_PER_EPOCH = 8
_WEIGHT_DECAY = 1e-2
# What an objective learns itself, such as logarithms of dispersions, has far to go in few steps; it
# does not depend on the decoder's size, so neither does its learning rate.
_OBJECTIVE_LR = 1e-2


def train(
    run: Path, config: TrainConfig, *, resume: bool = False, progress: Progress = SILENT
) -> None:
    """Train a decoder and leave everything about it in the run directory.

    Args:
        run: directory to write; must be new, or with ``resume`` one begun with this configuration.
        config: what to train; ``config.stores`` holds the stores' absolute paths.
        resume: continue from the last finished epoch.
        progress: who listens.

    Raises:
        ConfigError, StoreError: before anything is written, wherever possible.
    """
    device = pick_device(config.device)
    if repeated := [path for path in config.stores if config.stores.count(path) > 1]:
        raise ConfigError(f"stores: expected each once; {repeated[0]} comes twice")
    stores = [open_store(path) for path in config.stores]
    split = split_patients(stores, config.test_patient, config.seed)
    trainers = [s for s in stores if s.patient != config.test_patient]
    testers = [s for s in stores if s.patient == config.test_patient]
    if resume:
        _check_resumable(run, config, split)
        panel = Panel.read(run / "panel.tsv")
    else:
        if run.exists():
            raise ConfigError(f"{run}: is already there; give another --run, or --resume it")
        panel = choose_panel(config.panel, trainers, testers, progress)
    dataset = PatchDataset(stores, panel)
    progress.note(
        f"{len(split.train)} patches to train on, {len(split.validation)} to validate, "
        f"{len(panel)} genes"
    )
    statistics = training_statistics(dataset, split.train)
    trainer = Trainer(config, dataset, split, statistics, device)
    if resume:
        trainer.load(run)
    else:
        run.mkdir(parents=True)
        (run / "config.toml").write_text(to_toml(config), "utf-8")
        split.write(run / "split.json", stores)
        panel.write(run / "panel.tsv")
        trainer.save(run, is_best=True)  # epoch 0: a run stopped in its first epoch can resume
    trainer.fit(run, progress)


def _check_resumable(run: Path, config: TrainConfig, split: Split) -> None:
    if not whole(run / "checkpoints" / "last").exists():
        raise ConfigError(f"{run}: nothing to resume there; delete it and train without --resume")
    begun = from_toml(TrainConfig, run / "config.toml")
    if replace(begun, device=config.device) != config:
        raise ConfigError(
            f"{run}: was begun with other options; repeat those, or give another --run"
        )
    if Split.read(run / "split.json") != split:
        raise ConfigError(f"{run}: a store was written anew since it was begun; train anew")


class Trainer:
    """A decoder, its objective and optimiser, and the loop over them."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: PatchDataset,
        split: Split,
        statistics: TrainingStatistics,
        device: torch.device,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.dataset = dataset
        self.split = split
        self.device = device
        rate, std = torch.tensor(statistics.rate), torch.tensor(statistics.std)
        self.objective = build_objective(config.loss, rate, std, config.scales).to(device)
        self.decoder = build_decoder(
            config.decoder,
            dataset.stores[0].manifest["grid"],
            torch.tensor(statistics.token_mean),
            torch.tensor(statistics.token_std),
            self.objective.initial_bias,
        ).to(device)
        self.dataset.wants_image = self.decoder.wants_image
        self.balance = build_balance(config.balance, len(self.objective.scales_um)).to(device)
        self.optimizer = torch.optim.AdamW(self._parameter_groups())
        self.patches_per_step = config.batch_size * config.accumulate
        passes = math.ceil(_LEAST_STEPS_PER_EPOCH * self.patches_per_step / len(split.train))
        self.epoch_members = split.train * passes
        self.steps_per_epoch = math.ceil(len(self.epoch_members) / self.patches_per_step)
        self.epoch = 0
        self.best_epoch = 0
        self.best_score = math.inf
        self.first_losses: list[float] | None = None

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [
            {
                "params": list(self.decoder.parameters()),
                "peak_lr": self.config.lr,
                "weight_decay": _WEIGHT_DECAY,
            }
        ]
        if learned := list(self.objective.parameters()):
            groups.append({"params": learned, "peak_lr": _OBJECTIVE_LR, "weight_decay": 0.0})
        return groups

    # --- the loop -----------------------------------------------------------------------------

    def fit(self, run: Path, progress: Progress) -> None:
        """Train until the epochs are over or validation has not improved for ``patience``."""
        if self.first_losses is None:
            self.first_losses = self.validate()[0].tolist()
        while self.epoch < self.config.epochs and not self._out_of_patience():
            started = time.perf_counter()
            self.epoch += 1
            train_losses = self.train_epoch()
            seconds = time.perf_counter() - started
            losses, pcc = self.validate()
            # Relative to the gene means that the decoder starts from, so that scales count alike.
            score = float((losses.cpu() / torch.tensor(self.first_losses)).mean())
            if not math.isfinite(score):
                raise ConfigError(
                    f"the validation loss is not finite after epoch {self.epoch}; the last "
                    f"checkpoint is kept, lower --lr"
                )
            is_best = score < self.best_score
            if is_best:
                self.best_score, self.best_epoch = score, self.epoch
            line = {
                "epoch": self.epoch,
                "step": self.epoch * self.steps_per_epoch,
                "lr": self.config.lr * self.schedule(self.epoch * self.steps_per_epoch - 1),
                "train": {"loss": self._by_scale(train_losses)},
                "weights": self._by_scale(self.balance.weights),
                "validation": {
                    "loss": self._by_scale(losses), "pcc": self._by_scale(pcc), "score": score,
                },
                "best": is_best,
                "seconds": round(seconds, 3),
                "patches_per_s": round(len(self.epoch_members) / seconds, 2),
            }  # fmt: skip
            _append_line(run / "history.jsonl", line, self.epoch)
            self.save(run, is_best)
            figures = " ".join(f"{float(v):.3f}" for v in pcc)
            detail = f"validation PCC {figures}, best epoch {self.best_epoch}"
            progress.step(self.epoch, self.config.epochs, "epochs", detail)
        self._write_best_metrics(run)

    def _write_best_metrics(self, run: Path) -> None:
        lines = (run / "history.jsonl").read_text("utf-8").splitlines()
        best = json.loads(lines[self.best_epoch - 1])
        content = {"format": "virchow_st.best/1", "epoch": self.best_epoch, **best["validation"]}
        write_json(run / "best_metrics.json", content)

    def train_epoch(self) -> Tensor:
        """One epoch of optimiser steps; returns the mean loss at each scale, (S,)."""
        # Seeded by epoch, so that a resumed run goes on exactly as an uninterrupted one.
        rng = np.random.default_rng([self.config.seed, self.epoch])
        torch.manual_seed(int(rng.integers(2**31)))
        self.decoder.train()
        members, per_step = self.epoch_members, self.patches_per_step
        step = (self.epoch - 1) * self.steps_per_epoch
        total = torch.zeros(len(self.objective.scales_um), device=self.device)
        seen = 0
        for batch in self.dataset.batches(members, self.config.batch_size, rng):
            losses = self.losses(batch)  # (S,), unweighted
            if not torch.isfinite(losses).all():
                raise ConfigError(
                    f"the loss is not finite in epoch {self.epoch} at the batch of "
                    f"{_names(batch.members)}; the last checkpoint is kept, lower --lr"
                )
            n_in_step = min(per_step, len(members) - seen // per_step * per_step)
            seen += len(batch.members)
            step_ends = seen % per_step == 0 or seen == len(members)

            if step_ends and step % self.config.balance_every == 0:
                norms = None
                if self.balance.needs_gradient_norms:
                    norms = gradient_norms(losses, self.decoder.head.weight)  # (S,)
                self.balance.update(losses.detach(), norms)
            weighted = (self.balance.weights * losses).sum()
            (weighted * len(batch.members) / n_in_step).backward()
            total += losses.detach() * len(batch.members)

            if step_ends:
                nn.utils.clip_grad_norm_(self.decoder.parameters(), _MAX_GRADIENT_NORM)
                for group in self.optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * self.schedule(step)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                step += 1
        return total / len(members)

    def losses(self, batch: Batch) -> Tensor:
        """Unweighted loss at each scale, (S,)."""
        output = decode(self.decoder, batch.tokens, batch.image, self.device)
        return self._losses_of(output, batch)

    def _losses_of(self, output: Tensor, batch: Batch) -> Tensor:
        mask = torch.from_numpy(batch.tissue_mask).to(self.device)
        return self.objective(output, batch.targets, mask)

    @torch.inference_mode()
    def validate(self) -> tuple[Tensor, Tensor]:
        """Mean loss and mean per-gene PCC on the validation patches, (S,) each."""
        self.decoder.eval()
        n_scales, n_genes = len(self.objective.scales_um), len(self.dataset.panel)
        total = torch.zeros(n_scales, device=self.device)
        moments = np.zeros((n_scales, n_genes, 6))
        for batch in self.dataset.batches(self.split.validation, self.config.batch_size):
            output = decode(self.decoder, batch.tokens, batch.image, self.device)
            total += self._losses_of(output, batch) * len(batch.members)
            rates = self.objective.rate(output).cpu().numpy()
            for rate, counts, mask in zip(rates, batch.counts, batch.tissue_mask, strict=True):
                for i, scale in enumerate(self.objective.scales_um):
                    moments[i] += _pooled_moments(rate, counts, mask, scale)
        pcc = torch.tensor([_mean_pcc(m) for m in moments])
        return total / len(self.split.validation), pcc

    def schedule(self, step: int) -> float:
        """Share of the peak learning rate: linear warm-up, then a cosine to zero."""
        warmup = self.config.warmup_epochs * self.steps_per_epoch
        total = self.config.epochs * self.steps_per_epoch
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * done))

    def _out_of_patience(self) -> bool:
        return self.epoch - self.best_epoch >= self.config.patience

    def _by_scale(self, values: Tensor) -> dict[str, float | None]:
        """Values by scale; null in JSON for one that is undefined, such as a constant's PCC."""
        return {
            str(scale): round(float(v), 6) if math.isfinite(v) else None
            for scale, v in zip(self.objective.scales_um, values, strict=True)
        }

    # --- checkpoints --------------------------------------------------------------------------

    def save(self, run: Path, is_best: bool) -> None:
        """Write ``checkpoints/last``, and ``checkpoints/best`` with its figures if it is that."""
        manifest = self.dataset.stores[0].manifest
        state = {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score if self.best_epoch else None,
            "first_losses": self.first_losses,
            "grid": manifest["grid"],
            "dim": manifest["dim"],
            "encoder": manifest["encoder"],
        }
        modules = {"decoder": self.decoder, "objective": self.objective}
        if is_best:
            save_checkpoint(run / "checkpoints" / "best", modules, state)
        modules["balance"] = self.balance
        save_checkpoint(run / "checkpoints" / "last", modules, state, self.optimizer)

    def load(self, run: Path) -> None:
        """Continue from ``checkpoints/last``."""
        modules = {"decoder": self.decoder, "objective": self.objective, "balance": self.balance}
        state = load_checkpoint(run / "checkpoints" / "last", modules, self.optimizer)
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_score = math.inf if state["best_score"] is None else state["best_score"]
        self.first_losses = state["first_losses"]


def _pooled_moments(rate: Array, counts: Array, mask: BoolArray, scale_um: int) -> Float64Array:
    factor = scale_um // BIN_UM
    n_genes = len(rate)
    return masked_moments(
        sum_pool(rate, factor).reshape(n_genes, -1),
        sum_pool(np.ascontiguousarray(counts), factor).reshape(n_genes, -1),
        pool_mask(np.ascontiguousarray(mask), factor).ravel(),
    )


def _mean_pcc(moments: Float64Array) -> float:
    pcc = pearson_from_moments(moments)
    return float(np.nanmean(pcc)) if np.isfinite(pcc).any() else math.nan


def _names(members: Sequence[Member]) -> str:
    return ", ".join(f"patch {m.patch} of store {m.store}" for m in members)


def _append_line(path: Path, line: dict[str, Any], epoch: int) -> None:
    """Write the line of an epoch, dropping what a killed run may have written beyond it."""
    lines = path.read_text("utf-8").splitlines()[: epoch - 1] if path.exists() else []
    aside = path.with_name(path.name + ".part")
    aside.write_text("\n".join([*lines, json.dumps(line)]) + "\n", "utf-8")
    os.replace(aside, path)
