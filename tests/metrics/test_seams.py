"""The measure of seams against brute force, and on maps whose seams are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from virchow_st.metrics.seams import SeamAccumulator, Seams


def smooth(seed: int = 0, n: int = 384) -> np.ndarray:
    """Two genes over 3 × 3 patches, smooth and without a grid."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [np.exp(gaussian_filter(rng.normal(size=(n, n)), 1.5) * 3) for _ in range(2)]
    ).astype(np.float32)


def measured(field: np.ndarray, mask: np.ndarray, token_bins: int = 8) -> Seams:
    """Of a field cut into patches."""
    seams = SeamAccumulator(len(field), token_bins)
    starts = range(0, field.shape[1], 128)

    def cut(row: int, col: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.s_[row : row + 128, col : col + 128]
        return field[:, *at], mask[at]

    for row in starts:
        for col in starts:
            seams.update(*cut(row, col))
            if col + 128 < field.shape[2]:
                seams.update_border(*cut(row, col), *cut(row, col + 128), is_below=False)
            if row + 128 < field.shape[1]:
                seams.update_border(*cut(row, col), *cut(row + 128, col), is_below=True)
    return seams.compute()


EVERYWHERE = np.ones((384, 384), bool)


def test_a_map_without_a_grid_has_none() -> None:
    found = measured(smooth(), EVERYWHERE)
    assert found.token == pytest.approx(1, abs=0.02)
    assert found.patch == pytest.approx(1, abs=0.05)


def test_it_equals_brute_force() -> None:
    field, mask = smooth(1)[:, :256, :256], np.random.default_rng(2).random((256, 256)) < 0.8
    steps: dict[str, list[np.ndarray]] = {"inside": [], "token": [], "patch": []}
    for row in range(256):
        for col in range(256):
            for other in ((row, col + 1), (row + 1, col)):
                if max(other) > 255 or not mask[row, col] or not mask[other]:
                    continue
                moved = max(other[0] * (other[0] > row), other[1] * (other[1] > col))
                kind = "patch" if moved % 128 == 0 else "token" if moved % 8 == 0 else "inside"
                steps[kind].append(np.abs(field[:, row, col] - field[:, *other]))
    inside, token, patch = (np.mean(steps[k], axis=0) for k in ("inside", "token", "patch"))
    found = measured(field, mask)
    assert found.token == pytest.approx((token / inside).mean(), rel=1e-5)
    assert found.patch == pytest.approx((patch / inside).mean(), rel=1e-5)


def test_blocks_of_a_token_are_seen() -> None:
    field = smooth()
    offset = np.random.default_rng(3).normal(0, 0.5, (2, 48, 48)).repeat(8, 1).repeat(8, 2)
    assert measured(field + offset.astype(np.float32), EVERYWHERE).token > 1.3


def test_patches_of_another_level_are_seen_at_their_borders_alone() -> None:
    field = smooth()
    offset = np.random.default_rng(4).normal(0, 1, (2, 3, 3)).repeat(128, 1).repeat(128, 2)
    found = measured(field + offset.astype(np.float32), EVERYWHERE)
    assert found.patch > 1.5
    assert found.token == pytest.approx(1, abs=0.02)


def test_a_gene_without_steps_does_not_count() -> None:
    field = smooth()
    both = np.stack([field[0], np.full_like(field[0], 0.3)])
    expected, found = measured(field[:1], EVERYWHERE), measured(both, EVERYWHERE)
    assert (found.token, found.patch) == (expected.token, expected.patch)


def test_one_patch_has_no_border() -> None:
    seams = SeamAccumulator(2, 8)
    seams.update(smooth()[:, :128, :128], np.ones((128, 128), bool))
    assert np.isnan(seams.compute().patch)
    assert np.isnan(SeamAccumulator(2, 8).compute().token)
