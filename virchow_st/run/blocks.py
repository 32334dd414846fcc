"""``blocks.npz``: sums per spatial block, from which the bootstrap computes intervals."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.metrics.bootstrap import BlockSums
from virchow_st.runtime.atomic import written_whole
from virchow_st.types import SCALES_UM

BLOCKS_FORMAT = "virchow_st.blocks/1"
RUN = "run"
"""The run itself among the models of ``blocks.npz``; the others are its baselines."""


@dataclass(frozen=True)
class RunBlocks:
    """Content of ``blocks.npz``.

    Attributes:
        gene_ids: (G,) of the panel.
        sums: sums by model and scale in µm; the model ``"run"`` is the run, the others are
            baselines.
    """

    gene_ids: tuple[str, ...]
    sums: dict[str, dict[int, BlockSums]]


_SUMS = ("moments", "poisson_sums", "null_rate")
_CONTROLS = ("products", "squares")  # of versions before 0.2 there are none


_UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy raises for a file that is no such archive, or a damaged one."""


def write_blocks(run: Path, blocks: RunBlocks) -> None:
    """Write ``blocks.npz``: arrays ``format``, ``gene_id``, and MODEL.SCALE.NAME for each sum."""
    arrays: dict[str, Any] = {
        f"{model}.{scale}.{name}": getattr(sums, name)
        for model, scales in blocks.sums.items()
        for scale, sums in scales.items()
        for name in (*_SUMS, *(() if sums.products is None else _CONTROLS))
    }
    arrays |= {"format": np.array(BLOCKS_FORMAT), "gene_id": np.array(blocks.gene_ids)}
    with written_whole(run / "blocks.npz") as aside, open(aside, "wb") as f:
        np.savez_compressed(f, **arrays)


def read_blocks(run: Path) -> RunBlocks:
    """Read ``blocks.npz`` without unpickling; `ConfigError` if it is missing or damaged."""
    path = run / "blocks.npz"
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as file:
            if (found := str(file["format"])) != BLOCKS_FORMAT:
                raise ValueError(f"expected format {BLOCKS_FORMAT!r}; got {found!r}")
            models = dict.fromkeys(n.split(".")[0] for n in file.files if n.count(".") == 2)
            sums = {
                model: {
                    scale: BlockSums(
                        **{name: file[f"{model}.{scale}.{name}"] for name in _SUMS},
                        **{
                            name: file[array]
                            for name in _CONTROLS
                            if (array := f"{model}.{scale}.{name}") in file.files
                        },
                    )
                    for scale in SCALES_UM
                }
                for model in models
            }
            genes = tuple(str(gene) for gene in file["gene_id"])
            if RUN not in sums or any(
                len(of.null_rate) != len(genes) for model in sums.values() for of in model.values()
            ):
                raise ValueError(f"expected the sums of {RUN!r} for {len(genes)} genes")
            return RunBlocks(genes, sums)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; run `vst evaluate {run}` first") from None
    except _UNREADABLE as e:
        raise ConfigError(f"{path}: cannot be read ({e}); run `vst evaluate {run}` again") from None
