from dataclasses import fields

import numpy as np
import pytest
import torch

from virchow_st.config import TrainConfig
from virchow_st.models.decoders import build_decoder, decode, stem
from virchow_st.models.decoders.hist2st import grid_neighbours
from virchow_st.models.decoders.parts import TokenNorm
from virchow_st.models.decoders.variation import variations

DIM, GENES = 24, 5
BIAS = torch.tensor([-4.0, -2.0, 0.0, 1.0, 3.0])
CHOICES = next(f for f in fields(TrainConfig) if f.name == "decoder").metadata["choices"]
WITH_TOKENS = ("fusion", "hist2st", "guided", "img2st", "linear")
WITH_IMAGE = ("fusion", "guided", "pixels")


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


def some_tokens(batch=2, grid=16, seed=0, dim=DIM):
    return torch.from_numpy(
        np.random.default_rng(seed).normal(2, 3, (batch, grid, grid, dim)).astype(np.float32)
    )


def some_image(name, batch=2, seed=0):
    """An image for a decoder that wants one: coarse structure and fine noise."""
    if name not in WITH_IMAGE:
        return None
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0.3, 0.9, (batch, 3, 32, 32)).repeat(8, 2).repeat(8, 3)
    fine = rng.normal(0, 0.05, (batch, 3, 256, 256))
    return torch.from_numpy(np.clip(coarse + fine, 0, 1).astype(np.float32))


# The large one differs from `hist2st` in two numbers, and takes long.
decoders = pytest.mark.parametrize("name", [*WITH_TOKENS, "pixels"])
decoders_of_tokens = pytest.mark.parametrize("name", WITH_TOKENS)
decoders_of_images = pytest.mark.parametrize("name", WITH_IMAGE)


def test_every_choice_is_tried_here():
    assert set(CHOICES) == {*WITH_TOKENS, *WITH_IMAGE, "hist2st-large"}


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


def test_optical_density_adds_where_stains_lie_on_each_other():
    density = stem.OpticalDensity().eval()
    levels = torch.linspace(0.2, 0.9, 8).view(1, 1, 1, 8).expand(1, 3, 1, 8)
    with torch.no_grad():
        once, twice = density(levels), density(levels**2)
        white = density(torch.ones(1, 3, 1, 1))
        black = density(torch.zeros(1, 3, 1, 1))
    torch.testing.assert_close(twice - white, 2 * (once - white), rtol=0.05, atol=0)
    assert torch.isfinite(black).all()
    assert (black > once.max()).all()


def test_random_stain_is_of_training_alone_and_repeats_with_the_seed():
    density, image = stem.OpticalDensity(), some_image("pixels")

    def draw(seed):
        torch.manual_seed(seed)
        return density(image)

    assert not torch.equal(density.train()(image), density(image))
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    trained = draw(1)
    density.eval()
    assert torch.equal(draw(1), draw(2))
    same = torch.corrcoef(torch.stack([trained.flatten(), draw(1).flatten()]))[0, 1]
    assert same > 0.9  # another laboratory, not another tissue


def test_random_strength_scales_a_stain_and_leaves_its_colour(monkeypatch):
    monkeypatch.setattr(stem, "_DIRECTION_SD", 0.0)
    monkeypatch.setattr(stem, "_GLASS_SD", 0.0)
    density = stem.OpticalDensity().train()
    for stain in density.stains_33[:2]:
        images = 10 ** (-0.5 * stain.view(1, 3, 1, 1)).expand(400, 3, 1, 1)
        amounts = density(images).flatten(1) * stem._SPREAD + stem._TYPICAL
        strengths = (amounts / stain)[:, stain > 0.1]
        assert (strengths.std(1) < 0.05 * strengths.mean(1)).all()
        assert strengths.mean(1).log().std() == pytest.approx(stem._STRENGTH_SD, rel=0.2)
    monkeypatch.setattr(stem, "_STRENGTH_SD", 0.0)
    image = some_image("pixels")
    torch.testing.assert_close(density.train()(image), density.eval()(image), atol=1e-4, rtol=1e-4)


def test_channels_of_a_patch_are_stretched_and_shifted_in_training_alone():
    norm, tokens = TokenNorm(torch.zeros(300), torch.ones(300)), torch.randn(2, 16, 16, 300)
    assert torch.equal(norm.eval()(tokens), tokens.clamp(-8, 8))
    norm.amount = 0.0
    assert torch.equal(norm.train()(tokens), tokens.clamp(-8, 8))
    norm.amount = 0.5
    tokens[:, 0, 0] = 0
    changed = norm(tokens)
    shift = changed[:, 0, 0]
    stretch = (changed - shift[:, None, None])[:, 1:] / tokens[:, 1:]
    assert stretch.std((1, 2)).max() < 0.01  # one for all tokens of a patch
    for drawn, mean in ((stretch[:, 0, 0], 1), (shift, 0)):
        assert drawn.mean() == pytest.approx(mean, abs=0.05)
        assert drawn.std() == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("name", ["fusion", "guided"])
def test_it_learns_without_tokens_too(name):
    decoder, image = make(name).train(), some_image(name, 1)
    for variation in variations(decoder):
        variation.amount = 0.0
    mean = torch.full((1, 16, 16, DIM), 2.0)
    with torch.no_grad():
        without = decoder(mean, image)
        alike = [torch.equal(decoder(some_tokens(1), image), without) for _ in range(60)]
        assert 15 < sum(alike) < 45
        decoder.eval()
        assert not any(torch.equal(decoder(some_tokens(1), image), without) for _ in range(9))


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
    with pytest.raises(ValueError, match="got 'unet'"):
        make("unet")


# --- where `fusion` begins ----------------------------------------------------------------------


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


def test_others_do_not_begin_as_a_regression():
    for name in (*WITH_TOKENS, "pixels"):
        if not (decoder := make(name)).begins_as_regression:
            with pytest.raises(NotImplementedError, match="does not begin"):
                decoder.begin(torch.zeros(DIM, GENES), torch.zeros(GENES))


# --- the margin of `fusion` ---------------------------------------------------------------------


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
