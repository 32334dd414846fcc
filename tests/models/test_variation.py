"""Random variation in training: stains, token channels, and tokens that are left out."""

import pytest
import torch
from decoder_inputs import DIM, make, some_image, some_tokens

from virchow_st.models.decoders import stem
from virchow_st.models.decoders.parts import TokenNorm
from virchow_st.models.decoders.variation import variations

pytestmark = pytest.mark.usefixtures("one_thread")


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
