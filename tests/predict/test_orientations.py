"""Predictions as the mean over the eight orientations of a patch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from old_run import without_hashes
from torch import Tensor

import virchow_st
from virchow_st.errors import ConfigError
from virchow_st.kernels.orientation import N_ORIENTATIONS, quarter_turns, turn
from virchow_st.models.encoders.base import dihedral_channels
from virchow_st.predict.load import load_run
from virchow_st.predict.orientations import Orientations, turned, turned_back

LAYOUT, DIM = [[1, 2]], 6  # channels 1 to 4 are 2 × 2 cells of their token
EVERY = range(N_ORIENTATIONS)


@pytest.fixture(scope="module")
def patch() -> tuple[Tensor, Tensor]:
    """Tokens (2, 4, 4, 6) and images (2, 8, 8, 3) of two patches."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return torch.from_numpy(rng.normal(size=(2, 4, 4, DIM))), torch.from_numpy(image)


def looks_one_way(tokens: Tensor, image: Tensor | None) -> Tensor:
    """A decoder of one map that depends on which way the patch lies."""
    assert image is not None
    cells = tokens[..., 1:5].reshape(2, 4, 4, 2, 2).permute(0, 1, 3, 2, 4).reshape(2, 8, 8)
    slope = torch.linspace(0, 1, 8, dtype=torch.float64)
    return (cells * slope + image.double().mean(-1).roll(1, dims=1))[:, None]


def test_tensors_turn_as_arrays_do() -> None:
    x = np.arange(2 * 3 * 3 * 2).reshape(2, 3, 3, 2)
    for o in EVERY:
        found = turned(torch.from_numpy(x), o, (1, 2))
        np.testing.assert_array_equal(found.numpy(), turn(x, o, axes=(1, 2)))
        np.testing.assert_array_equal(turned_back(found, o, (1, 2)).numpy(), x)


def test_it_is_the_mean_of_the_decoder_turned_by_hand(patch: tuple[Tensor, Tensor]) -> None:
    tokens, image = patch
    arrays = tokens.numpy(), image.numpy()
    expected = np.zeros((2, 1, 8, 8))
    for o in EVERY:
        k, is_flipped = quarter_turns(o)
        t, i = (np.rot90(np.flip(x, 2) if is_flipped else x, k, (1, 2)) for x in arrays)
        order = dihedral_channels(LAYOUT, DIM, k, is_flipped)
        out = looks_one_way(torch.from_numpy(t[..., order].copy()), torch.from_numpy(i.copy()))
        back = np.rot90(out.numpy(), -k, (2, 3))
        expected += (np.flip(back, 3) if is_flipped else back) / 8
    found = Orientations(LAYOUT, DIM).mean(looks_one_way, tokens, image)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_it_does_not_depend_on_how_the_section_lay(patch: tuple[Tensor, Tensor]) -> None:
    tokens, image = patch
    every, one = Orientations(LAYOUT, DIM), Orientations(LAYOUT, DIM, 1)
    expected = every.mean(looks_one_way, tokens, image)
    for o in EVERY:
        order = dihedral_channels(LAYOUT, DIM, *quarter_turns(o))
        lying = turned(tokens, o, (1, 2))[..., torch.from_numpy(order)], turned(image, o, (1, 2))
        found = turned_back(every.mean(looks_one_way, *lying), o, (2, 3))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        if o:
            alone = turned_back(one.mean(looks_one_way, *lying), o, (2, 3))
            assert (alone - looks_one_way(tokens, image)).abs().max() > 0.1


def test_one_orientation_is_the_decoder_itself(patch: tuple[Tensor, Tensor]) -> None:
    tokens, image = patch
    found = Orientations(LAYOUT, DIM, 1).mean(looks_one_way, tokens, image)
    assert torch.equal(found, looks_one_way(tokens, image))


def test_a_run_predicts_the_mean(stain_run: Path, stores: dict[str, Path]) -> None:
    store = virchow_st.open_store(stores["P5"])
    run, alone = load_run(stain_run, "cpu"), load_run(stain_run, "cpu", orientations=1)
    assert run.decoder.margin_um == 0, "others are decoded in shifted windows"
    layout, dim = store.manifest["token_layout"], store.manifest["dim"]
    tokens, image = store[1].tokens[None], store[1].image[None]
    expected = np.zeros((run.n_genes, 128, 128))
    for o in EVERY:
        order = dihedral_channels(layout, dim, *quarter_turns(o))
        t = turn(tokens, o, axes=(1, 2))[..., order]
        rates = alone.rates(t.copy(), turn(image, o, axes=(1, 2)).copy())[0]
        k, is_flipped = quarter_turns(o)
        back = np.rot90(rates, -k, (1, 2))
        expected += (back[..., ::-1] if is_flipped else back) / 8
    np.testing.assert_allclose(run.predict(store[1]), expected, rtol=1e-4)
    assert np.abs(alone.predict(store[1]) - expected).max() > 1e-3 * expected.max()


def test_a_run_of_an_older_version_predicts_as_it_did(
    stain_run: Path, stores: dict[str, Path], tmp_path: Path
) -> None:
    old = Path(shutil.copytree(stain_run, tmp_path / "old"))
    path = without_hashes(old) / "checkpoints" / "best" / "state.json"
    state = json.loads(path.read_text("utf-8"))
    layout = state.pop("token_layout")
    path.write_text(json.dumps(state), "utf-8")
    patch = virchow_st.open_store(stores["P5"])[0]
    found = load_run(old, "cpu").predict(patch)
    np.testing.assert_array_equal(found, load_run(stain_run, "cpu", orientations=1).predict(patch))

    path.write_text(json.dumps({**state, "token_layout": [*layout, [state["dim"], 2]]}), "utf-8")
    with pytest.raises(ConfigError, match=r"state\.json: token_layout: expected blocks within"):
        load_run(old, "cpu")
