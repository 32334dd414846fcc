"""The segmenter ``instanseg``: nuclei by a trained network of the package ``instanseg-torch``.

InstanSeg: Goldsborough et al. (2024), https://doi.org/10.48550/arXiv.2408.15954. The package is
under the Apache licence 2.0, and its list of models says the same of the weights. They are not part
of it: they lie in ``brightfield_nuclei/VERSION/instanseg.pt`` in the folder that
``INSTANSEG_BIOIMAGEIO_PATH`` names, or are downloaded there from GitHub when they are first used.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.slide.cells.segmenter import TILE_MPP, TILE_PX, Segmenter
from virchow_st.types import Array, Float32Array, UInt8Array

DISTRIBUTION, MODEL = "instanseg-torch", "brightfield_nuclei"
_FOLDER = "INSTANSEG_BIOIMAGEIO_PATH"  # the package's own variable
_PERCENTILES = 0.1, 99.9  # of each channel, as the package scales its images


class InstanSegNuclei(Segmenter):
    """Nuclei by InstanSeg.

    Attributes:
        package: the package with its version, and the model with its.

    Raises:
        ConfigError: the package is not installed, or its weights cannot be had.
    """

    def __init__(self) -> None:
        if not is_installed():
            raise ConfigError(
                f"--cells instanseg: expected the package {DISTRIBUTION}; it is not installed; pip "
                "install 'virchow_st[cells]', or take --cells nuclei, which needs no weights"
            )
        try:
            import instanseg
        except Exception as e:  # whatever the import of another package raises
            reason = " ".join(str(e).split())
            raise ConfigError(
                f"--cells instanseg: {DISTRIBUTION} cannot be imported ({type(e).__name__}: "
                f"{reason})"
            ) from e
        own = Path(instanseg.__file__).parent / "bioimageio_models"
        folder = Path(os.environ.get(_FOLDER) or own)
        local = _newest(folder)
        try:
            name = MODEL if local is None else f"{MODEL}/{local.parent.name}"
            self._model = instanseg.InstanSeg(name, verbosity=0)
        except Exception as e:  # whatever the download, the disk or torch raises
            if local is not None:
                raise ConfigError(
                    f"{local}: expected weights of InstanSeg as TorchScript; cannot be loaded "
                    f"({type(e).__name__}); delete it, and give another or have it downloaded"
                ) from e
            raise ConfigError(
                f"--cells instanseg: expected weights, {folder}/{MODEL}/VERSION/instanseg.pt, or a "
                f"connection to github.com; found neither ({type(e).__name__}); set {_FOLDER} to a "
                "folder that has them, or take --cells nuclei (docs/cells.md)"
            ) from e
        loaded = local or _newest(folder)
        of_model = f"{MODEL} {loaded.parent.name}" if loaded else MODEL
        self.package = f"{DISTRIBUTION} {version(DISTRIBUTION)}, {of_model}"
        self._low = np.zeros(3, np.float32)
        self._range = np.full(3, 255, np.float32)

    def prepare(self, images: Sequence[UInt8Array]) -> None:
        """Take the range of each channel over some tiles, so that all tiles are scaled alike."""
        pixels = np.concatenate([image.reshape(-1, 3)[::7] for image in images])
        low, high = np.percentile(pixels, _PERCENTILES, axis=0).astype(np.float32)
        self._low, self._range = low, np.maximum(high - low, 1)

    def segment(self, image: UInt8Array) -> Array:
        """See `Segmenter.segment`."""
        scaled: Float32Array = (image.astype(np.float32) - self._low) / self._range
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of a GPU that is not there
            found = self._model.eval_small_image(
                scaled, TILE_MPP, normalise=False, return_image_tensor=False, target="nuclei"
            )
        labels = np.asarray(found.detach().cpu().numpy())
        if labels.shape != (1, 1, TILE_PX, TILE_PX):
            raise ValueError(f"expected one image of labels; got shape {labels.shape}")
        return labels[0, 0].round().astype(np.int64)


def is_installed() -> bool:
    """Whether ``instanseg-torch`` is there."""
    try:
        version(DISTRIBUTION)
    except PackageNotFoundError:
        return False
    return True


def _newest(folder: Path) -> Path | None:
    """The weights of the highest version in a folder of models, or None."""
    found = list(folder.glob(f"{MODEL}/*/instanseg.pt"))
    order = [[int(n) for n in path.parent.name.split(".") if n.isdigit()] for path in found]
    return max(zip(order, found, strict=True))[1] if found else None
