"""Random patches with known rates, and their scores, for tests of the metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from virchow_st.metrics import ScaleAccumulator, ScaleScores

G = 4
MEAN_RATE = np.array([0.05, 0.1, 0.2, 0.4])
Patch = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw(n_patches: int, seed: int = 0, tissue: float = 1.0) -> list[Patch]:
    """Patches of smooth rates, Poisson counts and a tissue mask; genes differ in their mean."""
    rng = np.random.default_rng(seed)
    patches = []
    for _ in range(n_patches):
        field = ndimage.gaussian_filter(rng.normal(size=(G, 128, 128)), (0, 6, 6), mode="wrap")
        field /= field.std((1, 2), keepdims=True)
        rate = (MEAN_RATE[:, None, None] * np.exp(0.8 * field - 0.32)).astype(np.float32)
        mask = np.ones((128, 128), np.bool_)
        mask[: int(128 * (1 - tissue))] = False
        patches.append((rate, rng.poisson(rate).astype(np.uint16), mask))
    return patches


def score(
    patches: list[Patch],
    scale_um: int,
    predict: Callable[[np.ndarray], np.ndarray] = lambda rate: rate,
    train_rate: np.ndarray = MEAN_RATE,
) -> ScaleScores:
    """Score predictions made from the true rates; the null is the next patch's prediction."""
    accumulator = ScaleAccumulator(len(train_rate), scale_um, train_rate)
    predictions = [predict(rate) for rate, _, _ in patches]
    for i, (_, counts, mask) in enumerate(patches):
        other = predictions[(i + 1) % len(patches)] if len(patches) > 1 else None
        accumulator.update(predictions[i], counts, mask, other)
    return accumulator.compute()
