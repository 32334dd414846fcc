"""Baselines are fitted on training patches only, and equal plain formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2hed
from tiny_store import make_record, make_records, write_records, write_store

from virchow_st.errors import ConfigError
from virchow_st.evaluation.baselines import ORACLES, Baselines, fit_baselines
from virchow_st.evaluation.baselines.fit import LEAST_RATE
from virchow_st.evaluation.baselines.nuclei import nuclear_features
from virchow_st.evaluation.baselines.regression import NormalEquations
from virchow_st.evaluation.baselines.ridge import PENALTIES, RidgeFit, solve_together
from virchow_st.run.panel import Panel
from virchow_st.run.score_table import BASELINES
from virchow_st.run.split import Member, Split
from virchow_st.store.reader import Store

G = 4
PANEL = Panel(tuple(f"ENSG{g:05d}" for g in (3, 0, 5, 1)), tuple(f"GENE{g}" for g in (3, 0, 5, 1)))
GENES = [3, 0, 5, 1]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """Two training slides and one test slide whose log-rates are linear in their tokens."""
    folder = tmp_path_factory.mktemp("baselines")
    return [
        write_store(folder / f"{name}.vst", name, 4, seed=seed)
        for seed, name in enumerate(("A", "B", "T"))
    ]


@pytest.fixture(scope="module")
def split() -> Split:
    train = [Member(store, patch) for store in (0, 1) for patch in range(3)]
    validation = [Member(store, 3) for store in (0, 1)]
    return Split(tuple(train), tuple(validation), tuple(Member(2, p) for p in range(4)), ("",) * 3)


def train_rate(stores: list[Store], split: Split) -> np.ndarray:
    patches = [stores[m.store][m.patch] for m in split.train]
    counts = sum(p.counts(GENES).toarray()[:, p.tissue_mask.ravel()].sum(1) for p in patches)
    return counts / sum(p.tissue_mask.sum() for p in patches)


@pytest.fixture(scope="module")
def fitted(stores: list[Store], split: Split) -> Baselines:
    return fit_baselines(stores, PANEL, split, train_rate(stores, split))


def observations(stores: list[Store], members) -> tuple[np.ndarray, np.ndarray]:
    """Tokens in tissue and mean UMIs of their tissue bins, with NumPy alone."""
    xs, ys = [], []
    for member in members:
        patch = stores[member.store][member.patch]
        mask = patch.tissue_mask
        counts = patch.counts(GENES).toarray().reshape(G, 128, 128) * mask
        n = mask.reshape(16, 8, 16, 8).sum((1, 3))
        sums = counts.reshape(G, 16, 8, 16, 8).sum((2, 4))
        xs.append(patch.tokens[n >= 32].astype(float))
        ys.append((sums[:, n >= 32] / n[n >= 32]).T)
    return np.concatenate(xs), np.concatenate(ys)


def ridge_by_the_book(x: np.ndarray, y: np.ndarray, penalty: float):
    """Centred, standardised, solved; returns a function of features."""
    mean, std = x.mean(0), x.std(0)
    z = (x - mean) / std
    w = np.linalg.solve(z.T @ z + penalty * len(z) * np.eye(z.shape[1]), z.T @ (y - y.mean(0)))
    return lambda new: (new - mean) / std @ w + y.mean(0)


def test_ridge_is_the_textbook_ridge_with_the_penalty_that_validates_best(
    stores: list[Store], split: Split, fitted: Baselines
) -> None:
    x, y = observations(stores, split.train)
    new_x, new_y = observations(stores, split.validation)
    errors = []
    for penalty in PENALTIES:
        residual = new_y - ridge_by_the_book(x, y, penalty)(new_x)
        errors.append(((residual**2).mean(0) / new_y.var(0)).mean())
    assert fitted.ridge_penalty == PENALTIES[int(np.argmin(errors))]
    want = ridge_by_the_book(x, y, fitted.ridge_penalty)(new_x)
    np.testing.assert_allclose(fitted.ridge(new_x), want, rtol=1e-8, atol=1e-10)

    patch = stores[2][0]
    rate = fitted.rate("ridge", patch, patch.dense_counts(GENES))
    tokens = patch.tokens.astype(float).reshape(256, -1)
    want = ridge_by_the_book(x, y, fitted.ridge_penalty)(tokens).T.reshape(G, 16, 16)
    least = LEAST_RATE * fitted.train_rate[:, None, None]
    np.testing.assert_allclose(
        rate, np.maximum(want, least).repeat(8, 1).repeat(8, 2), rtol=1e-4, atol=1e-6
    )
    assert rate.dtype == np.float32


def test_ridge_finds_what_the_tokens_tell(stores: list[Store], fitted: Baselines) -> None:
    for patch in stores[2]:
        counts = patch.dense_counts(GENES)
        predicted = fitted.rate("ridge", patch, counts).reshape(G, 16, 8, 16, 8).sum((2, 4))
        observed = counts.reshape(G, 16, 8, 16, 8).sum((2, 4))
        whole = patch.tissue_mask.reshape(16, 8, 16, 8).all((1, 3))
        for a, b in zip(predicted, observed, strict=True):
            assert np.corrcoef(a[whole], b[whole])[0, 1] > 0.6


@pytest.mark.parametrize("grid", [16, 32])
def test_ridge_takes_either_token_grid(tmp_path: Path, split: Split, grid: int) -> None:
    stores = [
        write_store(tmp_path / f"{s}.vst", s, 4, seed=i, grid=grid) for i, s in enumerate("ABT")
    ]
    fitted = fit_baselines(stores, PANEL, split, train_rate(stores, split))
    patch = stores[2][1]
    rate = fitted.rate("ridge", patch, patch.dense_counts(GENES))
    side = 128 // grid
    np.testing.assert_array_equal(rate, rate[:, ::side, ::side].repeat(side, 1).repeat(side, 2))
    assert np.unique(rate[0]).size > grid


def test_a_feature_without_variance_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)) + 7, rng.normal(size=(300, 2))
    plain, padded = NormalEquations(3, 2), NormalEquations(4, 2)
    wide = np.column_stack([x, np.full(300, 3.3)])
    plain.add(x, x.T @ y, y.sum(0), (y**2).sum(0))
    padded.add(wide, wide.T @ y, y.sum(0), (y**2).sum(0))
    want, got = plain.solve(0.1), padded.solve(0.1)
    np.testing.assert_array_equal(got.weights[3], 0)
    np.testing.assert_allclose(got(wide), want(x), rtol=1e-10)
    residual = ((y - want(x)) ** 2).mean(0) / y.var(0)
    assert plain.error(want) == pytest.approx(residual.mean())


def test_ridge_without_a_token_in_tissue_says_so() -> None:
    fit = RidgeFit(16, 8, G)
    tokens, counts = np.zeros((16, 16, 8), np.float16), np.zeros((G, 128, 128), np.float32)
    fit.add(tokens, counts, np.zeros((128, 128), bool), validates=False)
    with pytest.raises(ConfigError, match="expected training patches with tokens in tissue"):
        solve_together([fit])


def test_nuclear_density_is_least_squares_on_haematoxylin(
    stores: list[Store], split: Split, fitted: Baselines
) -> None:
    x, y = [], []
    for member in split.train:
        patch = stores[member.store][member.patch]
        tissue = patch.tissue_mask.ravel()
        x.append(nuclear_features(patch.image)[tissue])
        y.append(patch.counts(GENES).toarray().T[tissue])
    x, y = np.concatenate(x).astype(float), np.concatenate(y).astype(float)
    design = np.column_stack([x, np.ones(len(x))])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(fitted.nuclear(x), design @ solution, rtol=1e-4, atol=1e-7)
    patch = stores[2][2]
    rate = fitted.rate("nuclear_density", patch, patch.dense_counts(GENES))
    features = nuclear_features(patch.image)
    want = (np.column_stack([features, np.ones(len(features))]) @ solution).T
    want = np.maximum(want, LEAST_RATE * fitted.train_rate[:, None])
    np.testing.assert_allclose(rate.reshape(G, -1), want, rtol=1e-3, atol=1e-6)


def test_nuclear_features_follow_the_stain_and_its_surroundings() -> None:
    """A dark blue disc on pink, against the haematoxylin of scikit-image."""
    row, col = np.mgrid[:256, :256]
    inside = (row - 60) ** 2 + (col - 200) ** 2 < 24**2
    image = np.where(inside[..., None], [90, 60, 140], [235, 190, 210]).astype(np.uint8)
    own, around = np.moveaxis(nuclear_features(image).reshape(128, 128, 2), 2, 0)
    reference = rgb2hed(image)[..., 0].reshape(128, 2, 128, 2).mean((1, 3))
    assert np.corrcoef(own.ravel(), reference.ravel())[0, 1] > 0.98
    assert own[30, 100] > own[100, 20]
    assert around[30, 100] == pytest.approx(own[30, 100])  # the disc is wider than 32 µm
    assert own[43, 100] == pytest.approx(own[100, 20])  # beside the disc, but near it
    assert around[43, 100] > around[100, 20]


def test_total_umi_gives_each_gene_its_share_of_the_others(
    stores: list[Store], split: Split, fitted: Baselines
) -> None:
    gene, others = np.zeros(G), np.zeros(G)
    for member in split.train:
        patch = stores[member.store][member.patch]
        counts = patch.counts().toarray()[:, patch.tissue_mask.ravel()].astype(float)
        gene += counts[GENES].sum(1)
        others += (counts.sum(0) - counts[GENES] + 1).sum(1)
    patch = stores[2][3]
    every, own = patch.counts().toarray().astype(float), patch.counts(GENES).toarray()
    want = (every.sum(0) - own + 1) * (gene / others)[:, None]
    rate = fitted.rate("total_umi", patch, patch.dense_counts(GENES))
    np.testing.assert_allclose(rate.reshape(G, -1), want, rtol=1e-5)
    assert (rate > 0).all()
    assert ORACLES == ("total_umi",)


def test_no_count_predicts_itself(tmp_path: Path) -> None:
    """With one gene of any depth, the oracle has nothing to say but a constant."""
    records = make_records(4, n_genes=1)
    store = write_records(tmp_path / "A.vst", records, 1)
    panel = Panel(("ENSG00000",), ("GENE0",))
    split = Split((Member(0, 0), Member(0, 1)), (Member(0, 2),), (Member(0, 3),), ("",))
    fitted = fit_baselines([store], panel, split, np.array([0.3]))
    rate = fitted.rate("total_umi", store[3], store[3].dense_counts([0]))
    assert np.unique(rate).size == 1


def test_only_the_oracle_reads_the_test_counts(
    stores: list[Store], fitted: Baselines, tmp_path: Path
) -> None:
    """The same patch with other counts: only the oracle's rates differ."""
    patch = stores[2][0]
    other = np.random.default_rng(9).poisson(1.0, (6, 128, 128)) * patch.tissue_mask
    record = make_record(patch.tokens, other, patch.tissue_mask, patch.image)
    changed = write_records(tmp_path / "T.vst", [record], 6, patient="T")[0]
    for name in BASELINES:
        before = fitted.rate(name, patch, patch.dense_counts(GENES))
        after = fitted.rate(name, changed, changed.dense_counts(GENES))
        if name in ORACLES:
            assert (before != after).any()
        elif name != "nuclear_density":  # its image went through JPEG twice
            np.testing.assert_array_equal(before, after)


def test_the_test_patient_is_not_read(
    stores: list[Store], split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    from virchow_st.store.reader import Patch

    read: set[str] = set()
    unpack = Patch._unpack

    def watched(self, *rest):
        read.add(self.store.patient)
        return unpack(self, *rest)

    monkeypatch.setattr(Patch, "_unpack", watched)
    fit_baselines(stores, PANEL, split, np.ones(G))
    assert read == {"A", "B"}


def test_gene_mean_is_the_training_mean_everywhere(
    stores: list[Store], split: Split, fitted: Baselines
) -> None:
    patch = stores[2][0]
    rate = fitted.rate("gene_mean", patch, patch.dense_counts(GENES))
    assert rate.shape == (G, 128, 128)
    np.testing.assert_allclose(rate[:, 5, 7], train_rate(stores, split), rtol=1e-6)
    assert np.ptp(rate, axis=(1, 2)).max() == 0
