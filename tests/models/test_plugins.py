"""Encoders that other packages add: the example of docs/encoders.md, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from virchow_st.errors import ConfigError
from virchow_st.models.encoders import load_encoder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encoders.md"
FINE = "from virchow_st.models.encoders.stain import StainEncoder\n"


def install(folder: Path, package: str, code: str, entry: str) -> None:
    """Put a module and its metadata where an installation would; the module has the package's name.

    Args:
        folder: Folder on ``sys.path``.
        package: Name of the distribution.
        code: Content of the module.
        entry: Line of its entry point, ``name = "module:function"`` as in pyproject.toml.
    """
    (folder / f"{package.replace('-', '_')}.py").write_text(code, "utf-8")
    about = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    (about / "METADATA").write_text(metadata, "utf-8")
    (about / "entry_points.txt").write_text(
        f"[virchow_st.encoders]\n{entry.replace(chr(34), '')}\n", "utf-8"
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_the_example_of_the_docs_is_an_encoder(site: Path) -> None:
    section = PAGE.read_text("utf-8").partition("## An encoder of your own")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    entry = re.search(r'\[project\.entry-points\."virchow_st\.encoders"\]\n(.+)', section)
    assert code
    assert entry
    install(site, "grey-encoder", code[1], entry[1])
    encoder = load_encoder("grey", device="cpu")
    images = np.zeros((1, 256, 256, 3), np.uint8)
    images[0, 16:32, 48:64] = 255
    tokens = encoder.encode(images).tokens
    assert tokens.shape == (1, 16, 16, encoder.dim)
    assert np.argwhere(tokens[0, ..., 0] > 0).tolist() == [[1, 3]]
    fine = load_encoder("grey", device="cpu", token_um=8)
    assert (fine.name, fine.grid) == ("grey", 32)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import a_module_that_is_not_there\n", "odd:load cannot be imported"),
        ("", "odd:load cannot be imported"),
        ("def load(weights, device):\n    return 5\n", "return a virchow_st.Encoder; got int"),
        (
            FINE + "def load(weights, device):\n    return StainEncoder()\n",
            "expected an encoder named odd with 16 × 16 tokens; got stain",
        ),
        (
            "from virchow_st import Encoder\n"
            "class Odd(Encoder):\n    name = 'odd'\n    dim = 3\n"
            "    def encode(self, images):\n        return None\n"
            "def load(weights, device):\n    return Odd()\n",
            "lacks the attribute image_px",
        ),
    ],
)
def test_what_is_no_encoder_is_refused_in_a_line(site: Path, code: str, message: str) -> None:
    install(site, "odd", code, "odd = odd:load")
    with pytest.raises(ConfigError, match=message) as caught:
        load_encoder("odd", device="cpu")
    assert str(caught.value).startswith("encoder odd, of odd: ")
    assert "\n" not in str(caught.value)


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    for package in ("one", "two"):
        install(site, package, FINE, f"same = {package}:load")
    with pytest.raises(ConfigError, match="expected one package that adds it; found one, two"):
        load_encoder("same", device="cpu")


def test_own_names_are_not_taken_over(site: Path) -> None:
    code = "def load(weights, device):\n    raise AssertionError\n"
    install(site, "thief", code, "stain = thief:load")
    assert load_encoder("stain").name == "stain"
