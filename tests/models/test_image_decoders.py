"""Training of decoders that use the image: rotated with its counts, and resumed exactly."""

import numpy as np
import pytest
from dying import DiesAfterEpoch, Killed
from tiny_store import make_record, write_records
from tiny_training import PATIENTS, few_steps, history, paths, tiny_config

from virchow_st.predict.load import load_run
from virchow_st.store.reader import open_store
from virchow_st.training.train import train


@pytest.fixture(autouse=True, scope="module")
def quick():
    with few_steps(8):
        yield


def write_pictures(path, patient, seed):
    """Patches whose counts lie where the image is dark, and whose tokens tell nothing."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(4):
        dark = rng.random((16, 16)) < 0.3  # no two orientations of it are alike
        rate = np.where(dark, 1.5, 0.05).repeat(8, 0).repeat(8, 1)
        image = np.where(dark, 80, 220).astype(np.uint8).repeat(16, 0).repeat(16, 1)
        counts = rng.poisson(rate, (3, 128, 128))
        tokens = np.ones((16, 16, 8), np.float16)
        mask = np.ones((128, 128), bool)
        image = np.stack([image] * 3, axis=-1)
        records.append(make_record(tokens, counts, mask, image, 0, 128 * i))
    write_records(path, records, 3, patient=patient)


@pytest.fixture(scope="module", params=["guided", "fusion"])
def config(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("pictures")
    for seed, patient in enumerate(PATIENTS):
        write_pictures(folder / f"{patient}.vst", patient, seed)
    optimizer = {"guided": "adamw", "fusion": "muon"}[request.param]
    return tiny_config(paths(folder), decoder=request.param, optimizer=optimizer)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    train(path, config)
    return path


def test_it_learns_from_images_turned_with_their_counts(run):
    """Were they turned apart, there would be nothing to learn: the pattern has no symmetry."""
    trained = load_run(run, "cpu")
    store = open_store(trained.config.stores[1])
    rates = trained.predict(store[0])
    dark = store[0].image.mean(-1).reshape(128, 2, 128, 2).mean((1, 3)) < 150
    assert np.corrcoef(rates[0].ravel(), dark.ravel())[0, 1] > 0.7


def test_random_stain_resumes_bit_for_bit(run, config, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(Killed):
        train(path, config, progress=DiesAfterEpoch(1))
    train(path, config, resume=True)
    assert history(path) == history(run)
    tensors = "checkpoints/last/tensors.safetensors"
    assert (path / tensors).read_bytes() == (run / tensors).read_bytes()
