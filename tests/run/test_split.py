"""The split: patients held out, validation blocks, and the file that records both."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_store import write_store

from virchow_st.errors import ConfigError
from virchow_st.run.split import VALIDATION_SHARE, Member, Split, read_split, split_patients


class FakeStore(SimpleNamespace):
    """What a split looks at: the patient and where the patches lie."""

    def __len__(self):
        return len(self.patch_table)


def slide(patient, rows, cols, drop=(), name=None):
    places = [(r, c) for r in range(rows) for c in range(cols) if (r, c) not in drop]
    table = [SimpleNamespace(row0=128 * r, col0=128 * c, total_umi=0) for r, c in places]
    name = name or f"{patient}-{rows}x{cols}"
    manifest = {"records_xxh64": name, "job": {"inputs": {}}}
    return FakeStore(patient=patient, path=name, patch_table=table, manifest=manifest)


@pytest.fixture
def cohort():
    return [slide("P1", 12, 10, drop={(0, 0), (5, 5)}), slide("P5", 6, 6), slide("P2", 9, 7)]


def all_members(stores, patient=None):
    return {
        Member(i, p)
        for i, s in enumerate(stores)
        for p in range(len(s))
        if patient is None or s.patient == patient
    }


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_disjoint_and_whole(cohort, seed):
    split = split_patients(cohort, "P5", seed)
    parts = [set(split.train), set(split.validation), set(split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(all_members(cohort))
    assert parts[2] == all_members(cohort, "P5")
    assert {m.store for m in split.train} == {m.store for m in split.validation} == {0, 2}
    for i in (0, 2):
        share = sum(m.store == i for m in split.validation) / len(cohort[i])
        assert VALIDATION_SHARE <= share < VALIDATION_SHARE + 4 / len(cohort[i])


def test_validation_is_made_of_whole_spatial_blocks(cohort):
    split = split_patients(cohort, "P5", 0)

    def block(member):
        info = cohort[member.store].patch_table[member.patch]
        return member.store, info.row0 // 256, info.col0 // 256

    assert not {block(m) for m in split.train} & {block(m) for m in split.validation}
    assert len({block(m) for m in split.validation}) > 2


def test_seed_decides(cohort):
    assert split_patients(cohort, "P5", 3) == split_patients(cohort, "P5", 3)
    drawn = {split_patients(cohort, "P5", seed).validation for seed in range(8)}
    assert len(drawn) > 4


@pytest.mark.parametrize(("rows", "cols"), [(1, 2), (2, 2), (1, 3), (3, 3)])
def test_small_slide_is_cut_finer_and_keeps_training_patches(rows, cols):
    stores = [slide("P1", rows, cols), slide("P5", 1, 1)]
    for seed in range(5):
        split = split_patients(stores, "P5", seed)
        assert split.train
        assert split.validation
        assert len(split.train) + len(split.validation) == rows * cols


def test_several_slides_of_the_test_patient(cohort):
    stores = [*cohort, slide("P5", 2, 2)]
    split = split_patients(stores, "P5", 0)
    assert {m.store for m in split.test} == {1, 3}
    assert not {m.store for m in split.train + split.validation} & {1, 3}


@pytest.mark.parametrize(
    ("stores", "patient", "reason"),
    [
        ([slide("P1", 3, 3), slide("P2", 3, 3)], "P9", "expected one of P1, P2; got 'P9'"),
        ([slide("P1", 3, 3), slide("P1", 2, 2)], "P1", "all stores are of P1"),
        ([slide("P1", 1, 1), slide("P2", 3, 3)], "P2", "at least two training patches"),
        ([], "P1", "test patient"),
    ],
)
def test_cohorts_that_cannot_be_split_are_refused(stores, patient, reason):
    with pytest.raises(ConfigError, match=reason):
        split_patients(stores, patient, 0)


@pytest.mark.parametrize("patient", ["P1", "P2"])
def test_slide_given_twice_is_refused(patient):
    """Else it would train and be tested, or validated, at once."""
    stores = [slide("P1", 3, 3, name="one"), slide(patient, 3, 3, name="one"), slide("P5", 2, 2)]
    with pytest.raises(ConfigError, match="one: holds the same slide as one.* give it once"):
        split_patients(stores, "P5", 0)


def test_written_split_is_read_back_and_guarded(cohort, tmp_path):
    split = split_patients(cohort, "P5", 0)
    path = tmp_path / "split.json"
    split.write(path, cohort)
    assert Split.read(path) == split
    assert read_split(path)["xxh64"] == split.xxh64(cohort)
    content = json.loads(path.read_text("utf-8"))
    assert [part["patient"] for part in content["train"]] == ["P1", "P2"]
    assert [part["patient"] for part in content["test"]] == ["P5"]

    moved = content["validation"][0]["patches"].pop()
    content["train"][0]["patches"].append(moved)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ConfigError, match="does not match its hash"):
        Split.read(path)


def test_on_real_stores(tmp_path):
    stores = [
        write_store(tmp_path / "A.vst", "A", 6, seed=1, columns=3),
        write_store(tmp_path / "B.vst", "B", 2, seed=2),
    ]
    split = split_patients(stores, "B", 0)
    assert {m.store for m in split.test} == {1}
    assert sorted(m.patch for m in split.train + split.validation) == list(range(6))
    assert np.isclose(len(split.validation), 1)
