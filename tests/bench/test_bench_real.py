"""benchmarks/bench_real.py on drawn tiles: folds, exposure, ceilings, masks, and that it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import poisson

from virchow_st.errors import ConfigError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PLACES = [(0, 0), (0, 1), (1, 1), (5, 0), (5, 1), (0, 9), (9, 9), (12, 4)]
# Gene of each map and its tile: A everywhere, B in some tiles, C once, D with 0 and 1 only.
MAPS = [("A", t) for t in range(8)] + [("B", 0), ("B", 3), ("B", 6), ("C", 1), ("D", 2), ("D", 5)]
STRIPES = np.outer([0.7, 1.3], [0.8, 1.2])  # efficiency of even and odd rows, of columns


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_real
    import real_tiles
    import real_training

    return {"bench": bench_real, "tiles": real_tiles, "training": real_training}


def drawn(path: Path, **changes: Any) -> Path:
    """Tiles whose dark pixels hold four times the UMIs of the others."""
    rng = np.random.default_rng(0)
    dark = rng.random((len(PLACES), 8, 8)) < 0.4
    dark = dark.repeat(16, 1).repeat(16, 2)
    he = np.where(dark[..., None], (110, 70, 140), (230, 190, 215)).astype(np.uint8)
    rate = np.where(dark, 0.8, 0.2) * np.tile(STRIPES, (64, 64))
    counts = np.stack([rng.poisson(rate[t]) for _, t in MAPS])
    clip = np.array([1 if g == "D" else 3 if t == 4 else 5 for g, t in MAPS])
    counts = np.minimum(counts, clip[:, None, None]).astype(np.int16)
    counts[0, :, :20] = -1
    arrays = {
        "he": he,
        "tile_row": np.array([r for r, _ in PLACES]),
        "tile_col": np.array([c for _, c in PLACES]),
        "gene": np.array([g for g, _ in MAPS]),
        "tile": np.array([t for _, t in MAPS]),
        "counts": counts,
        "clip": clip,
    }
    arrays.update(changes)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_maps_are_clipped_alike_and_what_cannot_be_scored_is_left_out(real, tmp_path) -> None:
    tiles = real["tiles"].read_tiles([drawn(tmp_path / "t.npz")])
    assert tiles.genes == ("A", "B")  # C has one map, D is 0 or 1
    assert tiles.clip.tolist() == [3, 5]
    assert tiles.counts[tiles.gene == 0].max() == 3
    assert not tiles.mask[0, :, :20].any()
    assert tiles.counts.min() == 0
    assert tiles.images.shape == (8, 256, 256, 3)


def test_exposure_is_that_of_the_stripes(real, tmp_path) -> None:
    tiles = real["tiles"].read_tiles([drawn(tmp_path / "t.npz")])
    found = tiles.exposure.reshape(8, 64, 2, 64, 2).mean((0, 1, 3))
    np.testing.assert_allclose(found, STRIPES, atol=0.04)
    # Clipping hides a little of the bright lines; no line is taken for another.
    assert np.abs(tiles.exposure.mean((1, 2)) - 1).max() < 0.02


def test_touching_tiles_are_in_one_fold(real, tmp_path) -> None:
    tiles = real["tiles"].read_tiles([drawn(tmp_path / "t.npz")])
    folds = real["tiles"].folds(tiles)
    assert len(folds) == 4
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(tiles.gene)))
    for train, test in folds:
        a, b = (tiles.place[tiles.tile[maps]] for maps in (train, test))
        assert np.abs(a[:, None] - b[None]).max(-1).min() > 1
        assert set(train) | set(test) == set(range(len(tiles.gene)))
    two = real["tiles"].read_tiles([tmp_path / "t.npz", drawn(tmp_path / "u.npz")])
    [(train, test)] = real["tiles"].folds(two)
    assert set(two.source[two.tile[train]]) == {0}
    assert set(two.source[two.tile[test]]) == {1}


def test_the_ceiling_is_what_the_true_rates_reach(real) -> None:
    """Gamma rates, stripes and clipping: the truth itself is scored, over 8 maps."""

    def clipped_mean(mean: np.ndarray) -> np.ndarray:
        """Expected value of a Poisson count that is cut at 3."""
        return sum(1 - poisson.cdf(j, mean) for j in range(3))

    rng = np.random.default_rng(3)
    exposure = np.tile(STRIPES, (64, 64))
    inside = np.ones((128, 128), bool)
    truth, found, naive = [], [], []
    for _ in range(8):
        rate = rng.gamma(0.5, 0.8, (64, 64)).repeat(2, 0).repeat(2, 1)
        k = np.minimum(rng.poisson(rate * exposure), 3).astype(np.float32)
        # A prediction knows no stripes: the expected count over the four kinds of bins.
        unstriped = np.mean([clipped_mean(rate * e) for e in STRIPES.ravel()], axis=0)
        truth.append(
            [
                real["tiles"].pcc(unstriped, k, inside, 1),
                real["tiles"].pcc(clipped_mean(rate * exposure), k, inside, 2),
            ]
        )
        found.append(real["tiles"].ceilings(k, inside, exposure, 3, (1, 2)))
        naive.append(np.sqrt(1 - k.mean() / k.var()))
    np.testing.assert_allclose(np.mean(found, 0), np.mean(truth, 0), atol=0.015)
    assert np.mean(truth, 0)[0] - np.mean(naive) > 0.04  # what the correction is for


@pytest.mark.parametrize("loss", ["poisson", "mse"])
def test_a_gene_that_a_tile_lacks_is_not_in_the_loss(real, tmp_path, loss) -> None:
    import torch

    from virchow_st.models.losses import build_objective

    tiles = real["tiles"].read_tiles([drawn(tmp_path / "t.npz")])
    objectives = [
        build_objective(loss, torch.tensor([0.4]), torch.ones(4, 1), (2, 4, 8, 16))
        for _ in tiles.genes
    ]

    class Plain(torch.nn.Module):
        wants_image = False

        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(2))

        def forward(self, tokens: Any, image: Any) -> Any:
            return self.bias[None, :, None, None].expand(len(tokens), 2, 128, 128)

    decoder = Plain()
    tokens = real["training"].TileTokens(np.zeros((8, 16, 16, 3), np.float32), ())
    maps = np.arange(len(tiles.gene))
    for tile, has_b in ((1, False), (3, True)):
        decoder.bias.grad = None
        losses = real["training"]._losses(
            tiles, tokens, maps, decoder, objectives, np.array([tile]), np.random.default_rng(0)
        )
        losses.sum().backward()
        assert decoder.bias.grad is not None
        assert (decoder.bias.grad != 0).tolist() == [True, has_b]
    # An exposure multiplies the rate, whatever the output means.
    output, exposure = torch.full((1, 1, 2, 2), 0.3), torch.tensor([[0.5, 1.0], [2.0, 1.0]])
    exposed = objectives[0].rate(real["training"].exposed(objectives[0], output, exposure))
    torch.testing.assert_close(exposed, objectives[0].rate(output) * exposure)


@pytest.mark.slow
def test_it_runs_and_finds_what_the_image_tells(real, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "real.json"
    monkeypatch.setattr(
        sys, "argv",
        ["bench_real.py", str(drawn(tmp_path / "t.npz")), "--ways", "ridge:stain", "pixels",
         "--seeds", "0", "1", "--passes", "1", "--json", str(out),
         "--picture", str(tmp_path / "tile.png")],
    )  # fmt: skip
    monkeypatch.setattr(real["bench"].torch, "set_num_threads", lambda n: None)
    real["bench"].main()
    assert (tmp_path / "tile.png").stat().st_size > 10_000
    scores = json.loads(out.with_suffix(".scores.json").read_text("utf-8"))
    ridge = np.array(scores["ways"]["ridge:stain"]["0"], float)
    assert ridge.shape == (11, 4)
    assert np.nanmin(ridge[:, 3]) > 0.5  # the pattern has squares of 32 µm
    assert np.isfinite(np.array(scores["ways"]["pixels"]["0"], float)).all()
    assert list(scores["ensembles"]) == ["pixels"]
    of_seeds = np.array([scores["ways"]["pixels"][seed] for seed in "01"], float)
    assert np.nanmean(scores["ensembles"]["pixels"]) > np.nanmean(of_seeds)  # errors are averaged
    ceiling = np.array(scores["ceiling"])
    assert (ridge.mean(0) < ceiling.mean(0) + 0.01).all()
    table, partial, _ = json.loads(out.read_text("utf-8"))["tables"]
    assert [row[0] for row in partial["rows"]] == ["ridge:stain", "pixels"]
    assert [row[0] for row in table["rows"]][:3] == [
        "ceiling", "shuffled bins", "another tile's prediction",
    ]  # fmt: skip
    assert "11 maps of 2 genes in 8 tiles" in capsys.readouterr().out


def test_what_is_beyond_a_baseline_is_the_correlation_of_residuals(real) -> None:
    import real_baselines

    rng = np.random.default_rng(5)
    density, own = rng.random((2, 128, 128))
    counts = rng.poisson(1 + density + own)
    mask = np.ones((128, 128), bool)

    def residual(x: np.ndarray) -> np.ndarray:
        design = np.stack([np.ones(x.size), density.ravel()], 1)
        return x.ravel() - design @ np.linalg.lstsq(design, x.ravel(), rcond=None)[0]

    mixed = density + own
    expected = np.corrcoef(residual(mixed), residual(counts))[0, 1]
    found = real_baselines.beyond(mixed, density, counts, mask, 1)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0.1 < found < real_baselines.pcc(mixed, counts, mask, 1)
    assert np.isnan(real_baselines.beyond(2 * density, density, counts, mask, 1))


def test_a_file_that_is_none_is_refused_in_a_line(real, tmp_path) -> None:
    read = real["tiles"].read_tiles
    (tmp_path / "x.npz").write_text("x", "utf-8")
    for path, message in (
        (tmp_path / "none.npz", "there is no such file"),
        (tmp_path / "x.npz", "cannot be read as npz"),
        (drawn(tmp_path / "a.npz", clip=None), "lacks clip"),
        (drawn(tmp_path / "b.npz", tile=np.zeros(3, int)), r"tile: expected shape \(14,\)"),
        (drawn(tmp_path / "c.npz", tile=np.full(14, 8)), "expected indices below 8"),
        (drawn(tmp_path / "d.npz", clip=np.ones(14, int)), "expected a gene with two maps"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            read([path])
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
