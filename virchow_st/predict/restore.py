"""Decoder and objective of a run's best checkpoint, after every file was compared with its hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.models.decoders import build_decoder
from virchow_st.models.decoders.base import Decoder
from virchow_st.models.decoders.plugins import check_installed
from virchow_st.models.losses import build_objective
from virchow_st.models.losses.base import Objective
from virchow_st.models.losses.factor_poisson import FactorStart
from virchow_st.run.checkpoint import load_checkpoint, read_state
from virchow_st.run.integrity import check_files
from virchow_st.run.split import Split, read_split
from virchow_st.run.transcriptome import RunGenes
from virchow_st.settings import from_toml


@dataclass(frozen=True)
class Restored:
    """What a run directory holds; decoder and objective are on the CPU.

    Attributes:
        config, genes, split: settings, genes and split of the training.
        state: epoch, encoder, token grid and token dimension, from the checkpoint.
        decoder, objective: with the values of the best checkpoint.
    """

    config: TrainConfig
    genes: RunGenes
    split: Split
    state: dict[str, Any]
    decoder: Decoder
    objective: Objective


def restore(path: Path) -> Restored:
    """Read the best checkpoint of a run directory.

    Args:
        path: run directory written by ``vst train --run``.

    Raises:
        ConfigError: there is no such run, no checkpoint in it, or a file is not the one that the
            run was trained with.
    """
    best = path / "checkpoints" / "best"
    if not path.is_dir():
        raise ConfigError(f"{path}: no such run; write it with `vst train … --run {path}`")
    state = read_state(best)
    config = from_toml(TrainConfig, path / "config.toml")
    saved_split = read_split(path / "split.json")
    digest = saved_split["xxh64"]
    check_files(path, state)
    genes = RunGenes.read(path)
    if state.get("split_xxh64", digest) != digest:  # all that older versions compare
        raise ConfigError(
            f"{path / 'split.json'}: is not the split that the run was trained with; train again"
        )
    check_installed(config.decoder, state.get("decoder_package", ""), path)
    # Shapes only: the checkpoint holds the values.
    n_genes, factors = len(genes.all), None
    if n_factors := state.get("n_factors"):
        factors = FactorStart.of_shape(n_genes, n_factors, len(genes.panel))
    objective = build_objective(
        config.loss, torch.ones(n_genes), torch.ones(4, n_genes), config.scales, factors
    )
    dim = torch.ones(state["dim"])
    decoder = build_decoder(config.decoder, state["grid"], dim, dim, objective.initial_bias)
    load_checkpoint(best, {"decoder": decoder, "objective": objective})
    return Restored(config, genes, Split.of(saved_split), state, decoder, objective)
