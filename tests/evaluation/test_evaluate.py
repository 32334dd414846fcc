"""What stands round the figures of a test slide: nulls, blocks, result files, comparisons."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from old_run import without_hashes
from tiny_store import write_store

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.evaluation.blocks import NOBODY, cut_blocks, shifted_places, shuffled_places
from virchow_st.evaluation.evaluate import check_comparable, evaluate_run
from virchow_st.metrics import BlockSums, ScaleAccumulator, ScaleScores
from virchow_st.run.blocks import RUN, RunBlocks, read_blocks, write_blocks
from virchow_st.run.compare import compare_runs, differences, intervals
from virchow_st.run.panel import Panel
from virchow_st.run.results import (
    INTERVALS,
    PER_GENE,
    SCORES,
    check_metrics,
    read_metrics,
    write_metrics,
    write_per_gene,
)
from virchow_st.store.format import PatchInfo
from virchow_st.training import schedule
from virchow_st.training import train as training
from virchow_st.types import SCALES_UM

G = 3
PANEL = Panel(("E0", "E1", "E2"), ("A", "B", "A"))


def lattice(*places: tuple[int, int], row0: int = 0, col0: int = 0) -> list[PatchInfo]:
    corners = np.zeros((4, 2))
    return [PatchInfo(row0 + 128 * r, col0 + 128 * c, corners, 1.0, 0) for r, c in places]


def rectangle(rows: int, cols: int) -> list[PatchInfo]:
    return lattice(*((r, c) for r in range(rows) for c in range(cols)))


# --- nulls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 21, 570])
def test_shuffling_lays_every_patch_on_another(n: int) -> None:
    places = shuffled_places(n)
    assert sorted(places) == list(range(n))
    assert (places != np.arange(n)).all()


def test_a_single_patch_has_no_other() -> None:
    assert shuffled_places(1).tolist() == [NOBODY]
    assert shifted_places(lattice((3, 5))).tolist() == [NOBODY]


@pytest.mark.parametrize(("rows", "cols"), [(4, 6), (5, 5), (1, 8), (7, 1), (2, 2), (1, 2)])
def test_a_full_rectangle_shifts_by_half_and_leaves_nobody_out(rows: int, cols: int) -> None:
    places = shifted_places(rectangle(rows, cols))
    grid = np.arange(rows * cols).reshape(rows, cols)
    by_half = [
        np.roll(grid, (down, right), (0, 1)).ravel().tolist()
        for down in (rows // 2, -(rows // 2))
        for right in (cols // 2, -(cols // 2))
    ]
    assert places.tolist() in by_half


def test_a_shift_keeps_neighbours_together() -> None:
    """On a ragged slide, every pair of patches with partners lies as its partners do."""
    rng = np.random.default_rng(3)
    taken = [(r, c) for r in range(9) for c in range(11) if rng.random() < 0.6]
    places = shifted_places(lattice(*taken, row0=57, col0=1300))
    rows, cols = (np.ptp([p[i] for p in taken]) + 1 for i in (0, 1))
    steps = {
        ((taken[at][0] - r) % rows, (taken[at][1] - c) % cols)
        for (r, c), at in zip(taken, places, strict=True)
        if at != NOBODY
    }
    ((down, right),) = steps
    assert min(down, rows - down) >= rows / 4 or min(right, cols - right) >= cols / 4
    assert (places == NOBODY).any()
    assert (places != NOBODY).mean() > 0.4


def test_a_shift_takes_the_way_that_pairs_most() -> None:
    """Two strips a third of the slide apart: half the slide would pair nothing."""
    taken = [(r, c) for r in (0, 1, 4, 5, 8, 9) for c in range(2)]
    places = shifted_places(lattice(*taken))
    assert (places != NOBODY).all()


# --- blocks -------------------------------------------------------------------------------------


def test_blocks_are_squares_of_two_by_two_patches() -> None:
    blocks = cut_blocks([rectangle(6, 7)])
    assert (blocks.um, blocks.n_blocks) == (512, 12)
    of_patch = blocks.of_patch[0].reshape(6, 7)
    for block in range(12):
        row, col = np.nonzero(of_patch == block)
        assert len(row) <= 4
        assert np.ptp(row) <= 1
        assert np.ptp(col) <= 1
    assert sorted(np.unique(of_patch)) == list(range(12))


def test_a_small_slide_is_cut_into_single_patches() -> None:
    blocks = cut_blocks([rectangle(3, 3)])
    assert (blocks.um, blocks.n_blocks) == (256, 9)
    assert blocks.of_patch[0].tolist() == list(range(9))
    assert cut_blocks([rectangle(1, 1)]).n_blocks == 1


def test_no_block_lies_on_two_slides() -> None:
    blocks = cut_blocks([rectangle(4, 4), rectangle(4, 5)])
    assert (blocks.um, blocks.n_blocks) == (512, 10)
    assert set(blocks.of_patch[0]) == set(range(4))
    assert set(blocks.of_patch[1]) == set(range(4, 10))


# --- files --------------------------------------------------------------------------------------


def scored(n_blocks: int, noise: float = 0.0, seed: int = 0) -> dict[int, ScaleAccumulator]:
    """A patch a block; rates that follow the true ones more or less."""
    rng = np.random.default_rng(7)
    other = np.random.default_rng(seed)
    accumulators = {s: ScaleAccumulator(G, s, np.full(G, 0.3), n_blocks) for s in SCALES_UM}
    for block in range(n_blocks):
        rate = rng.gamma(2, 0.15, (G, 8, 8)).repeat(4, 1).repeat(4, 2).astype(np.float32)
        counts, mask = rng.poisson(rate).astype(np.uint16), np.ones((32, 32), np.bool_)
        rate = rate * np.exp(noise * other.normal(size=rate.shape)).astype(np.float32)
        for accumulator in accumulators.values():
            accumulator.update(rate, counts, mask, block=block)
    return accumulators


def sums_of(accumulators: dict[int, ScaleAccumulator]) -> dict[int, BlockSums]:
    return {scale: accumulator.block_sums() for scale, accumulator in accumulators.items()}


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    """The content of a metrics.json."""
    run, mean = scored(10), scored(10, noise=0.5)
    scales = {
        name: {
            str(s): {
                "coverage": 1.0, "n_bins": 9, **a.compute().summary(), **intervals(a.block_sums()),
            }
            for s, a in accumulators.items()
        }
        for name, accumulators in (("run", run), ("ridge", mean))
    }  # fmt: skip
    return {
        "format": "virchow_st.metrics/1", "test_patients": ["T"], "n_patches": 10, "n_genes": G,
        "loss": "poisson", "decoder": "linear", "epoch": 3,
        "encoder": {"name": "stain", "weights": "0" * 16, "licence": ""},
        "bootstrap": {"block_um": 256, "n_blocks": 10, "draws": 1000},
        "scales": scales["run"], "baselines": {"ridge": scales["ridge"]}, "oracles": [],
        "differences": {"ridge": differences(sums_of(run), sums_of(mean))},
    }  # fmt: skip


def test_every_figure_is_in_the_schema_and_in_the_table_of_genes(metrics: dict[str, Any]) -> None:
    intervals = {f"{name}_ci95" for name in INTERVALS}
    assert set(metrics["scales"]["2"]) == set(SCORES) | intervals
    arrays = {f.name for f in fields(ScaleScores) if f.type == "Float64Array"}
    assert set(PER_GENE) == arrays


def test_metrics_are_written_checked_and_read(metrics: dict[str, Any], tmp_path: Path) -> None:
    write_metrics(tmp_path, metrics)
    assert read_metrics(tmp_path) == metrics
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def _cut(metrics: dict[str, Any], *path: str) -> None:
    for name in path[:-1]:
        metrics = metrics[name]
    del metrics[path[-1]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.update(format="virchow_st.metrics/0"), "format: expected"),
        (lambda m: m.update(n_genes="3"), "n_genes: expected a whole number; got '3'"),
        (lambda m: _cut(m, "bootstrap"), "bootstrap is missing"),
        (lambda m: _cut(m, "scales", "16"), "scales: expected the scales 2, 4, 8, 16"),
        (lambda m: _cut(m, "scales", "8", "auroc"), "scales.8.auroc is missing"),
        (lambda m: _cut(m, "scales", "8", "pcc_ci95"), "scales.8.pcc_ci95 is missing"),
        (lambda m: m["scales"]["8"].update(pcc_ci95=[0.1]), "scales.8.pcc_ci95: expected"),
        (lambda m: m["scales"].update({"4": []}), "scales.4: expected an object"),
        (lambda m: m["scales"]["4"].update(pcc="0.3"), "scales.4.pcc: expected a number"),
        (lambda m: m["scales"]["4"].update(pcc=1e400), "scales.4.pcc: expected a finite number"),
        (lambda m: m["scales"]["4"].update(pcc=True), "scales.4.pcc: expected a number"),
        (lambda m: _cut(m, "baselines", "ridge", "2"), "baselines.ridge: expected the scales"),
        (lambda m: m.update(slides={"T-0": 3}), "slides.T-0: expected an object"),
        (lambda m: _cut(m, "differences", "ridge"), "differences: expected ridge"),
        (lambda m: _cut(m, "differences", "ridge", "4", "pcc", "p"), "ridge.4.pcc.p is missing"),
        (lambda m: m.update(oracles=["total_umi"]), "oracles: expected some of ridge"),
        (lambda m: m["encoder"].update(name="\x1b[31m"), "encoder.name: expected a name"),
    ],
)
def test_other_content_is_refused_both_ways(
    metrics: dict[str, Any], tmp_path: Path, spoil, message: str
) -> None:
    spoilt = copy.deepcopy(metrics)
    spoil(spoilt)
    with pytest.raises(ValueError, match=message):
        write_metrics(tmp_path, spoilt)
    assert not list(tmp_path.iterdir())
    (tmp_path / "metrics.json").write_text(json.dumps(spoilt).replace("Infinity", "1e400"))
    with pytest.raises(ConfigError, match=f"metrics.json: .*{message}.*vst evaluate") as error:
        read_metrics(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\udcff", "null"])
def test_a_file_that_is_no_metrics_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"metrics\.json: .*run `vst evaluate"):
        read_metrics(tmp_path)


def test_no_metrics_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found; run `vst evaluate"):
        read_metrics(tmp_path)


def test_undefined_figures_pass_the_schema(metrics: dict[str, Any]) -> None:
    empty = copy.deepcopy(metrics)
    for name in (*SCORES, "pcc_ci95", "d2_poisson_ci95"):
        empty["scales"]["2"][name] = None
    check_metrics(empty)


def test_per_gene_table_leaves_undefined_fields_empty(tmp_path: Path) -> None:
    computed = {s: a.compute() for s, a in scored(1).items()}
    write_per_gene(tmp_path, PANEL, computed)
    lines = (tmp_path / "per_gene.csv").read_text("utf-8").splitlines()
    assert lines[0].split(",") == ["gene_id", "symbol", "scale_um", *PER_GENE]
    assert len(lines) == 1 + G * 4
    first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (first["gene_id"], first["symbol"], first["scale_um"]) == ("E0", "A", "2")
    assert first["pcc_shuffled"] == ""  # one patch has no other
    assert float(first["pcc"]) == pytest.approx(computed[2].pcc[0], rel=1e-5)


def test_blocks_come_back_to_the_last_bit(tmp_path: Path) -> None:
    blocks = RunBlocks(PANEL.ids, {RUN: sums_of(scored(9)), "ridge": sums_of(scored(9, 0.3))})
    write_blocks(tmp_path, blocks)
    actual = read_blocks(tmp_path)
    assert actual.gene_ids == PANEL.ids
    assert list(actual.sums) == [RUN, "ridge"]
    for model, scales in blocks.sums.items():
        for scale, sums in scales.items():
            for field in fields(BlockSums):
                got, want = (getattr(x, field.name) for x in (actual.sums[model][scale], sums))
                np.testing.assert_array_equal(got, want)
    assert [p.name for p in tmp_path.iterdir()] == ["blocks.npz"]


def _pickled(path: Path) -> None:
    np.savez(path, format=np.array([{}], dtype=object))


def _foreign(path: Path) -> None:
    np.savez(path, format=np.array("something/1"))


def _short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _text(path: Path) -> None:
    path.write_text("no zip")


@pytest.mark.parametrize("spoil", [_pickled, _foreign, _short, _text])
def test_other_blocks_are_refused_and_nothing_is_unpickled(tmp_path: Path, spoil) -> None:
    write_blocks(tmp_path, RunBlocks(PANEL.ids, {RUN: sums_of(scored(2))}))
    spoil(tmp_path / "blocks.npz")
    with pytest.raises(ConfigError, match=r"blocks\.npz: cannot be read .*vst evaluate"):
        read_blocks(tmp_path)
    with pytest.raises(ConfigError, match="not found; run `vst evaluate"):
        read_blocks(tmp_path / "none")


# --- comparisons --------------------------------------------------------------------------------


def evaluated(path: Path, accumulators: dict[int, ScaleAccumulator], panel: Panel = PANEL) -> Path:
    path.mkdir()
    write_blocks(path, RunBlocks(panel.ids, {RUN: sums_of(accumulators)}))
    return path


def test_a_noisier_prediction_is_worse_and_two_alike_are_not_told_apart(tmp_path: Path) -> None:
    good = evaluated(tmp_path / "good", scored(12))
    noisy = evaluated(tmp_path / "noisy", scored(12, noise=0.8))
    near, alike = (
        evaluated(tmp_path / name, scored(12, noise=0.05, seed=seed))
        for seed, name in enumerate(("near", "alike"))
    )
    comparison = compare_runs([good, noisy, near, alike])
    pairs = {(Path(p["a"]).name, Path(p["b"]).name): p["scales"] for p in comparison["pairs"]}
    assert len(pairs) == 6
    for scale in ("2", "4", "8"):
        for figure in ("pcc", "d2_poisson"):
            clear, unclear = (
                pairs[p][scale][figure] for p in (("good", "noisy"), ("near", "alike"))
            )
            assert 0 < clear["ci95"][0] < clear["difference"] < clear["ci95"][1]
            assert clear["p"] < 0.01
            assert unclear["ci95"][0] <= 0 <= unclear["ci95"][1]
    json.dumps(comparison, allow_nan=False)


def test_runs_of_other_genes_or_counts_are_not_compared(tmp_path: Path) -> None:
    a = evaluated(tmp_path / "a", scored(9))
    turned = evaluated(tmp_path / "b", scored(9), Panel(PANEL.ids[::-1], PANEL.symbols[::-1]))
    with pytest.raises(ConfigError, match="b: expected the panel of .*/a, 3 genes"):
        compare_runs([a, turned])
    fewer = evaluated(tmp_path / "c", scored(8))
    with pytest.raises(ConfigError, match="c: expected the test patches and counts of .*/a"):
        compare_runs([a, fewer])
    changed = scored(9)
    one = np.ones((G, 32, 32), np.float32)
    for accumulator in changed.values():
        accumulator.update(one, one.astype(np.uint16), one[0] > 0, block=3)
    other = evaluated(tmp_path / "d", changed)
    with pytest.raises(ConfigError, match="d: expected the test patches and counts of .*/a"):
        compare_runs([a, other])
    (tmp_path / "e").mkdir()
    with pytest.raises(ConfigError, match="run `vst evaluate"):
        compare_runs([a, tmp_path / "e"])


def test_one_block_has_no_interval() -> None:
    sums = sums_of(scored(1))
    assert intervals(sums[2]) == {"pcc_ci95": None, "d2_poisson_ci95": None}
    actual = differences(sums, sums)["2"]["pcc"]
    assert actual == {"difference": 0.0, "ci95": None, "p": None}


# --- a patient of several slides ----------------------------------------------------------------


@pytest.fixture(scope="module")
def run_of_two_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run whose test patient has two slides of 4 and 3 patches."""
    folder = tmp_path_factory.mktemp("two_slides")
    slides = (("A1", "A", 5), ("T1", "T", 4), ("T2", "T", 3))
    for seed, (slide, patient, n_patches) in enumerate(slides):
        write_store(folder / f"{slide}.vst", patient, n_patches, seed=seed, slide=slide)
    config = TrainConfig(
        stores=tuple(str(folder / f"{slide}.vst") for slide, _, _ in slides),
        test_patient="T", panel="top:3", decoder="linear", epochs=1, batch_size=2, accumulate=1,
        lr=5e-3, warmup_epochs=0, device="cpu",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_LEAST_STEPS_PER_EPOCH", 2)
        training.train(folder / "run", config)
        training.train(folder / "turned", replace(config, test_patient="A"))
    return folder / "run"


def test_slides_of_a_patient_are_scored_alone_and_together(run_of_two_slides: Path) -> None:
    metrics = evaluate_run(run_of_two_slides, "cpu")
    assert read_metrics(run_of_two_slides) == metrics
    assert metrics["test_patients"] == ["T"]
    assert metrics["n_patches"] == 7
    assert metrics["bootstrap"] == {"block_um": 256, "n_blocks": 7, "draws": 1000}
    bins = []
    for name in ("T-1", "T-2"):
        with h5py.File(run_of_two_slides / "maps" / f"{name}.h5") as f:
            mask = f["scored_mask"][:]
            bins.append(np.stack([f[x][:].astype(float)[:, mask] for x in ("rate", "counts")]))
        figures = metrics["slides"][name]["2"]
        assert figures["n_bins"] == bins[-1].shape[2]
        assert figures["coverage"] == 1.0
        assert figures["pcc"] == pytest.approx(mean_pcc(bins[-1]), abs=1e-6)
    assert metrics["scales"]["2"]["n_bins"] == sum(b.shape[2] for b in bins)
    both = np.concatenate(bins, axis=2)
    assert metrics["scales"]["2"]["pcc"] == pytest.approx(mean_pcc(both), abs=1e-6)


def mean_pcc(bins: np.ndarray) -> float:
    """Mean over genes of Pearson's r, from (2, G, n) rates and counts."""
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*bins, strict=True)]))


def test_one_truth_does_not_do_for_two_slides(run_of_two_slides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the test patient has 2; leave out --truth"):
        evaluate_run(run_of_two_slides, "cpu", truth=tmp_path / "truth.h5")


def test_runs_are_refused_before_work_that_cannot_be_compared(run_of_two_slides: Path) -> None:
    run, turned = run_of_two_slides, run_of_two_slides.with_name("turned")
    with pytest.raises(ConfigError, match="expected each once"):
        check_comparable([run, run.parent / "." / "run"])
    # The panels may differ as well, being chosen on other patients: give both one.
    (turned / "panel.tsv").write_bytes((run / "panel.tsv").read_bytes())
    with pytest.raises(ConfigError, match="turned: expected the test patches and counts of"):
        check_comparable([run, turned])
    without_hashes(turned)
    lines = (run / "panel.tsv").read_text().splitlines(keepends=True)
    (turned / "panel.tsv").write_text("".join([lines[0], lines[2], lines[1], lines[3]]))
    with pytest.raises(ConfigError, match="turned: expected the panel of"):
        check_comparable([run, turned])
