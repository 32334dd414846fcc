"""A trained run, ready to predict the rates of patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from virchow_st.config import TrainConfig, from_toml
from virchow_st.errors import ConfigError
from virchow_st.models.decoders import build_decoder, decode
from virchow_st.models.decoders.base import Decoder
from virchow_st.models.losses import build_objective
from virchow_st.models.losses.base import Objective
from virchow_st.predict.array import MIN_TISSUE, ImageRates, predict_array
from virchow_st.run.checkpoint import load_checkpoint, read_state
from virchow_st.run.panel import Panel
from virchow_st.run.split import Split
from virchow_st.runtime.devices import pick_device
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

    @property
    def wants_image(self) -> bool:
        """Whether the decoder looks at the image as well as at the tokens."""
        return self.decoder.wants_image

    @overload
    def predict(self, source: Patch) -> Float32Array: ...

    @overload
    def predict(self, source: Store) -> Iterator[Float32Array]: ...

    @overload
    def predict(
        self, source: UInt8Array, *, mpp: float, weights: str = "", min_tissue: float = MIN_TISSUE
    ) -> ImageRates: ...

    def predict(
        self,
        source: Patch | Store | UInt8Array,
        *,
        mpp: float | None = None,
        weights: str = "",
        min_tissue: float = MIN_TISSUE,
    ) -> Float32Array | Iterator[Float32Array] | ImageRates:
        """Predict expected UMIs per 2 µm bin: of a patch, of a whole store, or of an H&E picture.

        A picture goes the way of ``vst predict``: tissue is found, laid over with patches that
        overlap, encoded and decoded; the encoder is the run's own and stays loaded for the next
        picture. All of it lies in memory, 4 bytes a gene and bin: for pictures of a few mm. Whole
        slides are for ``vst predict``.

        Args:
            source: a patch; a store; or (H, W, 3) uint8 RGB.
            mpp: µm per pixel of the picture.
            weights: the encoder's weights file for a picture, instead of the hub.
            min_tissue: smallest share of tissue in a patch of the picture that is predicted; by
                default all tissue is, though decoders were trained on patches with half or more.

        Returns:
            Of a patch (G, 128, 128) float32. Of a store an iterator that yields one such array
            for each patch. Of a picture its `ImageRates`.

        Raises:
            ConfigError: the tokens of the store, or the weights, are of another encoder than the
                run's; the weights cannot be had; or a picture comes without ``mpp``.
            SlideError: the picture shows no tissue or is too coarse.
            ValueError: the array is no RGB picture.
        """
        if isinstance(source, np.ndarray):
            if mpp is None:
                raise ConfigError(
                    "mpp: expected the picture's µm per pixel; got none; give mpp=0.25 for a 40x "
                    "scan, 0.5 for 20x"
                )
            return predict_array(
                self,
                self.panel,
                source,
                mpp,
                weights=weights,
                device=str(self.device),
                min_tissue=min_tissue,
            )
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
        if self.wants_image:
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
        actual = (manifest["encoder"], manifest["grid"], manifest["dim"])
        if actual != expected:
            raise ConfigError(
                f"{store.path}: expected tokens of {expected[0]['name']} {expected[0]['weights']}; "
                f"got {actual[0]['name']} {actual[0]['weights']}; extract with the run's encoder"
            )


def load_run(path: Path | str, device: str = "auto") -> Run:
    """Load the best checkpoint of a run directory.

    Args:
        path: what ``vst train --run`` wrote.
        device: where to predict: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: there is no such run, or no checkpoint in it.
    """
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
