"""Every decoder: shapes, gradients, how far an input reaches, and what is refused."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from decoder_inputs import (
    BIAS,
    DIM,
    GENES,
    WITH_IMAGE,
    WITH_TOKENS,
    decoders,
    decoders_of_images,
    decoders_of_tokens,
    make,
    some_image,
    some_tokens,
)

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.models.decoders import DECODERS, build_decoder, decode
from virchow_st.models.decoders.hist2st import grid_neighbours

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_decoder_is_tried_here_and_named_in_the_help():
    assert set(DECODERS) == {*WITH_TOKENS, *WITH_IMAGE, "hist2st-large"}
    help = next(f for f in fields(TrainConfig) if f.name == "decoder").metadata["help"]
    assert ", ".join(DECODERS) in help


@decoders
@pytest.mark.parametrize("grid", [16, 32])
def test_shape_and_first_output(name, grid):
    decoder = make(name, grid)
    with torch.no_grad():
        output = decoder(some_tokens(grid=grid), some_image(name))
    assert output.shape == (2, GENES, 128, 128)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.mean((0, 2, 3)), BIAS, atol=0.1, rtol=0)
    assert output.std((2, 3)).min() > 0  # and yet the tokens are heard
    assert decoder.wants_image == (name in WITH_IMAGE)
    assert decoder.head.bias.tolist() == BIAS.tolist()


@decoders
def test_gradient_reaches_every_parameter(name):
    decoder = make(name).train()
    (decoder(some_tokens(), some_image(name)) ** 2).mean().backward()
    for parameter_name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@decoders
def test_patches_of_a_batch_do_not_mix(name):
    decoder, tokens, image = make(name), some_tokens(3), some_image(name, 3)
    with torch.no_grad():
        together = decoder(tokens, image)
        for i in range(3):
            alone = decoder(tokens[i : i + 1], None if image is None else image[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)


@decoders_of_tokens
def test_tokens_are_standardised_and_outliers_cut(name):
    decoder, tokens, image = make(name), some_tokens(1), some_image(name, 1)
    with torch.no_grad():
        far = tokens.clone()
        far[0, 3, 4] = 2 + 3 * 8  # eight standard deviations above the mean
        further = far.clone()
        further[0, 3, 4] = 1e4
        assert torch.equal(decoder(far, image), decoder(further, image))
        assert not torch.equal(decoder(tokens, image), decoder(far, image))


@decoders_of_tokens
def test_constant_channel_does_no_harm(name):
    tokens = some_tokens(1)
    decoder = build_decoder(name, 16, tokens.mean((0, 1, 2)), torch.zeros(DIM), BIAS).eval()
    with torch.no_grad():
        assert torch.isfinite(decoder(tokens, some_image(name, 1))).all()


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


@pytest.mark.parametrize("grid", [16, 32])
@pytest.mark.parametrize(
    ("name", "spread"), [("hist2st", 0), ("img2st", 0), ("guided", 4), ("fusion", 4)]
)
def test_token_reaches_far_and_its_own_place_most(name, spread, grid):
    """Within the ``spread`` tokens over which the first convolutions blur it."""
    decoder, tokens, image = make(name, grid), some_tokens(1, grid), some_image(name, 1)
    other = tokens.clone()
    other[0, 3, 12] += 6
    with torch.no_grad():
        change = (decoder(other, image) - decoder(tokens, image))[0].abs().mean(0)
    assert (change > 0).float().mean() > 0.9  # attention, or what a patch is normalised by
    side = 128 // grid
    per_token = change.unflatten(1, (grid, side)).unflatten(0, (grid, side)).mean((1, 3))
    row, col = divmod(int(per_token.argmax()), grid)
    assert max(abs(row - 3), abs(col - 12)) <= spread
    assert per_token[grid // 2 + 1 :].max() < 0.5 * per_token[3, 12]


@decoders_of_images
@pytest.mark.parametrize(("row", "col"), [(0, 0), (17, 101), (127, 5)])
def test_pixel_reaches_its_own_bin_most(name, row, col):
    decoder, tokens, image = make(name), some_tokens(1), some_image(name, 1)
    other = image.clone()
    other[0, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2] = 0.05
    with torch.no_grad():
        change = (decoder(tokens, other) - decoder(tokens, image))[0].abs().mean(0)
    found = divmod(int(change.argmax()), 128)
    assert max(abs(found[0] - row), abs(found[1] - col)) <= 2


def test_pixels_does_not_look_at_tokens():
    decoder, image = make("pixels"), some_image("pixels")
    with torch.no_grad():
        assert torch.equal(decoder(some_tokens(), image), decoder(some_tokens(seed=1), image))


@decoders_of_images
def test_missing_image_is_refused(name):
    with pytest.raises(ValueError, match=r"image: expected \(B, 3, 256, 256\).*got None"):
        make(name)(some_tokens(), None)


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


# docs/decoders.md tells these.
@pytest.mark.parametrize(
    ("name", "stain", "virchow2"),
    [
        ("fusion", 0.8, 0.9),
        ("hist2st", 2.4, 3.1),
        ("hist2st-large", 43.7, 45.0),
        ("img2st", 19.2, 19.9),
        ("guided", 0.9, 1.0),
        ("pixels", 0.7, 0.7),
        ("linear", 0.4, 1.3),
    ],
)
def test_number_of_parameters(name, stain, virchow2):
    """In millions, with the stain encoder's 356 channels and Virchow2's 1280."""
    for dim, expected in ((356, stain), (1280, virchow2)):
        decoder = build_decoder(name, 16, torch.zeros(dim), torch.ones(dim), torch.zeros(50))
        n = sum(p.numel() for p in decoder.parameters())
        assert n / 1e6 == pytest.approx(expected, abs=0.05), f"{name}: {n:,} parameters"


@pytest.mark.parametrize("grid", [16, 32])
@decoders_of_tokens
def test_any_number_of_channels(name, grid):
    for dim in (1, 357):
        decoder = build_decoder(name, grid, torch.zeros(dim), torch.ones(dim), BIAS).eval()
        with torch.no_grad():
            output = decoder(some_tokens(1, grid, dim=dim), some_image(name, 1))
        assert output.shape == (1, GENES, 128, 128)


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
    with pytest.raises(ConfigError, match=r"expected one of fusion, .*; got 'unet'"):
        make("unet")


def test_others_do_not_begin_as_a_regression():
    for name in (*WITH_TOKENS, "pixels"):
        if not (decoder := make(name)).begins_as_regression:
            with pytest.raises(NotImplementedError, match="does not begin"):
                decoder.begin(torch.zeros(DIM, GENES), torch.zeros(GENES))
