"""Batches from memory, from a reading thread and from `PatchDataset.load` are bit-identical."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tiny_store import make_records, write_records, write_store

from virchow_st.metrics.stripes import Stripes
from virchow_st.models.losses import build_objective
from virchow_st.models.losses.base import DeviceCounts, dense_counts, on_device
from virchow_st.run.exposure import CohortExposure, SlideExposure
from virchow_st.run.panel import Panel
from virchow_st.run.split import Member
from virchow_st.runtime.progress import Recording
from virchow_st.training import feed
from virchow_st.training.dataset import BatchPlan, PatchDataset, plans
from virchow_st.training.feed import open_feed
from virchow_st.training.feed.resident import Resident, resident_bytes
from virchow_st.training.feed.streamed import Streamed

CPU = torch.device("cpu")
GENES = Panel(("ENSG00004", "ENSG00000", "ENSG00003"), ("GENE4", "GENE0", "GENE3"))
KINDS = {
    "float16": {},
    "int8": {"token_dtype": "int8"},
    "turned": {"token_layout": [[1, 2], [4, 2]]},
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def dataset(request, tmp_path_factory):
    """Two stores; tokens as float16, as int8, and with channels that turn with the patch."""
    folder = tmp_path_factory.mktemp("stores")
    stores = [
        write_records(
            folder / f"{patient}.vst", make_records(n, dim=8, seed=n), 6, patient=patient,
            **KINDS[request.param],
        )
        for patient, n in (("A", 5), ("B", 3))
    ]  # fmt: skip
    return PatchDataset(stores, GENES, wants_image=True)


@pytest.fixture
def members(dataset):
    return [Member(s, p) for s, store in enumerate(dataset.stores) for p in range(len(store))]


def strides(x):
    return [step for step, n in zip(x.stride(), x.shape, strict=True) if n > 1]


def assert_same(batch, expected):
    """A batch of a feed is what `load` reads, down to the order of the counts."""
    assert batch.members == expected.members
    for mine, theirs in (
        (batch.tokens, expected.tokens),
        (batch.image, expected.image),
        (batch.tissue_mask, expected.tissue_mask),
    ):
        assert mine.numpy().dtype == theirs.dtype
        assert strides(mine) == strides(torch.from_numpy(theirs))  # what rounding may depend on
        np.testing.assert_array_equal(mine.numpy(), theirs)
    if expected.exposure is None:
        assert batch.exposure is batch.tissue_mask
    else:
        np.testing.assert_array_equal(batch.exposure.numpy(), expected.exposure)
    for name in ("start", "position", "count"):
        mine, theirs = getattr(batch.counts, name), getattr(expected.targets, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    assert batch.counts.shape == expected.targets.shape


@pytest.mark.parametrize("kind", [Resident, Streamed])
def test_batches_are_those_that_are_read(dataset, members, kind):
    source = Resident(dataset, members, CPU) if kind is Resident else Streamed(dataset, CPU)
    for seed in range(3):  # all orientations come up; the last batch is a short one
        coming = plans(members, 3, np.random.default_rng(seed))
        for plan, batch in zip(coming, source.batches(coming), strict=True):
            assert_same(batch, dataset.load(plan.members, plan.turns))


@pytest.mark.parametrize("kind", [Resident, Streamed])
def test_batches_with_a_margin_are_those_that_are_read(dataset, members, kind):
    wide = PatchDataset(dataset.stores, GENES, wants_image=True, margin_um=16)
    source = Resident(wide, members, CPU) if kind is Resident else Streamed(wide, CPU)
    coming = plans(members, 3, np.random.default_rng(5))
    for plan, batch in zip(coming, source.batches(coming), strict=True):
        assert batch.tokens.shape[1:] == (18, 18, 8)
        assert batch.image.shape[1:] == (288, 288, 3)
        assert_same(batch, wide.load(plan.members, plan.turns))
        # Its middle is the batch without.
        inner = dataset.load(plan.members, plan.turns)
        np.testing.assert_array_equal(batch.tokens[:, 1:-1, 1:-1].numpy(), inner.tokens)
        np.testing.assert_array_equal(batch.image[:, 16:-16, 16:-16].numpy(), inner.image)


def striped(stores):
    """An exposure that differs in every row and column, as a run could have it."""
    rng = np.random.default_rng(0)
    slides = {}
    for i, store in enumerate(stores):
        starts = np.array([(info.row0, info.col0) for info in store.patch_table])
        row0, col0 = (int(x) for x in starts.min(0))
        rows, cols = (
            Stripes(rng.lognormal(0, 0.2, int(n)), np.full(int(n), 0.01), 0.2)
            for n in starts.max(0) - starts.min(0) + 128
        )
        slides[i] = SlideExposure(3.0 + i, row0, col0, rows, cols)
    return CohortExposure("auto", 3.4, slides)


@pytest.mark.parametrize("kind", [Resident, Streamed])
def test_the_exposure_turns_with_the_patch(dataset, members, kind):
    exposed = PatchDataset(
        dataset.stores, GENES, wants_image=True, exposure=striped(dataset.stores)
    )
    source = Resident(exposed, members, CPU) if kind is Resident else Streamed(exposed, CPU)
    coming = plans(members, 3, np.random.default_rng(7))
    for plan, batch in zip(coming, source.batches(coming), strict=True):
        assert_same(batch, exposed.load(plan.members, plan.turns))
        for member, orientation, mine in zip(
            plan.members, plan.turns, batch.exposure.numpy(), strict=True
        ):
            store = dataset.stores[member.store]
            slide = exposed.cohort_exposure.slides[member.store]
            info = store.patch_table[member.patch]
            rows = slide.rows.efficiency[info.row0 - slide.row0 :][:128]
            cols = slide.cols.efficiency[info.col0 - slide.col0 :][:128]
            expected = np.outer(rows, cols) * (3.0 + member.store) / 3.4
            expected[~store[member.patch].tissue_mask] = 0
            expected = np.rot90(
                np.fliplr(expected) if orientation >= 4 else expected, orientation % 4
            )
            np.testing.assert_allclose(mine, expected, rtol=1e-5)


def test_every_orientation(dataset, members):
    eight = [BatchPlan((members[-1],), (o,)) for o in range(8)]
    for plan, batch in zip(eight, Resident(dataset, members, CPU).batches(eight), strict=True):
        assert_same(batch, dataset.load(plan.members, plan.turns))


def test_a_patch_may_come_twice(dataset, members):
    twice = BatchPlan((members[2], members[0], members[2]), (3, 0, 6))
    (batch,) = Resident(dataset, members * 2, CPU).batches([twice])
    assert_same(batch, dataset.load(twice.members, twice.turns))


def test_a_panel_without_counts_and_no_images(dataset, members):
    nothing = PatchDataset(dataset.stores, Panel(("ENSG00005",), ("GENE5",)))
    silent = [m for m in members if nothing.panel_counts(m).count.size == 0]
    chosen = BatchPlan(tuple(silent or members[:1]), (1,) * max(len(silent), 1))
    (batch,) = Resident(nothing, members, CPU).batches([chosen])
    assert batch.image is None
    np.testing.assert_array_equal(
        batch.counts.dense(), nothing.load(chosen.members, chosen.turns).counts
    )


def test_no_portions_no_batches(dataset, members):
    assert list(Streamed(dataset, CPU).batches([])) == []
    assert list(Resident(dataset, members, CPU).batches([])) == []


def test_int8_tokens_are_held_as_codes(dataset, members):
    held = Resident(dataset, members, CPU)._tokens_NTD
    is_int8 = dataset.stores[0].token_dtype == "int8"
    assert held.dtype == (torch.int8 if is_int8 else torch.float16)


def test_size_is_known_before_it_is_taken(dataset, members):
    held = Resident(dataset, members, CPU)
    n_bytes = sum(
        tensor.numel() * tensor.element_size()
        for name in ("_tokens_NTD", "_scales_ND", "_image_NP3", "_mask_NR", "_starts_NG",
                     "_position_n", "_count_n")
        if (tensor := getattr(held, name)) is not None
    )  # fmt: skip
    foreseen = resident_bytes(dataset, members)
    assert n_bytes <= foreseen < 1.3 * n_bytes


@pytest.mark.parametrize(
    ("free", "n_sharing", "kind"),
    [(2.1, 1, Resident), (1.9, 1, Streamed), (4.2, 2, Resident), (2.1, 2, Streamed)],
)
def test_kept_if_half_of_the_free_memory_is_enough(
    dataset, members, monkeypatch, free, n_sharing, kind
):
    free_bytes = int(free * resident_bytes(dataset, members))
    monkeypatch.setattr("virchow_st.runtime.devices.free_memory", lambda device: free_bytes)
    said = Recording()
    assert isinstance(open_feed(dataset, members, CPU, said, n_sharing), kind)
    assert said.warnings == []
    (note,) = said.notes
    assert re.match(r"8 patches, [23] MB, are ", note)
    assert ("kept in memory" in note) == (kind is Resident)
    assert ("read during training" in note) == (kind is Streamed)


def test_sizes_in_megabytes_and_gigabytes():
    assert feed._size(2_340_000) == "2 MB"
    assert feed._size(12_340_000_000) == "12.3 GB"


def test_buffers_are_used_again(dataset, members):
    """The fourth batch lies where the first one did; each is good until the next is asked for."""
    places = [
        batch.tokens.data_ptr() for batch in Streamed(dataset, CPU).batches(plans(members[:6], 1))
    ]
    assert places[:3] == places[3:]
    assert len(set(places)) == 3


def test_an_error_reaches_who_asks(dataset):
    with pytest.raises(IndexError, match="patch 99"):
        list(Streamed(dataset, CPU).batches(plans([Member(0, 0), Member(0, 99)], 1)))
    with pytest.raises(IndexError, match="patch 99"):
        Resident(dataset, [Member(0, 99)], CPU)


def test_counts_on_a_device_are_laid_out_as_those_of_numpy(dataset, members):
    """What a GPU gets, here on the CPU: the same dense maps, and a loss takes either."""
    batch = dataset.load(members[:3], [1, 6, 0])
    there = on_device(batch.targets, CPU)
    assert isinstance(there, DeviceCounts)
    assert on_device(there, CPU) is there
    assert torch.equal(dense_counts(there, CPU), torch.from_numpy(batch.counts))
    assert torch.equal(dense_counts(batch.targets, CPU), torch.from_numpy(batch.counts))
    objective = build_objective("nb", torch.ones(3), torch.ones(4, 3), (2, 8))
    output, mask = torch.zeros(3, 3, 128, 128), torch.from_numpy(batch.tissue_mask)
    assert torch.equal(objective(output, there, mask), objective(output, batch.targets, mask))


@pytest.mark.parametrize("token_dtype", ["float16", "int8"])
def test_codes_are_the_tokens(tmp_path, token_dtype):
    store = write_records(tmp_path / "A.vst", make_records(1), 6, token_dtype=token_dtype)
    if token_dtype == "float16":
        with pytest.raises(Exception, match="expected 2080 bytes, got 4096"):
            _ = store[0].token_codes
        return
    codes, scales = store[0].token_codes
    assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
    np.testing.assert_array_equal((codes * scales).astype(np.float16), store[0].tokens)


def test_stores_that_keep_tokens_unlike_each_other(tmp_path):
    """float16 beside int8: both come as float16."""
    stores = [
        write_records(tmp_path / f"{d}.vst", make_records(2, seed=i), 6, token_dtype=d, patient=d)
        for i, d in enumerate(("float16", "int8"))
    ]
    dataset = PatchDataset(stores, GENES)
    both = BatchPlan((Member(0, 1), Member(1, 0)), (2, 5))
    (batch,) = Resident(dataset, both.members, CPU).batches([both])
    np.testing.assert_array_equal(batch.tokens, dataset.load(both.members, both.turns).tokens)


def test_write_store_is_read(tmp_path):
    store = write_store(tmp_path / "A.vst", n_patches=2)
    dataset = PatchDataset([store], GENES)
    assert dataset.panel_umis(0) == store.genes.totals[[4, 0, 3]].sum()
