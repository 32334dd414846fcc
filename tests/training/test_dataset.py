"""Batches of patches: their plans, rotations and counts."""

import numpy as np
import pytest
from tiny_store import make_record, write_records, write_store

from virchow_st.errors import ConfigError
from virchow_st.kernels.orientation import turn
from virchow_st.run.panel import Panel
from virchow_st.run.split import Member
from virchow_st.training.dataset import PatchDataset, turned_positions
from virchow_st.training.statistics import training_statistics

GRID, CELLS = 16, 4  # a token is 4×4 sub-cells here: a 64×64 picture of the patch


@pytest.fixture(scope="module")
def picture():
    """An asymmetric 64×64 pattern, none of whose eight orientations looks like another."""
    row, col = np.mgrid[:64, :64]
    shape = (
        (row < 20) & (col < 40) | (row > 50) & (col < 10) | ((row - 40) ** 2 + (col - 45) ** 2 < 60)
    )
    return shape


@pytest.fixture(scope="module")
def joint(tmp_path_factory, picture):
    """A store of one patch whose tokens, counts, mask and image all show the same pattern."""
    tokens = np.zeros((GRID, GRID, 1 + CELLS**2), np.float16)
    cells = picture.reshape(GRID, CELLS, GRID, CELLS).transpose(0, 2, 1, 3)
    tokens[..., 0] = picture.reshape(GRID, CELLS, GRID, CELLS).mean((1, 3))  # no direction
    tokens[..., 1:] = cells.reshape(GRID, GRID, -1)
    bins = picture.repeat(2, 0).repeat(2, 1)
    counts = np.stack([bins * 2, np.zeros_like(bins), bins * 7]).astype(int)
    image = (picture.repeat(4, 0).repeat(4, 1)[..., None] * np.array([220, 220, 220])).astype("u1")
    record = make_record(tokens, counts, bins, image)
    path = tmp_path_factory.mktemp("joint") / "J.vst"
    return write_records(path, [record], 3, token_layout=[[1, CELLS]])


GENES = Panel(("ENSG00002", "ENSG00000"), ("GENE2", "GENE0"))


@pytest.mark.parametrize("orientation", range(8))
def test_everything_of_a_patch_turns_together(joint, picture, orientation):
    dataset = PatchDataset([joint], GENES, wants_image=True)
    batch = dataset.load([Member(0, 0)], [orientation])
    expected = np.rot90(np.fliplr(picture) if orientation >= 4 else picture, orientation % 4)
    bins = expected.repeat(2, 0).repeat(2, 1)

    np.testing.assert_array_equal(batch.tissue_mask[0], bins)
    np.testing.assert_array_equal(batch.counts[0], np.stack([bins * 7, bins * 2]))
    cells = batch.tokens[0, ..., 1:].reshape(GRID, GRID, CELLS, CELLS)
    np.testing.assert_array_equal(cells.transpose(0, 2, 1, 3).reshape(64, 64), expected)
    np.testing.assert_array_equal(
        batch.tokens[0, ..., 0], expected.reshape(GRID, CELLS, GRID, CELLS).mean((1, 3))
    )
    bright = batch.image[0].mean(-1).reshape(64, 4, 64, 4).mean((1, 3)) > 110
    np.testing.assert_array_equal(bright, expected)


@pytest.mark.parametrize("orientation", range(8))
def test_positions_turn_as_maps_do(orientation):
    before = np.random.default_rng(0).permutation(128 * 128).reshape(128, 128)
    after = np.empty(128 * 128, int)
    after[turned_positions(orientation)] = before.ravel()
    np.testing.assert_array_equal(after.reshape(128, 128), turn(before, orientation))


def test_the_pattern_tells_all_orientations_apart(picture):
    turned = {turn(picture, o).tobytes() for o in range(8)}
    assert len(turned) == 8


def test_shapes_and_dtypes(joint):
    batch = PatchDataset([joint], GENES).load([Member(0, 0)])
    assert batch.image is None
    assert (batch.tokens.dtype, batch.tokens.shape) == (np.float16, (1, 16, 16, 17))
    assert (batch.counts.dtype, batch.counts.shape) == (np.float32, (1, 2, 128, 128))
    assert (batch.tissue_mask.dtype, batch.tissue_mask.shape) == (bool, (1, 128, 128))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [
        write_store(folder / f"{p}.vst", p, n, seed=s) for p, n, s in (("A", 4, 1), ("B", 3, 2))
    ]


@pytest.fixture(scope="module")
def members(stores):
    return [Member(s, p) for s, store in enumerate(stores) for p in range(len(store))]


ALL = Panel(tuple(f"ENSG{g:05d}" for g in range(6)), tuple(f"GENE{g}" for g in range(6)))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
def test_batches_hold_every_member_once(stores, members, batch_size):
    dataset = PatchDataset(stores, ALL)
    batches = list(dataset.batches(members, batch_size))
    assert [m for b in batches for m in b.members] == members
    assert all(len(b.members) == batch_size for b in batches[:-1])
    for batch in batches:
        for i, m in enumerate(batch.members):
            np.testing.assert_array_equal(batch.tokens[i], stores[m.store][m.patch].tokens)
    rng = np.random.default_rng(0)
    shuffled = [m for b in dataset.batches(members, batch_size, rng) for m in b.members]
    assert shuffled != members
    assert sorted(shuffled) == members


def test_random_order_and_orientations_follow_the_seed(stores, members):
    dataset = PatchDataset(stores, ALL)
    runs = [
        np.concatenate([b.counts for b in dataset.batches(members, 2, np.random.default_rng(s))])
        for s in (3, 3, 4)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    for run in runs:
        assert run.sum() == sum(
            store[i].counts().sum() for store in stores for i in range(len(store))
        )


def test_targets_are_the_counts_where_there_are_any(stores, members):
    panel = Panel(ALL.ids[1:4][::-1], ALL.symbols[1:4][::-1])
    batch = PatchDataset(stores, panel).load(members[2:5], [0, 3, 6])
    expected = [
        turn(stores[m.store][m.patch].dense_counts([3, 2, 1]), o)
        for m, o in zip(members[2:5], (0, 3, 6), strict=True)
    ]
    np.testing.assert_array_equal(batch.counts, expected)
    assert batch.targets.count.sum() == np.sum(expected)
    assert (batch.targets.count > 0).all()
    assert len(batch.targets.count) == np.count_nonzero(expected)


def test_no_members_give_no_batches(stores):
    assert list(PatchDataset(stores, ALL).batches([], 4)) == []


def test_error_of_a_patch_reaches_the_consumer(stores):
    with pytest.raises(IndexError, match="patch 99"):
        list(PatchDataset(stores, ALL).batches([Member(0, 0), Member(0, 99)], 1))


def test_statistics_equal_numpys(stores, members):
    chosen = members[1:6]
    panel = Panel(ALL.ids[1:4][::-1], ALL.symbols[1:4][::-1])
    statistics = training_statistics(PatchDataset(stores, panel), chosen)
    patches = [stores[m.store][m.patch] for m in chosen]
    tokens = np.concatenate([p.tokens.astype(float).reshape(-1, 8) for p in patches])
    np.testing.assert_allclose(statistics.token_mean, tokens.mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics.token_std, tokens.std(0), rtol=1e-6)

    counts = np.stack([p.counts([3, 2, 1]).toarray().reshape(3, 128, 128) for p in patches])
    masks = np.stack([p.tissue_mask for p in patches])
    rate = [counts[:, g][masks].mean() for g in range(3)]
    np.testing.assert_allclose(statistics.rate, rate, rtol=1e-12)
    for i, f in enumerate((1, 2, 4, 8)):
        n = 128 // f
        pooled = counts.reshape(-1, 3, n, f, n, f).sum((3, 5))
        holds = masks.reshape(-1, n, f, n, f).any((2, 4))
        std = [pooled[:, g][holds].std() for g in range(3)]
        np.testing.assert_allclose(statistics.std[i], std, rtol=1e-9)


def test_statistics_of_a_gene_never_seen(joint):
    silent = Panel(("ENSG00001",), ("GENE1",))
    statistics = training_statistics(PatchDataset([joint], silent), [Member(0, 0)])
    assert statistics.rate == pytest.approx([0.5 / joint[0].tissue_mask.sum()])
    np.testing.assert_array_equal(statistics.std, 1.0)


def test_stores_of_unlike_encoders_are_refused_and_missing_genes_are_known(stores, tmp_path):
    other = {"name": "tiny", "weights": "1" * 16, "licence": ""}
    odd = write_store(tmp_path / "odd.vst", "C", 1, encoder=other)
    with pytest.raises(ConfigError, match=r"odd\.vst: expected tokens of .*extract with one encod"):
        PatchDataset([*stores, odd], ALL)
    wide = write_store(tmp_path / "wide.vst", "D", 1, dim=9)
    with pytest.raises(ConfigError, match=r"wide\.vst: expected tokens of"):
        PatchDataset([*stores, wide], ALL)
    few = write_store(tmp_path / "few.vst", "E", 1, n_genes=4)
    dataset = PatchDataset([*stores, few], ALL)
    assert dataset.measured([Member(2, 0)]).tolist() == [[True] * 4 + [False] * 2]
    assert dataset.measured([Member(0, 0)]) is None
    assert dataset.panel_counts(Member(2, 0)).n_genes == 6
