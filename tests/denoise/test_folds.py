"""Decoders of spatial folds see neither the counts of their fold nor those around it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_place import Answer
from tiny_store import make_record, make_records, write_records, write_store

import virchow_st
from virchow_st.config import DenoiseConfig, TrainConfig
from virchow_st.denoise import folds
from virchow_st.denoise.folds import fold_of_patches, hidden_bins, train_folds
from virchow_st.denoise.slide import read_slide
from virchow_st.errors import ConfigError
from virchow_st.store.part import StorePart
from virchow_st.store.reader import Store, open_store

N_GENES = 60
BLOCKS = DenoiseConfig(factors=2, leave_blocks_out=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six patches in two rows."""
    path = tmp_path_factory.mktemp("folds") / "A.vst"
    return write_store(path, n_patches=6, columns=3, n_genes=N_GENES)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that is trained in a second."""
    options = folds.training_options

    def quick(store: Store, config: DenoiseConfig) -> TrainConfig:
        return replace(options(store, config), decoder="linear", epochs=1, factors=2)

    monkeypatch.setattr(folds, "training_options", quick)


def test_patches_are_dealt_evenly(store: Store) -> None:
    fold = fold_of_patches(store, 3)
    assert np.bincount(fold).tolist() == [2, 2, 2]
    with pytest.raises(ConfigError, match="expected at least 7 patches for --leave-blocks-out 7"):
        fold_of_patches(store, 7)


def test_margin_is_the_reach_of_the_widest_gaussian(store: Store) -> None:
    slide = read_slide(store)
    hidden = hidden_bins(store, slide, np.arange(6) == 0)
    reach = int(folds.MARGIN_UM / 2)
    assert reach == 32
    expected = np.zeros((256, 384), bool)
    expected[: 128 + reach, : 128 + reach] = True
    np.testing.assert_array_equal(hidden, expected)


def test_part_of_a_store_hides_bins(store: Store) -> None:
    hidden = np.zeros((256, 384), bool)
    hidden[100:200, 100:200] = True
    part = StorePart(store.path, hidden, (0, 0))
    for copy in (part, pickle.loads(pickle.dumps(part))):
        for patch, whole in zip(copy, store, strict=True):
            window = hidden[patch.row0 : patch.row0 + 128, patch.col0 : patch.col0 + 128]
            np.testing.assert_array_equal(patch.tissue_mask, whole.tissue_mask & ~window)
            np.testing.assert_array_equal(patch.tokens, whole.tokens)


@pytest.mark.slow
def test_a_fold_is_predicted_without_its_counts(fast: None, store: Store, tmp_path: Path) -> None:
    slide, fold = read_slide(store), fold_of_patches(store, 2)
    hidden = hidden_bins(store, slide, fold == 0)
    rng = np.random.default_rng(5)
    records = []
    for record, patch in zip(make_records(6, columns=3, n_genes=N_GENES), store, strict=True):
        counts = patch.dense_counts(np.arange(N_GENES))
        at = hidden[patch.row0 : patch.row0 + 128, patch.col0 : patch.col0 + 128]
        # Other counts of the same sums, so that the same genes are chosen.
        for g in range(N_GENES):
            counts[g, at] = rng.permutation(counts[g, at])
        records.append(
            make_record(record.tokens, counts, record.tissue_mask, record.image, patch.row0,
                        patch.col0)
        )  # fmt: skip
    other = write_records(tmp_path / "B.vst", records, N_GENES)
    first = train_folds(store, slide, BLOCKS, tmp_path / "a")
    second = train_folds(other, read_slide(other), BLOCKS, tmp_path / "b")
    assert first.run == "2 spatial folds of this slide"
    assert len(first.loadings) == 2
    at = first.part == 0
    assert at.sum() == sum(store[int(p)].tissue_mask.sum() for p in np.flatnonzero(fold == 0))
    np.testing.assert_allclose(first.maps[at], second.maps[at], rtol=1e-4)
    seen = first.part == 1
    assert not np.allclose(first.maps[seen], second.maps[seen], rtol=1e-3)


@pytest.mark.slow
def test_one_command_trains_denoises_and_leaves_the_field_alone(
    fast: None, vst: Callable[..., Answer], store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "A.zarr"
    options = "--leave-blocks-out", 2, "--factors", 2
    answer = vst("denoise", store.path, "--out", out, *options, "--score")
    assert answer.code == 0, answer.err
    assert "H&E alone" in answer.out
    assert [path.name for path in tmp_path.iterdir()] == ["A.zarr"]
    about = virchow_st.open_field(out).provenance
    assert about["prior"]["run"] == "2 spatial folds of this slide"
    assert about["options"]["leave_blocks_out"] == 2


def test_finished_folds_are_gone_on_with(
    fast: None, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = read_slide(store)
    first = train_folds(store, slide, BLOCKS, tmp_path)
    monkeypatch.setattr(folds, "train_on_split", None)  # would fail if it were called
    np.testing.assert_array_equal(train_folds(store, slide, BLOCKS, tmp_path).maps, first.maps)
    other = DenoiseConfig(factors=2, leave_blocks_out=2, seed=1)
    with pytest.raises(ConfigError, match="was begun with other options; delete"):
        train_folds(store, slide, other, tmp_path)


def test_either_a_run_or_folds(
    vst: Callable[..., Answer], store: Store, tiny_run: Path, tmp_path: Path
) -> None:
    command = "denoise", store.path, "--out", tmp_path / "A.zarr"
    answer = vst(*command, "--run", tiny_run, "--leave-blocks-out", 2)
    assert answer.code == 2
    assert "expected either a run or leave_blocks_out; got both" in answer.err
    answer = vst(*command, "--leave-blocks-out", 1)
    assert answer.code == 2
    assert "expected 2 or more, such as 4" in answer.err
    assert not list(tmp_path.iterdir())


def test_a_slide_too_small_is_refused(tmp_path: Path) -> None:
    small = write_store(tmp_path / "A.vst", n_patches=2, n_genes=N_GENES)
    with pytest.raises(ConfigError, match="expected at least two patches to train on"):
        train_folds(small, read_slide(small), DenoiseConfig(leave_blocks_out=2), tmp_path / "folds")
    assert not (tmp_path / "folds").exists()
    assert open_store(small.path).patient == "A"
