"""A trained run, ready to predict the rates of patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from virchow_st.checkpoint import load_checkpoint, read_state
from virchow_st.config import TrainConfig, from_toml
from virchow_st.decoders import build_decoder, decode
from virchow_st.decoders.base import Decoder
from virchow_st.devices import pick_device
from virchow_st.errors import ConfigError
from virchow_st.folds import Split
from virchow_st.losses import build_objective
from virchow_st.losses.base import Objective
from virchow_st.panel import Panel
from virchow_st.store.reader import Patch, Store
from virchow_st.types import Array, Float32Array, Float64Array, UInt8Array

_BATCH_PATCHES = 8


@dataclass(frozen=True)
class Run:
    """The best decoder of a run directory.

    Attributes:
        path: the run directory.
        config, panel, split: what it was trained as.
        state: of the checkpoint: epoch, encoder, token grid and dimension.
        decoder, objective: in evaluation mode, on ``device``.
    """

    path: Path
    config: TrainConfig
    panel: Panel
    split: Split
    state: dict[str, Any]
    decoder: Decoder
    objective: Objective
    device: torch.device

    @property
    def train_rate(self) -> Float64Array:
        """(G,) mean UMIs of a 2 µm tissue bin in training: the gene-mean baseline."""
        return self.objective.train_rate.double().cpu().numpy()

    def predict(self, source: Patch | Store) -> Float32Array | Iterator[Float32Array]:
        """Rates of a patch (G, 128, 128), or of every patch of a store, one after another.

        Rates are expected UMIs per 2 µm bin, float32.

        Raises:
            ConfigError: the store's tokens are of another encoder than the run's.
        """
        store = source.store if isinstance(source, Patch) else source
        self.check_store(store)
        if isinstance(source, Patch):
            return self._rates([source])[0]
        return self._each(source)

    def _each(self, store: Store) -> Iterator[Float32Array]:
        for start in range(0, len(store), _BATCH_PATCHES):
            stop = min(start + _BATCH_PATCHES, len(store))
            yield from self._rates([store[i] for i in range(start, stop)])

    def _rates(self, patches: list[Patch]) -> Float32Array:
        image = None
        if self.decoder.wants_image:
            image = np.stack([patch.image for patch in patches])
        return self.rates(np.stack([patch.tokens for patch in patches]), image)

    @torch.inference_mode()
    def rates(self, tokens: Array, image: UInt8Array | None = None) -> Float32Array:
        """(B, T, T, D) tokens, and (B, 256, 256, 3) images if wanted, to (B, G, 128, 128)."""
        output = decode(self.decoder, tokens, image, self.device)
        return self.objective.rate(output).cpu().numpy()

    def check_store(self, store: Store) -> None:
        """Raise `ConfigError` unless the store's tokens are those the decoder was trained on."""
        manifest = store.manifest
        expected = (self.state["encoder"], self.state["grid"], self.state["dim"])
        came = (manifest["encoder"], manifest["grid"], manifest["dim"])
        if came != expected:
            raise ConfigError(
                f"{store.path}: expected tokens of {expected[0]['name']} {expected[0]['weights']}; "
                f"got {came[0]['name']} {came[0]['weights']}; extract with the run's encoder"
            )


def load_run(path: Path | str, device: str = "auto") -> Run:
    """Load the best checkpoint of a run directory; raises `ConfigError` where there is none."""
    path = Path(path)
    best = path / "checkpoints" / "best"
    if not path.is_dir():
        raise ConfigError(f"{path}: no such run; write it with `vst train … --run {path}`")
    state = read_state(best)
    config = from_toml(TrainConfig, path / "config.toml")
    panel = Panel.read(path / "panel.tsv")
    split = Split.read(path / "split.json")
    digest = Split.read_xxh64(path / "split.json")
    if state.get("split_xxh64", digest) != digest:  # runs of older versions have none
        raise ConfigError(
            f"{path / 'split.json'}: is not the split that the run was trained with; train anew"
        )
    where = pick_device(device)
    # Shapes only: the checkpoint holds the values.
    objective = build_objective(
        config.loss, torch.ones(len(panel)), torch.ones(4, len(panel)), config.scales
    )
    dim = torch.ones(state["dim"])
    decoder = build_decoder(config.decoder, state["grid"], dim, dim, objective.initial_bias)
    load_checkpoint(best, {"decoder": decoder, "objective": objective})
    return Run(
        path=path,
        config=config,
        panel=panel,
        split=split,
        state=state,
        decoder=decoder.to(where).eval(),
        objective=objective.to(where).eval(),
        device=where,
    )
