"""``--cells instanseg``: the package, where it is installed; our side of it, by a double."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_place import Answer
from drawn_nuclei import discs, found_once, lattice_of, write_image
from torch import Tensor, nn

from virchow_st.errors import ConfigError
from virchow_st.slide.cells import segmenters
from virchow_st.slide.cells.instanseg import InstanSegNuclei, is_installed
from virchow_st.slide.cells.segment import segment_cells

FOLDER = "INSTANSEG_BIOIMAGEIO_PATH"


class Dark(nn.Module):
    """Connected dark pixels, in the form of InstanSeg's models: scaled image to labels."""

    def __init__(self, pixel_size: float) -> None:
        super().__init__()
        self.pixel_size = pixel_size
        self.cells_and_nuclei = False

    def forward(self, x: Tensor, target_segmentation: Tensor = torch.tensor([1, 1])) -> Tensor:  # noqa: B008
        h, w = x.shape[-2:]
        mask = (x[:, :1] < 0.5).to(x.dtype)
        labels = torch.arange(1, h * w + 1, dtype=x.dtype).reshape(1, 1, h, w) * mask
        for _ in range(1000):
            grown = nn.functional.max_pool2d(labels, 3, 1, 1) * mask
            if bool((grown == labels).all()):
                break
            labels = grown
        return labels


def write_model(folder: Path, pixel_size: float, version: str) -> Path:
    path = folder / "brightfield_nuclei" / version / "instanseg.pt"
    path.parent.mkdir(parents=True)
    torch.jit.script(Dark(pixel_size)).save(str(path))
    return path


needs_package = pytest.mark.skipif(
    not is_installed(), reason="pip install 'virchow_st[cells]' for InstanSeg itself"
)


@needs_package
@pytest.mark.parametrize("pixel_size", [0.5, 0.25])
def test_a_model_in_a_folder_finds_every_nucleus_where_it_lies(
    pixel_size: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    write_model(tmp_path, pixel_size, "0.9.0")
    write_model(tmp_path, 7.0, "0.1.1")  # not this one
    shape = 200, 150  # tiles begin at bins 0, 96 and 192
    picture, labels = discs(shape)
    image = write_image(tmp_path / "i.tif", picture)
    cells, package = segment_cells("instanseg", image, lattice_of(shape))
    assert package.startswith("instanseg-torch ")
    assert package.endswith(", brightfield_nuclei 0.9.0")
    found_once(cells, labels)


@needs_package
def test_without_weights_and_network_there_is_one_line(
    stores: dict[str, Path], simulated: Path, tmp_path: Path, vst: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(FOLDER, str(tmp_path / "models"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # where nobody answers
    image = simulated / "P1" / "tissue_image.tif"
    out = tmp_path / "c.h5ad"
    answer = vst("cells", stores["P1"], "--cells", "instanseg", "--image", image, "--out", out)
    assert answer.code == 2
    assert f"expected weights, {tmp_path}/models/brightfield_nuclei/VERSION/instanseg.pt" in (
        answer.err
    )
    assert answer.err.strip().count("\n") == 0
    assert not list(tmp_path.glob("*c.h5ad*"))


# --- our side -------------------------------------------------------------------------------------

DOUBLE = """
import torch
class InstanSeg:
    def __init__(self, name, verbosity):
        if name == "brightfield_nuclei":
            raise OSError("no connection\\nto github.com")
        if name.endswith("/0.2.0"):
            raise RuntimeError("no archive")
        self.name = name
    def eval_small_image(self, image, pixel_size, **options):
        assert (image.shape, str(image.dtype), pixel_size) == ((512, 512, 3), "float32", 0.5)
        assert options == {
            "normalise": False, "return_image_tensor": False, "target": "nuclei"
        }
        self.seen = image
        shape = (1, 2, 512, 512) if self.name.endswith("/0.3.0") else (1, 1, 512, 512)
        return torch.full(shape, 3.0)
"""


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that takes InstanSeg's place; its folder of models."""
    site = tmp_path / "site"
    (about := site / "instanseg_torch-0.1.2.dist-info").mkdir(parents=True)
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: instanseg-torch\nVersion: 0.1.2\n"
    )
    (site / "instanseg").mkdir()
    (site / "instanseg" / "__init__.py").write_text(DOUBLE)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "instanseg", raising=False)
    monkeypatch.setenv(FOLDER, str(tmp_path / "models"))
    yield tmp_path / "models"
    sys.modules.pop("instanseg", None)


def put(folder: Path, version: str) -> Path:
    path = folder / "brightfield_nuclei" / version / "instanseg.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    return path


def test_all_tiles_are_scaled_as_the_first_ones(double: Path) -> None:
    put(double, "0.1.9")
    put(double, "0.1.10")
    network = InstanSegNuclei()
    assert network.package == "instanseg-torch 0.1.2, brightfield_nuclei 0.1.10"
    tiles = [np.full((512, 512, 3), value, np.uint8) for value in (50, 250)]
    network.prepare(tiles)
    labels = network.segment(np.full((512, 512, 3), 150, np.uint8))
    assert labels.shape == (512, 512)
    assert labels.dtype == np.int64
    assert (labels == 3).all()
    np.testing.assert_allclose(network._model.seen, 0.5)
    assert segmenters.segmenter_names()[:2] == ["instanseg", "nuclei"]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            "",
            r"expected weights, .*/models/brightfield_nuclei/VERSION/.* found neither \(OSError\)",
        ),
        ("0.2.0", r"0.2.0/instanseg.pt: expected weights .* cannot be loaded \(RuntimeError\)"),
    ],
)
def test_weights_that_are_not_there_or_damaged(double: Path, version: str, message: str) -> None:
    if version:
        put(double, version)
    with pytest.raises(ConfigError, match=message) as e:
        segmenters.load_segmenter("instanseg")
    assert "\n" not in str(e.value)


def test_labels_of_another_shape_are_refused(double: Path) -> None:
    put(double, "0.3.0")
    network, _ = segmenters.load_segmenter("instanseg")
    with pytest.raises(ConfigError, match=r"failed on a tile .*got shape \(1, 2, 512, 512\)"):
        segmenters.segmented(network, np.zeros((512, 512, 3), np.uint8), "instanseg")


def test_a_package_that_cannot_be_imported(double: Path) -> None:
    (double.parent / "site" / "instanseg" / "__init__.py").write_text("import no_such_module")
    with pytest.raises(ConfigError, match=r"instanseg-torch cannot be imported \(ModuleNotFound"):
        InstanSegNuclei()


@pytest.mark.skipif(find_spec("instanseg") is not None, reason="the package is installed")
def test_without_the_package_it_is_named() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'virchow_st\[cells\]'"):
        segmenters.load_segmenter("instanseg")
    assert segmenters.is_segmenter("instanseg")
    assert segmenters.segmenter_names() == ["nuclei"]
