"""The `fusion` decoder: it begins as a regression on tokens, and uses the margin of a patch."""

import numpy as np
import pytest
import torch
from decoder_inputs import DIM, GENES, make, some_image, some_tokens

from virchow_st.models.decoders import build_decoder

pytestmark = pytest.mark.usefixtures("one_thread")


def begun(rank, seed=0):
    """A fusion decoder that begins as a random regression of the rank, and that regression."""
    rng = torch.Generator().manual_seed(seed)
    weights = torch.randn(DIM, rank, generator=rng) @ torch.randn(rank, GENES, generator=rng) / 9
    intercept = torch.randn(GENES, generator=rng)
    decoder = make("fusion")
    decoder.begin(weights, intercept)
    return decoder, weights, intercept


@pytest.mark.parametrize("grid", [16, 32])
def test_fusion_begins_as_the_regression(grid):
    """Where tokens do not change, at every bin; what learns later adds next to nothing."""
    torch.manual_seed(0)
    weights, intercept = torch.randn(DIM, GENES) / 4, torch.randn(GENES)
    decoder = make("fusion", grid)
    decoder.begin(weights, intercept)
    token = 2 + 3 * torch.randn(1, 1, 1, DIM)
    expected = ((token[0, 0] - 2) / 3) @ weights + intercept
    with torch.no_grad():
        output = decoder(token.expand(1, grid, grid, DIM).contiguous(), some_image("fusion", 1))
    assert expected.std() > 0.3
    difference = output - expected.view(1, GENES, 1, 1)
    assert difference.abs().max() < 0.1 * expected.std()


def test_the_regression_has_no_steps_between_tokens():
    decoder, *_ = begun(GENES)
    with torch.no_grad():
        rates = decoder._regression(decoder.normalise(some_tokens(1)))[0]
    jump = (rates[..., 1:] - rates[..., :-1]).square().mean((0, 1))
    assert jump[8::8].mean() < 1.2 * jump[12::8].mean()  # steps of bins would be zero inside


def test_of_a_regression_the_strongest_components_are_kept():
    torch.manual_seed(0)
    n_genes = 40
    U, V = torch.linalg.qr(torch.randn(DIM, 20))[0], torch.linalg.qr(torch.randn(n_genes, 20))[0]
    strength = torch.linspace(3, 0.1, 20)
    weights = (U * strength) @ V.T
    mean, std = torch.zeros(DIM), torch.ones(DIM)
    decoder = build_decoder("fusion", 16, mean, std, torch.zeros(n_genes))
    decoder.begin(weights, torch.zeros(n_genes))
    own = decoder.head.weight[:, -16:, 0, 0] * 5 @ decoder.regression_KD
    torch.testing.assert_close(own.T, (U[:, :16] * strength[:16]) @ V[:, :16].T)


def test_the_regression_is_let_go_over_the_first_quarter():
    decoder, *_ = begun(3)
    shares = []
    for done in (0.0, 0.125, 0.25, 1.0):
        decoder.advance(done)
        shares.append(float(decoder.regression_share))
    assert shares == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("grid", [16, 32])
def test_without_a_margin_the_edge_goes_on(grid):
    """Given alone and given with its own edge repeated, a patch is decoded to the same."""
    decoder, tokens, image = make("fusion", grid), some_tokens(1, grid), some_image("fusion", 1)
    n = grid // 16
    wide_tokens = np.pad(tokens.numpy(), [(0, 0), (n, n), (n, n), (0, 0)], mode="edge")
    wide_image = np.pad(image.numpy(), [(0, 0), (0, 0), (16, 16), (16, 16)], mode="edge")
    with torch.no_grad():
        alone = decoder(tokens, image)
        wide = decoder(torch.from_numpy(wide_tokens), torch.from_numpy(wide_image))
    assert torch.equal(alone, wide)


def test_what_lies_beside_a_patch_changes_its_edge_most():
    decoder = make("fusion")
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.normal(2, 3, (1, 18, 18, DIM)).astype(np.float32))
    image = torch.from_numpy(rng.random((1, 3, 288, 288)).astype(np.float32))
    other = image.clone()
    other[..., -16:] = 0.1  # on the right
    with torch.no_grad():
        change = (decoder(tokens, other) - decoder(tokens, image))[0].abs().mean((0, 1))
    assert change[-2:].mean() > 5 * change[:96].mean()
