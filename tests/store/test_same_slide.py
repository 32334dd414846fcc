"""Two stores of one slide are recognised, however they were made; two slides are not confused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from tiny_store import JOB, make_record, make_records, write_records, write_store

from virchow_st.errors import ConfigError
from virchow_st.extract.slide import extract_slide
from virchow_st.store import same_slide
from virchow_st.store.reader import open_store
from virchow_st.store.same_slide import check_different_slides

BINS, GENES = 320, 12


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(same_slide, "_KNOWN_DIFFERENT", set())


def draw_rates(seed):
    """(GENES, BINS, BINS) rates: folds of tissue, nuclei and 12 % stripes, as on a real slide."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:BINS, :BINS]
    rates = np.empty((GENES, BINS, BINS))
    for g in range(GENES):
        turn, phase = rng.uniform(0, np.pi), rng.uniform(0, 6)
        wave = np.sin((row * np.cos(turn) + col * np.sin(turn)) / 9 + phase)
        rates[g] = 0.08 * np.exp(wave)
    nuclei = rng.random((BINS, BINS)) < 0.02
    return rates * (1 + 3 * nuclei)


STRIPES = np.random.default_rng(99).lognormal(0, 0.12, (2, BINS))  # of the array, not of a slide


def draw_counts(seed, rates=None):
    """Counts of one slide, its noise its own."""
    rates = draw_rates(seed) if rates is None else rates
    rates = rates * STRIPES[0][:, None] * STRIPES[1][None]
    return np.random.default_rng([seed, 1]).poisson(rates)


def store_of(folder, name, counts, tissue=None, origin=(0, 0), patient=None, **manifest):
    """A store of whole patches from a bin on, as extraction lays them."""
    tissue = np.ones((BINS, BINS), bool) if tissue is None else tissue
    records = []
    for row in range(origin[0], BINS - 127, 128):
        for col in range(origin[1], BINS - 127, 128):
            part = slice(row, row + 128), slice(col, col + 128)
            umis = counts[:, part[0], part[1]] * tissue[part]
            image = np.zeros((256, 256, 3), np.uint8)
            tokens = np.full((16, 16, 4), row + col + len(name), np.float16)
            records.append(make_record(tokens, umis, tissue[part], image, row, col))
    return write_records(
        folder / f"{name}.vst", records, len(counts), patient=patient or name, **manifest
    )


def assert_same(a, b, reason):
    for pair in ([a, b], [b, a]):
        with pytest.raises(ConfigError, match=f"holds the same slide as .*{reason}.* give it once"):
            check_different_slides(pair)


# --- one slide ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counts():
    return draw_counts(0)


WAYS = ["lattice", "tissue", "genes", "half of the reads", "newer Space Ranger", "int8"]


@pytest.mark.parametrize("way", WAYS)
def test_one_slide_is_found_again(tmp_path, counts, way):
    """Nothing in the files is the same but where barcodes lie and, nearly, what they caught."""
    rng = np.random.default_rng(7)
    tissue, origin, more = np.ones((BINS, BINS), bool), (0, 0), {}
    if way == "lattice":
        origin = (61, 23)
    elif way == "tissue":  # found anew, with another alignment
        tissue[:40] = tissue[:, 250:] = False
        more = {"homography": [[6.0, 0.4, 9.0], [0.4, -6.0, 5000.0], [0.0, 0.0, 1.0]]}
    elif way == "genes":  # the raw matrix, or another probe set
        counts = counts[:-3]
    elif way == "half of the reads":
        counts = rng.binomial(counts, 0.5)
    elif way == "newer Space Ranger":
        counts = rng.binomial(counts, 0.97) + rng.poisson(0.002, counts.shape)
    else:
        more = {"token_dtype": "int8"}
    one = store_of(tmp_path, "P1", draw_counts(0))
    again = store_of(tmp_path, "PX", counts, tissue, origin, **more)
    assert one.manifest["records_xxh64"] != again.manifest["records_xxh64"]
    assert_same(one, again, r"under two names, P1 and PX \(the counts of [\d,]+ bins agree, r")


def test_under_one_name_it_is_refused_as_well(tmp_path, counts):
    one = store_of(tmp_path, "a", counts, patient="P1")
    again = store_of(tmp_path, "bb", counts, origin=(1, 1), patient="P1")
    assert_same(one, again, r"\.vst \(the counts of")


def test_the_same_records(tmp_path):
    a, b = (write_store(tmp_path / f"{name}.vst", name) for name in "AB")
    assert_same(a, b, r"A and B \(the records are the same\)")


def job(matrix, image):
    inputs = {"matrix": {"name": "m.h5", "fingerprint": matrix}}
    inputs["image"] = {"name": "i.tif", "fingerprint": image}
    return JOB | {"inputs": inputs}


def test_one_matrix(tmp_path):
    a = write_store(tmp_path / "A.vst", "A", seed=1, job=job("1", "2"))
    b = write_store(tmp_path / "B.vst", "B", seed=2, job=job("1", "3"))
    assert_same(a, b, "both were made from one count matrix")


def test_one_image_at_the_same_place(tmp_path):
    a = write_store(tmp_path / "A.vst", "A", seed=1, job=job("1", "3"))
    b = write_store(tmp_path / "B.vst", "B", seed=2, job=job("2", "3"))
    assert_same(a, b, "both show the same part of one image")


# --- two slides -----------------------------------------------------------------------------------


def test_one_image_of_two_capture_areas_is_two_slides(tmp_path):
    """A scan may show both areas of a glass slide; patches lie side by side on it."""
    a = write_store(tmp_path / "A.vst", "A", seed=1, job=job("1", "3"))
    records = []
    for record in make_records(4, seed=2):
        beside = np.add(record.info.corners_px, [256.0, 0.0])
        records.append(replace(record, info=replace(record.info, corners_px=beside)))
    b = write_records(tmp_path / "B.vst", records, 6, patient="B", job=job("2", "3"))
    check_different_slides([a, b])


def test_slides_that_share_grid_tissue_mask_and_stripes_are_two(tmp_path):
    """Full rectangles on one grid, the same array stripes, and nothing else in common."""
    stores = [store_of(tmp_path, f"P{seed}", draw_counts(seed)) for seed in range(4)]
    check_different_slides(stores)


def test_two_sections_of_one_tissue_are_two(tmp_path):
    """The same rates bin for bin, which is more than neighbouring sections share: only the noise
    differs, so this can never be told from two patients, and is not refused.
    """
    rates = draw_rates(0)
    stores = [store_of(tmp_path, f"P{seed}", draw_counts(seed, rates)) for seed in range(3)]
    check_different_slides(stores)


def test_slides_of_few_counts_are_not_taken_for_one(tmp_path):
    stores = [store_of(tmp_path, f"P{s}", draw_counts(s) * (np.arange(GENES) == 0)[:, None, None])
              for s in range(3)]  # fmt: skip
    nothing = np.zeros((2, BINS, BINS), int)
    empty = [store_of(tmp_path, name, nothing) for name in ("empty", "nothing")]
    check_different_slides([*stores, *empty])


def test_simulated_patients_are_different_and_a_second_extraction_is_not(
    simulated, stores, tmp_path
):
    opened = {name: open_store(path) for name, path in stores.items()}
    check_different_slides(list(opened.values()))
    for a, b in combinations(opened.values(), 2):
        assert frozenset(s.manifest["records_xxh64"] for s in (a, b)) in same_slide._KNOWN_DIFFERENT
    folder = simulated / "P1"
    one = open_store(stores["P1"])
    options = {"min_tissue": 0.2, "lattice": "best", "token_dtype": "int8"}
    from virchow_st.config import ExtractConfig

    config = ExtractConfig(encoder="stain", device="cpu", **options)
    again = extract_slide(
        folder / "outs", folder / "tissue_image.tif", tmp_path / "again.vst", "PX", config
    )
    assert_same(one, again, "one count matrix")
    # Downloaded again, in another compression: the fingerprints differ, or there are none.
    for inputs in ({"matrix": {"fingerprint": "0"}, "image": {"fingerprint": "0"}}, {}):
        path = again.path / "store.json"
        manifest = json.loads(path.read_text("utf-8"))
        manifest["job"]["inputs"] = inputs
        path.write_text(json.dumps(manifest), "utf-8")
        assert_same(one, open_store(again.path), "the counts of .* r 1.00")


def test_pairs_are_read_once_and_little_of_them(tmp_path, monkeypatch):
    stores = [store_of(tmp_path, f"P{seed}", draw_counts(seed)) for seed in range(3)]
    read = []
    of = same_slide._Totals.of.__func__
    monkeypatch.setattr(
        same_slide._Totals,
        "of",
        classmethod(
            lambda cls, store, index: read.append((store.path, index)) or of(cls, store, index)
        ),
    )
    check_different_slides(stores)
    assert len(read) == len(set(read)) <= 3 * 2
    read.clear()
    check_different_slides(stores)
    assert read == []
