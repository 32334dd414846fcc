"""The AnnData file of denoised 8 µm bins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import cv2
import numpy as np
import pytest
from cli_place import Answer
from tiny_store import write_store

import virchow_st
from virchow_st.denoise import table
from virchow_st.denoise.slide import read_slide


def test_rates_are_the_fields_and_counts_the_stores(
    vst: Callable[..., Answer], tmp_path: Path
) -> None:
    store = write_store(tmp_path / "A.vst", n_patches=4, rate=0.6)
    mask = np.zeros((256, 256), np.uint8)
    mask[64:66, :128] = 1
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    out, h5ad = tmp_path / "A.zarr", tmp_path / "A.h5ad"
    given = "--factors", 2, "--failed", tmp_path / "mask.png", "--out", out, "--h5ad", h5ad
    answer = vst("denoise", store.path, *given)
    assert answer.code == 0, answer.err
    field, found = virchow_st.open_field(out), anndata.read_h5ad(h5ad)
    assert found.shape[1] == len(field.genes)
    row, col = found.obs["array_row"].to_numpy(), found.obs["array_col"].to_numpy()
    rates = field.gene(field.genes[1], 8)[row, col]
    np.testing.assert_allclose(found.X[:, 1], rates, rtol=2e-3)
    slide = read_slide(store, failed=tmp_path / "mask.png")
    grid = np.zeros(slide.tissue.shape)
    np.add.at(grid.ravel(), slide.place, slide.rows.totals)
    sums = grid.reshape(64, 4, 64, 4).sum(axis=(1, 3))[row, col]
    np.testing.assert_array_equal(np.asarray(found.layers["counts"].sum(axis=1)).ravel(), sums)
    filled = found.obs["filled"].to_numpy()
    np.testing.assert_array_equal(filled, np.where((row == 16) & (col < 32), 0.5, 0.0))
    assert found.obs_names[0] == f"s_008um_{row[0]:05d}_{col[0]:05d}-1"


def test_too_many_rates_are_refused_in_one_line(
    vst: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path / "A.vst", n_patches=4, rate=0.6)
    monkeypatch.setattr(table, "MOST_VALUES", 10)
    answer = vst("denoise", store.path, "--factors", 2, "--h5ad", tmp_path / "A.h5ad")
    assert answer.code == 2
    assert "h5ad: expected at most 10 rates" in answer.err
    assert not (tmp_path / "A.h5ad").exists()
