"""A run on tiny stores, trained and evaluated, whose test patient has a mirrored, tilted slide."""

from __future__ import annotations

from pathlib import Path

from tiny_slide import homography
from tiny_store import write_store

from virchow_st.config import TrainConfig
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.training.train import train

BINS = 512
LICENCE = "non-commercial"
TILTED, _ = homography("turn 1 mirror perspective", BINS, BINS)


def make_run(folder: Path) -> Path:
    """Make stores A.vst (5 patches) and T.vst (3 patches, with one missing between), and a run."""
    encoder = {"name": "tiny", "weights": "0" * 16, "licence": LICENCE}
    write_store(folder / "A.vst", "A", 5, seed=0, slide="A", encoder=encoder)
    write_store(
        folder / "T.vst", "T", 3, seed=1, slide="T", homography=TILTED.matrix.tolist(),
        mpp=float(TILTED.mpp_at(BINS / 2, BINS / 2)), encoder=encoder,
    )  # fmt: skip
    config = TrainConfig(
        stores=tuple(str(folder / f"{name}.vst") for name in "AT"), test_patient="T",
        panel="top:4", decoder="linear", epochs=1, batch_size=4, accumulate=1, lr=5e-3,
        warmup_epochs=0, device="cpu",
    )  # fmt: skip
    train(folder / "run", config)
    evaluate_run(folder / "run", "cpu")
    return folder / "run"
