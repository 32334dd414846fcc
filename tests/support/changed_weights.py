"""Weights of a run that are changed as training could have made them: all hashes are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from virchow_st.models.decoders.base import HEAD_GAIN
from virchow_st.run.integrity import hash_file, hash_of
from virchow_st.store.reader import Store
from virchow_st.types import BoolArray

WEIGHTS = "tensors.safetensors"
SUB_BIN = (3, 4)  # of the 8 × 8 bins of a token
GENE = 2


def change_weights(run: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Let a function change the best checkpoint's tensors, by name.

    The run then predicts each patch as it lies, so that it is known which bins a change reaches.
    """
    best = run / "checkpoints" / "best"
    tensors = load_file(best / WEIGHTS)
    change(tensors)
    save_file(tensors, best / WEIGHTS)
    state = json.loads((best / "state.json").read_text())
    del state["xxh64"]
    state.pop("token_layout", None)
    state["tensors_xxh64"] = hash_file(best / WEIGHTS)
    state["xxh64"] = hash_of(state)
    (best / "state.json").write_text(json.dumps(state))


def spike(run: Path, store: Store, n_tokens: int, everywhere: bool = False) -> list[BoolArray]:
    """Let the linear decoder give one gene an impossible rate where tokens are most extreme.

    Args:
        run: of the decoder ``linear`` on 16 µm tokens.
        store: whose tokens decide what is extreme.
        n_tokens: of the store that are.
        everywhere: in all 64 bins of such a token, not in one of them.

    Returns:
        The bins with such a rate, (128, 128) bool for each patch of the store.
    """
    tensors = load_file(run / "checkpoints" / "best" / WEIGHTS)
    mean, scale = (tensors[f"decoder.normalise.{name}"].numpy() for name in ("mean", "scale"))
    z = [((patch.tokens.astype(np.float32) - mean) * scale).clip(-8, 8) for patch in store]
    every = np.sort(np.concatenate([of.reshape(-1, len(mean)) for of in z]), axis=0)
    gaps = every[-n_tokens] - every[-n_tokens - 1]
    k = int(gaps.argmax())  # the channel that tells them apart best
    threshold = float(every[-n_tokens, k] - gaps[k] / 2)

    def change(tensors: dict[str, Tensor]) -> None:
        flatten(tensors)
        rows = range(64) if everywhere else [8 * SUB_BIN[0] + SUB_BIN[1]]
        steep = 2000 / float(gaps[k])
        for row in rows:
            tensors["decoder.unfold.0.weight"][row, k] = steep
            tensors["decoder.unfold.0.bias"][row] = -steep * threshold
        tensors["decoder.head.weight"][GENE, 0] = 1 / HEAD_GAIN

    change_weights(run, change)
    bins = np.zeros((8, 8), bool)
    bins[(slice(None), slice(None)) if everywhere else SUB_BIN] = True
    return [np.kron(of[..., k] > threshold, bins) for of in z]


def flatten(tensors: dict[str, Tensor]) -> None:
    """Take the first bin channel from the linear decoder: of no bin and no gene."""
    tensors["decoder.unfold.0.weight"][:64] = 0
    tensors["decoder.unfold.0.bias"][:64] = 0
    tensors["decoder.head.weight"][:, 0] = 0
