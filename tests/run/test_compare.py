"""Comparison of runs: which can be compared, and which differences are told from chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scored_blocks import PANEL, G, scored, sums_of

from virchow_st.errors import ConfigError
from virchow_st.metrics import ScaleAccumulator
from virchow_st.metrics.partial import Controls
from virchow_st.run.blocks import RUN, RunBlocks, write_blocks
from virchow_st.run.compare import compare_runs, differences, intervals
from virchow_st.run.panel import Panel


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
    controls = Controls(one.sum(0), one[:2])
    for accumulator in changed.values():
        accumulator.update(one, one.astype(np.uint16), one[0] > 0, block=3, controls=controls)
    other = evaluated(tmp_path / "d", changed)
    with pytest.raises(ConfigError, match="d: expected the test patches and counts of .*/a"):
        compare_runs([a, other])
    (tmp_path / "e").mkdir()
    with pytest.raises(ConfigError, match="run `vst evaluate"):
        compare_runs([a, tmp_path / "e"])


def test_one_block_has_no_interval() -> None:
    sums = sums_of(scored(1))
    assert intervals(sums[2]) == dict.fromkeys(("pcc_ci95", "d2_poisson_ci95", "pcc_partial_ci95"))
    actual = differences(sums, sums)["2"]["pcc"]
    assert actual == {"difference": 0.0, "ci95": None, "p": None}
