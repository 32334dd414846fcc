"""Architectures of published pathology ViTs, so that only their weights are needed from the hub.

Architecture, arguments and colour statistics are those of the model card or configuration on the
Hugging Face Hub. The configuration alone is not always sufficient: those of UNI and UNI2-h lack
arguments that are given on the model cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.layers import SwiGLUPacked

Colour = tuple[float, float, float]
_IMAGENET: tuple[Colour, Colour] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BIOPTIMUS: tuple[Colour, Colour] = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
_SWIGLU: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
_PAIGE = {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", **_SWIGLU}


@dataclass(frozen=True)
class Published:
    """A model on the hub.

    Attributes:
        repo: ``owner/name``.
        terms: Short name of its licence.
        architecture: Name of the architecture in timm.
        arguments: Arguments of the architecture that differ from its defaults.
        colours: Mean and standard deviation of the RGB channels in its training, scaled to 0–1.
        name: Name used in manifests; the repo if empty.
    """

    repo: str
    terms: str
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    colours: tuple[Colour, Colour] = _IMAGENET
    name: str = ""

    @property
    def licence(self) -> str:
        """Terms of use of the weights and of stores and models derived from them."""
        page = f"see https://huggingface.co/{self.repo}"
        if "NC" not in self.terms:
            return f"{self.terms}: {page}"
        model = self.repo.partition("/")[2]
        return (
            f"{self.terms}: {model}'s weights, and stores and models made from them, are for "
            f"non-commercial use and not to be passed on; {page}"
        )

    def model(self) -> torch.nn.Module:
        """Build the architecture with random weights, or without under ``torch.device("meta")``."""
        return timm.create_model(
            self.architecture, img_size=224, num_classes=0, dynamic_img_size=True, **self.arguments
        )


VIRCHOW2 = Published(
    "paige-ai/Virchow2",
    "CC-BY-NC-ND 4.0",
    "vit_huge_patch14_224",
    {**_PAIGE, "reg_tokens": 4},
    name="virchow2",
)
_MODELS = (
    VIRCHOW2,
    Published("paige-ai/Virchow", "Apache 2.0", "vit_huge_patch14_224", _PAIGE),
    Published(
        "MahmoodLab/UNI", "CC-BY-NC-ND 4.0", "vit_large_patch16_224", {"init_values": 1e-5}
    ),
    Published(
        "MahmoodLab/UNI2-h",
        "CC-BY-NC-ND 4.0",
        "vit_giant_patch14_224",
        {
            "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "init_values": 1e-5,
            "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, **_SWIGLU,
        },
    ),
    Published(
        "bioptimus/H-optimus-0",
        "Apache 2.0",
        "vit_giant_patch14_reg4_dinov2",
        {"init_values": 1e-5},
        _BIOPTIMUS,
    ),
    Published(
        "bioptimus/H-optimus-1",
        "CC-BY-NC-ND 4.0",
        "vit_giant_patch14_reg4_dinov2",
        {"init_values": 1e-5},
        _BIOPTIMUS,
    ),
    Published(
        "prov-gigapath/prov-gigapath",
        "Apache 2.0 with conditions of use",
        "vit_giant_patch14_dinov2",
        {"patch_size": 16, "init_values": 1e-5, "mlp_ratio": 5.33334},
    ),
)  # fmt: skip
PUBLISHED = {model.repo.lower(): model for model in _MODELS}
"""Published models by lower-case repo."""


def find_published(repo: str) -> Published | None:
    """Find a model by hub id or by the name ``virchow2``, ignoring case; None if unknown."""
    wanted = repo.lower()
    return PUBLISHED.get(VIRCHOW2.repo.lower() if wanted == VIRCHOW2.name else wanted)
