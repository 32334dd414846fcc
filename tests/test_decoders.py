import numpy as np
import pytest
import torch

from virchow_st.decoders import build_decoder, decode
from virchow_st.decoders.hist2st import grid_neighbours

DIM, GENES = 24, 5
BIAS = torch.tensor([-4.0, -2.0, 0.0, 1.0, 3.0])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for a busy core slow down work as small as this many times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name, grid=16):
    torch.manual_seed(0)
    decoder = build_decoder(name, grid, torch.full((DIM,), 2.0), torch.full((DIM,), 3.0), BIAS)
    return decoder.eval()


def some_tokens(batch=2, grid=16, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).normal(2, 3, (batch, grid, grid, DIM)).astype(np.float32)
    )


decoders = pytest.mark.parametrize("name", ["hist2st", "linear"])


@decoders
@pytest.mark.parametrize("grid", [16, 32])
def test_shape_and_first_output(name, grid):
    decoder = make(name, grid)
    with torch.no_grad():
        output = decoder(some_tokens(grid=grid), None)
    assert output.shape == (2, GENES, 128, 128)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.mean((0, 2, 3)), BIAS, atol=0.1, rtol=0)
    assert output.std((2, 3)).min() > 0  # and yet the tokens are heard
    assert not decoder.wants_image
    assert decoder.head.bias.tolist() == BIAS.tolist()


@decoders
def test_gradient_reaches_every_parameter(name):
    decoder = make(name).train()
    (decoder(some_tokens(), None) ** 2).mean().backward()
    for parameter_name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@decoders
def test_patches_of_a_batch_do_not_mix(name):
    decoder, tokens = make(name), some_tokens(3)
    with torch.no_grad():
        together = decoder(tokens, None)
        alone = torch.cat([decoder(t[None], None) for t in tokens])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@decoders
def test_tokens_are_standardised_and_outliers_cut(name):
    decoder, tokens = make(name), some_tokens(1)
    with torch.no_grad():
        far = tokens.clone()
        far[0, 3, 4] = 2 + 3 * 8  # eight standard deviations above the mean
        further = far.clone()
        further[0, 3, 4] = 1e4
        assert torch.equal(decoder(far, None), decoder(further, None))
        assert not torch.equal(decoder(tokens, None), decoder(far, None))


@decoders
def test_constant_channel_does_no_harm(name):
    tokens = some_tokens(1)
    decoder = build_decoder(name, 16, tokens.mean((0, 1, 2)), torch.zeros(DIM), BIAS).eval()
    with torch.no_grad():
        assert torch.isfinite(decoder(tokens, None)).all()


def changed_bins(decoder, row, col):
    tokens = some_tokens(1)
    other = tokens.clone()
    other[0, row, col] += 3
    with torch.no_grad():
        return (decoder(tokens, None) != decoder(other, None))[0].any(0)


def test_linear_token_reaches_its_own_bins_alone():
    for row, col in [(0, 0), (2, 13), (15, 7)]:
        changed = changed_bins(make("linear"), row, col)
        inside = changed[8 * row : 8 * row + 8, 8 * col : 8 * col + 8]
        assert inside.all()
        assert changed.sum() == 64


def test_linear_is_linear():
    decoder, (a, b) = make("linear"), some_tokens(2)[:, None].clamp(-4, 8)
    with torch.no_grad():
        middle = decoder((a + b) / 2, None)
        torch.testing.assert_close(
            middle, (decoder(a, None) + decoder(b, None)) / 2, atol=1e-4, rtol=1e-4
        )


def test_hist2st_token_reaches_far_and_its_own_place_most():
    decoder, tokens = make("hist2st"), some_tokens(1)
    other = tokens.clone()
    other[0, 3, 12] += 6
    with torch.no_grad():
        change = (decoder(other, None) - decoder(tokens, None))[0].abs().mean(0)
    assert (change > 0).float().mean() > 0.9  # attention sees the whole patch
    per_token = change.unflatten(1, (16, 8)).unflatten(0, (16, 8)).mean((1, 3))
    assert divmod(int(per_token.argmax()), 16) == (3, 12)


def test_neighbours_equal_brute_force():
    for side in (1, 2, 5, 16):
        expected = {
            (a, b)
            for a in range(side * side)
            for b in range(side * side)
            if a != b and abs(a // side - b // side) <= 1 and abs(a % side - b % side) <= 1
        }
        edges = [tuple(edge) for edge in grid_neighbours(side).T.tolist()]
        assert len(edges) == len(set(edges))
        assert set(edges) == expected


@pytest.mark.parametrize(("name", "low", "high"), [("hist2st", 1e6, 2e7), ("linear", 1e5, 4e6)])
def test_number_of_parameters_at_virchow2_size(name, low, high):
    """Small beside the encoder's 632 million; a slip in a width shows."""
    bias = torch.zeros(50)
    decoder = build_decoder(name, 16, torch.zeros(1280), torch.ones(1280), bias)
    n = sum(p.numel() for p in decoder.parameters())
    assert low < n < high, f"{name}: {n:,} parameters"


def test_decode_takes_numpy_arrays():
    decoder = make("linear")
    tokens = some_tokens(2).numpy().astype(np.float16)
    with torch.no_grad():
        output = decode(decoder, tokens, None, torch.device("cpu"))
        expected = decoder(torch.from_numpy(tokens).float(), None)
    torch.testing.assert_close(output, expected)

    class Seen:
        def __call__(self, tokens, image):
            return image

    image = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    given = decode(Seen(), tokens, image, torch.device("cpu"))
    assert given.shape == (2, 3, 256, 256)
    np.testing.assert_allclose(given[1, 2].numpy(), image[1, :, :, 2] / 255, rtol=1e-6)


def test_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="expected hist2st or linear, got 'unet'"):
        make("unet")
