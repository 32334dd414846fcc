"""metrics.json, per_gene.csv and blocks.npz are read as written; other content is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored_blocks import PANEL, G, scored, sums_of

from virchow_st.errors import ConfigError
from virchow_st.metrics import BlockSums, ScaleScores
from virchow_st.run.blocks import RUN, RunBlocks, read_blocks, write_blocks
from virchow_st.run.compare import differences, intervals
from virchow_st.run.results import (
    LATER,
    PER_GENE,
    SCORES,
    WITH_INTERVAL,
    check_metrics,
    read_metrics,
    read_per_gene,
    write_metrics,
    write_per_gene,
)


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
    intervals = {f"{name}_ci95" for name in WITH_INTERVAL}
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
        (lambda m: _cut(m, "scales", "8", "pcc_partial"), "scales.8.pcc_partial is missing"),
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


def test_results_before_the_partial_correlation_are_read_as_undefined(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    for scales in (metrics["scales"], *metrics["baselines"].values()):
        for scores in scales.values():
            for name in LATER:
                del scores[name]
    write_metrics(tmp_path, metrics)
    actual = read_metrics(tmp_path)
    for scales in (actual["scales"], *actual["baselines"].values()):
        assert all(scores[name] is None for scores in scales.values() for name in LATER)
    write_per_gene(tmp_path, PANEL, {s: a.compute() for s, a in scored(1).items()})
    table = [line.split(",") for line in (tmp_path / "per_gene.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(table[0]) if name not in LATER]
    old = "".join(",".join(line[i] for i in kept) + "\n" for line in table)
    (tmp_path / "per_gene.csv").write_text(old)
    rows = read_per_gene(tmp_path)
    assert np.isfinite(rows[0].pcc)
    assert np.isnan(rows[0].pcc_partial)


def test_undefined_figures_pass_the_schema(metrics: dict[str, Any]) -> None:
    empty = copy.deepcopy(metrics)
    for name in (*SCORES, *(f"{name}_ci95" for name in WITH_INTERVAL)):
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
