"""Strength of the stain augmentation from how training patients differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_store import make_record, write_records
from tiny_training import few_steps, tiny_config

from virchow_st.models.decoders.variation import variations
from virchow_st.run.panel import Panel
from virchow_st.run.split import Member
from virchow_st.store.reader import Store
from virchow_st.training import train as training
from virchow_st.training.dataset import PatchDataset
from virchow_st.training.stain_spread import variation_from_data

PANEL = Panel(("ENSG00000",), ("GENE0",))
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29]) / np.linalg.norm([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11]) / np.linalg.norm([0.07, 0.99, 0.11])


def write_stained(path: Path, patient: str, strength: float, seed: int = 0) -> Store:
    """Patches of random stain densities, all of them so many times as strong."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(6):
        h = rng.gamma(2, 0.1, (256, 256, 1)) * HAEMATOXYLIN
        e = rng.gamma(4, 0.05, (256, 256, 1)) * EOSIN
        light = 256 * 10 ** -(strength * (h + e)) - 1
        image = np.clip(np.round(light), 0, 255).astype(np.uint8)
        tokens = rng.normal(size=(16, 16, 8)).astype(np.float16)
        counts = rng.poisson(0.2, (1, 128, 128))
        mask = np.ones((128, 128), bool)
        records.append(make_record(tokens, counts, mask, image, 0, 128 * i))
    return write_records(path, records, 1, patient=patient)


def found(stores: list[Store]) -> float:
    dataset = PatchDataset(stores, PANEL)
    return variation_from_data(
        dataset, [Member(s, p) for s, store in enumerate(stores) for p in range(len(store))]
    )


def test_one_patient_differs_from_nobody(tmp_path: Path) -> None:
    assert found([write_stained(tmp_path / "a.vst", "A", 1.0)]) == 0
    # Nor do two slides of one patient.
    two = [write_stained(tmp_path / f"b{s}.vst", "B", s, int(10 * s)) for s in (0.8, 1.2)]
    assert found(two) == 0


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 0.0), (1.1, 0.45), (1.2, 0.86), (2, 1.0)])
def test_it_grows_with_the_ratio_of_strengths(
    tmp_path: Path, ratio: float, expected: float
) -> None:
    """Of two patients the standard deviation is log(ratio)/√2, and 0.15 of that counts as 1."""
    stores = [
        write_stained(tmp_path / "a.vst", "A", 1.0, 0),
        write_stained(tmp_path / "b.vst", "B", ratio, 1),
    ]
    assert found(stores) == pytest.approx(expected, abs=0.06)


def test_glass_alone_is_no_stain(tmp_path: Path) -> None:
    stores = [write_stained(tmp_path / f"{i}.vst", str(i), 0.0, i) for i in (0, 1)]
    assert found(stores) == 0


def test_the_test_patient_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training asks for the spread of its training patients; one may also be given."""
    for name, strength in (("P1", 1.0), ("P2", 1.15), ("P5", 3.0)):
        write_stained(tmp_path / f"{name}.vst", name, strength, len(name) + int(9 * strength))
    paths = tuple(str(tmp_path / f"{name}.vst") for name in ("P1", "P2", "P5"))
    seen = []

    class StopError(Exception):
        pass

    def fit(trainer: training.Trainer, *_: object) -> None:
        seen.append({v.amount for v in variations(trainer.learner.decoder)})
        raise StopError

    monkeypatch.setattr(training.Trainer, "fit", fit)
    for i, (stores, amount) in enumerate([(paths, -1.0), (paths[::2], -1.0), (paths, 0.4)]):
        config = tiny_config(stores, decoder="linear", panel="top:1", stain_variation=amount)
        with few_steps(1), pytest.raises(StopError):
            training.train(tmp_path / f"run{i}", config)
    (both,), (one,), (given,) = seen
    assert 0.4 < both < 0.95
    assert (one, given) == (0.0, 0.4)
