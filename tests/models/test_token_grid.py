"""Tokens of 16 and 8 µm: positions, the finer ones from quarter images, and who uses them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_slide import TinySlide, draw_markers, write_image
from tiny_vit import tiny_encoder

import virchow_st
from virchow_st.config import ExtractConfig
from virchow_st.extract.slide import extract_slide
from virchow_st.models.encoders import dihedral_channels, load_encoder
from virchow_st.models.encoders.base import Encoder
from virchow_st.models.encoders.quarters import Quartered
from virchow_st.store.reader import Store, open_store

pytestmark = pytest.mark.usefixtures("markers_for_tissue")

# Training a step is tested for all in test_decoders; whole runs of all but one take minutes.
DECODERS = [
    "linear",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("hist2st", "guided", "img2st")),
]


def encoders(name: str, token_um: int) -> Encoder:
    encoder = load_encoder("stain") if name == "stain" else tiny_encoder()
    return encoder if token_um == 16 else Quartered(encoder)


# --- quarters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stain", "vit"])
def test_a_quarter_is_encoded_as_a_whole_patch_would_be(name: str) -> None:
    whole, fine = encoders(name, 16), encoders(name, 8)
    side = whole.image_px
    assert (fine.grid, fine.image_px, fine.dim) == (32, 2 * side, whole.dim)
    assert (fine.name, fine.weights_hash) == (whole.name, whole.weights_hash)
    assert fine.batch == max(1, whole.batch // 4)
    images = np.random.default_rng(0).integers(0, 256, (2, 2 * side, 2 * side, 3), np.uint8)
    out = fine.encode(images)
    assert out.tokens.shape == (2, 32, 32, fine.dim)
    for patch in range(2):
        means = []
        for row in range(2):
            for col in range(2):
                y, x = row * side, col * side
                quarter = whole.encode(images[patch : patch + 1, y : y + side, x : x + side])
                cells = np.s_[patch, row * 16 : row * 16 + 16, col * 16 : col * 16 + 16]
                np.testing.assert_allclose(out.tokens[cells], quarter.tokens[0], atol=2e-3)
                means.append(quarter.cls[0].astype(np.float64))
        np.testing.assert_allclose(out.cls[patch], np.mean(means, axis=0), atol=2e-3)
    with pytest.raises(ValueError, match=rf"expected images uint8 \(B, {2 * side}, {2 * side}, 3"):
        fine.encode(images[:, :side])


def test_stain_tokens_of_8_um_turn_exactly_with_the_image() -> None:
    fine = encoders("stain", 8)
    image = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), np.uint8)
    before = fine.encode(image).tokens[0]
    turned = fine.encode(np.rot90(image[:, :, ::-1], 1, axes=(1, 2))).tokens[0]
    order = dihedral_channels(fine.layout, fine.dim, 1, flip=True)
    expected = np.rot90(np.fliplr(before), 1)[..., order]
    np.testing.assert_allclose(turned, expected, atol=2e-3)


# --- where tokens lie ---------------------------------------------------------------------------

MARKED = [(20, 90), (101, 37), (64, 63)]  # (row, col) of bins


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A turned, mirrored slide: its counts, its empty image, and one with each square alone."""
    folder = tmp_path_factory.mktemp("marked")
    slide = TinySlide(rows=140, cols=150, kind="turn 1 mirror perspective", n_genes=6)
    made: dict[str, Any] = {"outs": slide.write(folder / "outs")}
    for at in (None, *MARKED):
        drawn = draw_markers(slide.homography, slide.image_size, [at] if at else [], side=3.0)
        name = "empty" if at is None else f"{at[0]}-{at[1]}"
        # Light where the slide is dark: a bright square on tissue.
        made[name] = write_image(folder / f"{name}.tif", 255 - drawn, "tiles")
    return made


@pytest.mark.parametrize("token_um", [16, 8])
@pytest.mark.parametrize("name", ["stain", "vit"])
def test_a_bright_square_lights_the_token_of_its_bin(
    marked: dict[str, Any], tmp_path: Path, name: str, token_um: int
) -> None:
    config = ExtractConfig(encoder="stain", token_um=token_um, min_tissue=0.1)
    encoder = encoders(name, token_um)

    def tokens(image: str) -> np.ndarray:
        store = tmp_path / f"{image}.vst"
        made = extract_slide(marked["outs"], marked[image], store, "A", config, encoder=encoder)
        assert made.manifest["token_um"] == token_um
        patch = made[0]
        assert (patch.row0, patch.col0) == (0, 0)
        return patch.tokens.astype(np.float32)

    dark = tokens("empty")
    bins = token_um // 2
    for row, col in MARKED:
        change = np.abs(tokens(f"{row}-{col}") - dark)
        if name == "stain":  # its windows look beyond the token; its own maps do not
            change = change[..., : 3 * 64 + 8 * 16]
        change = change.sum(axis=-1)
        at = np.unravel_index(change.argmax(), change.shape)
        assert at == (row // bins, col // bins)


# --- who takes them -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fine_stores(
    simulated: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], Path]:
    """Two patients' stores with tokens of 8 µm, and a panel of five genes."""
    folder = tmp_path_factory.mktemp("fine")
    config = ExtractConfig(encoder="stain", token_um=8)
    made = []
    for patient in ("P1", "P5"):
        slide, store = simulated / patient, folder / f"{patient}.vst"
        extract_slide(slide / "outs", slide / "tissue_image.tif", store, patient, config)
        made.append(store)
    panel = folder / "panel.txt"
    panel.write_text("\n".join(open_store(made[0]).genes.ids[:5]))
    return made, panel


def test_the_manifest_says_the_grid(fine_stores: tuple[list[Path], Path]) -> None:
    store: Store = open_store(fine_stores[0][0])
    assert store.token_shape == (32, 32, 356)
    assert store.manifest["token_um"] == 8
    assert store.manifest["job"]["options"]["token_um"] == 8
    assert store[0].tokens.shape == (32, 32, 356)


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_train_and_predict_on_tokens_of_8_um(
    vst: Callable[..., Any], fine_stores: tuple[list[Path], Path], tmp_path: Path, decoder: str
) -> None:
    stores, panel = fine_stores
    answer = vst(
        "train", *stores, "--run", tmp_path / "run", "--test-patient", "P5", "--panel", panel,
        "--decoder", decoder, "--epochs", 1, "--batch-size", 4, "--accumulate", 1,
        "--device", "cpu",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    run = virchow_st.load_run(tmp_path / "run", "cpu")
    rates = run.predict(open_store(stores[1])[0])
    assert rates.shape == (5, 128, 128)
    assert np.isfinite(rates).all()
    assert (rates > 0).all()


def test_predict_follows_the_grid_of_the_run(
    vst: Callable[..., Any],
    simulated: Path,
    stores: dict[str, Path],
    fine_stores: tuple[list[Path], Path],
    tmp_path: Path,
) -> None:
    fine, panel = fine_stores
    for name, given in (("fine", fine), ("coarse", [stores["P1"], stores["P5"]])):
        answer = vst(
            "train", *given, "--run", tmp_path / name, "--test-patient", "P5", "--panel", panel,
            "--decoder", "linear", "--epochs", 1, "--batch-size", 4, "--accumulate", 1,
            "--device", "cpu",
        )  # fmt: skip
        assert answer.code == 0, answer.err
    image = simulated / "P5" / "tissue_image.tif"
    out = tmp_path / "rates.npz"
    answer = vst(
        "predict", tmp_path / "fine", image, "--out", out, "--mpp", "0.55", "--format", "npz",
        "--overlap-um", 0, "--device", "cpu",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert out.stat().st_size > 0
    answer = vst(
        "predict", tmp_path / "fine", image, "--out", tmp_path / "b.npz", "--mpp", "0.55",
        "--format", "npz", "--also", tmp_path / "coarse", "--device", "cpu",
    )  # fmt: skip
    assert answer.code == 2
    assert "expected a run on tokens" in answer.err


def test_stores_of_other_grids_do_not_train_together(
    vst: Callable[..., Any], stores: dict[str, Path], fine_stores: Any, tmp_path: Path
) -> None:
    answer = vst(
        "train", stores["P1"], fine_stores[0][1], "--run", tmp_path / "run", "--test-patient", "P5",
    )  # fmt: skip
    assert answer.code == 2
    assert "expected tokens of" in answer.err


def test_a_begun_store_keeps_its_grid(
    vst: Callable[..., Any], simulated: Path, stores: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(stores["P1"], tmp_path / "P1.vst")
    slide = simulated / "P1"
    answer = vst(
        "extract", slide / "outs", "--image", slide / "tissue_image.tif", "--patient", "P1",
        "--store", tmp_path / "P1.vst", "--encoder", "stain", "--device", "cpu", "--token-um", 8,
    )  # fmt: skip
    assert answer.code == 2
    assert "other inputs or options (options.token_um: 16 then, 8 now)" in answer.err
    kept = json.loads((tmp_path / "P1.vst" / "store.json").read_text())
    assert kept["grid"] == 16
