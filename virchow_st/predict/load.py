"""A trained run, ready to predict the rates of patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.kernels.orientation import N_ORIENTATIONS
from virchow_st.models.decoders import decode
from virchow_st.models.decoders.base import Decoder
from virchow_st.models.losses.base import Objective
from virchow_st.models.losses.factor_poisson import FactorPoisson
from virchow_st.output.share import fetch_run, push_run, save_run
from virchow_st.output.share.listing import check_listed
from virchow_st.predict.array import MIN_TISSUE, ImageRates, predict_array
from virchow_st.predict.image import decoded_together
from virchow_st.predict.orientations import Orientations
from virchow_st.predict.restore import restore
from virchow_st.predict.windows import SHIFTED, Lattice, blended
from virchow_st.run.panel import Panel
from virchow_st.run.rates import check_left_out, leave_out_impossible, left_out
from virchow_st.run.split import Split
from virchow_st.run.transcriptome import RunGenes
from virchow_st.runtime.devices import pick_device
from virchow_st.store.reader import Patch, Store
from virchow_st.types import PATCH_BINS, Array, Float32Array, Float64Array, UInt8Array

_BATCH_PATCHES = 8
_ON_HUB = "hf:"


@dataclass(frozen=True)
class Run:
    """The best decoder of a run directory.

    Attributes:
        path: the run directory.
        config, genes, split: settings, genes and split of the training.
        state: epoch, encoder, token grid and token dimension, from the checkpoint.
        decoder, objective: in evaluation mode, on ``device``.
        orientations: those of a patch that every prediction is the mean of.
    """

    path: Path
    config: TrainConfig
    genes: RunGenes
    split: Split
    state: dict[str, Any]
    decoder: Decoder
    objective: Objective
    device: torch.device
    orientations: Orientations

    @property
    def train_rate(self) -> Float64Array:
        """(G,) mean UMIs per 2 µm tissue bin of the training patients: the gene-mean baseline."""
        return self.objective.train_rate.double().cpu().numpy()

    @property
    def panel(self) -> Panel:
        """The genes that `predict` gives: those of the panel."""
        return self.genes.panel

    @property
    def n_genes(self) -> int:
        """Number of genes of the panel, G."""
        return len(self.panel)

    @property
    def wants_image(self) -> bool:
        """Whether the decoder reads the image as well as the tokens."""
        return self.decoder.wants_image

    def predict(self, patch: Patch) -> Float32Array:
        """Predict expected UMIs per 2 µm bin on one patch of a store.

        The patches beside it are read as well, for windows that lie half on them; `predict_store`
        decodes each window once and takes half the time per patch.

        Args:
            patch: a patch of a store that was extracted with the run's encoder.

        Returns:
            (G, 128, 128) float32 in the panel's order; rows and columns are those of the bins. NaN
            in bins that are left out, see `rates`.

        Raises:
            ConfigError: the store's tokens are of another encoder than the run's; rates that are
                NaN or infinite, or more than 1 % of the bins left out.
            TypeError: ``patch`` is not a patch.

        Example:
            >>> run.predict(store[12]).shape  # doctest: +SKIP
            (50, 128, 128)
        """
        if not isinstance(patch, Patch):
            raise TypeError(
                f"patch: expected a patch of a store, such as store[0]; got "
                f"{type(patch).__name__}; use predict_store for a store, predict_image for an "
                "image"
            )
        self.check_store(patch.store)
        rates = next(self._rates([patch]))
        check_left_out(int(left_out(rates).sum()), PATCH_BINS**2, str(self.path))
        return rates

    def predict_factors(self, patch: Patch) -> Float32Array:
        """Predict the factors of every gene's rates on one patch of a store.

        The rate of gene g of `genes.all` is ``Σ_k loadings[g, k] · factors[k]``.

        Args:
            patch: a patch of a store that was extracted with the run's encoder.

        Returns:
            (K, 128, 128) float32, UMIs of all genes per 2 µm bin that each factor has.

        Raises:
            ConfigError: the run predicts its panel directly and has no factors; or the store's
                tokens are of another encoder than the run's.
        """
        if self.loadings is None:
            raise ConfigError(
                f"{self.path}: has no factors, since it predicts the genes of its panel directly; "
                "train with --panel all"
            )
        self.check_store(patch.store)
        return next(self.predict_maps([patch]))

    def predict_gene(self, patch: Patch, gene: str) -> Float32Array:
        """Predict expected UMIs of one gene per 2 µm bin on one patch of a store.

        Args:
            patch: a patch of a store that was extracted with the run's encoder.
            gene: symbol or id of any gene that the run predicts, see `genes`.

        Returns:
            (128, 128) float32.

        Raises:
            ConfigError: the run does not predict the gene, or as `predict` raises.
        """
        place = self.genes.all.index(gene)
        if self.loadings is None:
            return self.predict(patch)[place]
        return np.tensordot(self.loadings[place], self.predict_factors(patch), axes=1)

    def predict_store(self, store: Store) -> Iterator[Float32Array]:
        """Predict expected UMIs per 2 µm bin on every patch of a store, one after another.

        Args:
            store: extracted with the run's encoder.

        Returns:
            An iterator over (G, 128, 128) float32 arrays, in the order of the store's patches; NaN
            in bins that are left out, see `rates`.

        Raises:
            ConfigError: the store's tokens are of another encoder than the run's; while iterating,
                rates that are NaN or infinite, or more than 1 % of all bins left out.
        """
        self.check_store(store)
        return self._each(store)

    def predict_image(
        self, pixels: UInt8Array, *, mpp: float, weights: str = "", min_tissue: float = MIN_TISSUE
    ) -> ImageRates:
        """Predict expected UMIs per 2 µm bin on an H&E image in memory.

        The image is treated as ``vst predict`` treats a slide: tissue is found and covered with
        overlapping patches, which are encoded and decoded. The run's encoder stays loaded for the
        next image. All rates are held in memory (4 bytes per gene and bin), so this is for
        images of a few mm; `virchow_st.predict_slide` streams whole slides to disk.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            mpp: µm per pixel of the image, for instance 0.25 for a 40x scan.
            weights: the encoder's weights file, instead of the hub.
            min_tissue: smallest fraction of tissue in a patch that is predicted. By default every
                patch with tissue is, though decoders were trained on patches with half or more.

        Returns:
            Rates, tissue mask and the image on the lattice of 2 µm bins.

        Raises:
            ConfigError: the weights cannot be loaded, or are of another encoder than the run's.
            SlideError: the image shows no tissue or is too coarse.
            ValueError: the array is not an RGB image.

        Example:
            >>> run.predict_image(pixels, mpp=0.5)["EPCAM"].shape  # doctest: +SKIP
            (512, 512)
        """
        return predict_array(
            self,
            self.panel,
            pixels,
            mpp,
            weights=weights,
            device=str(self.device),
            min_tissue=min_tissue,
        )

    def predict_maps(self, patches: Sequence[Patch]) -> Iterator[Float32Array]:
        """Predict the maps that a run has, its factors or else its panel's rates, on patches.

        Args:
            patches: of one store, which `check_store` accepts; a slide's in the order of the store
                take least memory and time.

        Returns:
            An iterator over (K, 128, 128) or (G, 128, 128) float32 arrays; NaN in bins that are
            left out, which the caller counts.

        Raises:
            ConfigError: while iterating, a value is NaN or infinite.
        """
        objective = self.objective
        if not isinstance(objective, FactorPoisson):
            return self._rates(patches)
        return self._blended(patches, objective.factors, self._check_factors)

    def _each(self, store: Store) -> Iterator[Float32Array]:
        n_left_out, n_bins = 0, len(store) * PATCH_BINS**2
        for rates in self._rates(list(store)):
            n_left_out += int(left_out(rates).sum())
            check_left_out(n_left_out, n_bins, str(self.path))
            yield rates

    def _rates(self, patches: Sequence[Patch]) -> Iterator[Float32Array]:
        return self._blended(patches, self.objective.rate, self._check_rates)

    def _blended(
        self,
        patches: Sequence[Patch],
        of_output: Callable[[Tensor], Tensor],
        checked: Callable[[Float32Array], Float32Array],
    ) -> Iterator[Float32Array]:
        """Maps of patches; of shifted windows if the decoder was trained with neighbours' tokens.

        Others never saw tokens of two patches together.
        """
        n, margin_um = len(self.orientations), self.decoder.margin_um
        lattices = (
            SHIFTED if n == N_ORIENTATIONS and margin_um else (Lattice((0, 0), (*range(n),)),)
        )

        def decode_windows(
            tokens: Array, image: UInt8Array | None, some: Sequence[int]
        ) -> Float32Array:
            return self._mean(of_output, tokens, image, some)

        found = blended(
            patches,
            decode_windows,
            lattices,
            margin_um=margin_um,
            wants_image=self.wants_image,
            batch=min(_BATCH_PATCHES, decoded_together(self.n_genes)),
        )
        return map(checked, found)

    @property
    def all_train_rate(self) -> Float64Array:
        """(G,) mean UMIs of `genes.all` per 2 µm tissue bin of the training patients."""
        rate = self.objective.train_rate
        if isinstance(self.objective, FactorPoisson):
            rate = self.objective.gene_rate
        return rate.double().cpu().numpy()

    @property
    def loadings(self) -> Float32Array | None:
        """(G, K) share of each of `genes.all` in a factor's UMIs; None without factors."""
        if not isinstance(self.objective, FactorPoisson):
            return None
        return self.objective.loadings.detach().cpu().numpy()

    def factors(self, tokens: Array, image: UInt8Array | None = None) -> Float32Array:
        """Factors (B, K, 128, 128) float32, UMIs per 2 µm bin; arguments and errors as `rates`.

        The rate of gene g is ``Σ_k loadings[g, k] · factors[k]``. Only of a run with factors.
        """
        assert isinstance(self.objective, FactorPoisson)
        return self._check_factors(self._mean(self.objective.factors, tokens, image))

    def _check_factors(self, factors: Float32Array) -> Float32Array:
        names = [f"factor {k + 1}" for k in range(factors.shape[-3])]
        return leave_out_impossible(factors, names, str(self.path), "train again with a lower --lr")

    def rates_of(self, factors: Float32Array) -> Float32Array:
        """Rates (B, P, 128, 128) of the panel's genes from `factors`."""
        assert self.loadings is not None
        return np.einsum("pk,bkrc->bprc", self.loadings[self.genes.places], factors, optimize=True)

    def rates(self, tokens: Array, image: UInt8Array | None = None) -> Float32Array:
        """Rates (B, G, 128, 128) float32, expected UMIs per 2 µm bin, of a batch of patches.

        Args:
            tokens: (B, T, T, D) float16; may have the decoder's margin around them.
            image: (B, 256, 256, 3) uint8 RGB if `wants_image`, else None; with a margin likewise.

        Returns:
            The rates; NaN for every gene in a bin where one is larger than a count could be, which
            the caller counts (`check_left_out`).

        Raises:
            ConfigError: a rate is NaN or infinite, as damaged weights and runs that diverged give.
        """
        return self._check_rates(self._mean(self.objective.rate, tokens, image))

    def _check_rates(self, rates: Float32Array) -> Float32Array:
        symbols, source = self.panel.symbols, str(self.path)
        return leave_out_impossible(rates, symbols, source, "train again with a lower --lr")

    @torch.inference_mode()
    def _mean(
        self,
        of_output: Callable[[Tensor], Tensor],
        tokens: Array,
        image: UInt8Array | None,
        some: Sequence[int] | None = None,
    ) -> Float32Array:
        """What ``of_output`` makes of the decoder's output, as the mean over orientations."""

        def predict(tokens_BTTD: Tensor, image_BPP3: Tensor | None) -> Tensor:
            return of_output(decode(self.decoder, tokens_BTTD, image_BPP3, self.device))

        tokens_BTTD = torch.as_tensor(tokens).to(self.device)
        image_BPP3 = None if image is None else torch.as_tensor(image).to(self.device)
        mean_BKRR = self.orientations.mean(predict, tokens_BTTD, image_BPP3, some)
        found: Float32Array = mean_BKRR.cpu().numpy()
        return found

    @classmethod
    def from_pretrained(
        cls, name: Path | str, *, revision: str | None = None, device: str = "auto"
    ) -> Run:
        """Load a shared run from a local folder or from the Hugging Face Hub.

        Every file is compared with the list in the run's ``config.json``.

        Args:
            name: folder that `save_pretrained` wrote, if there is one of this name; otherwise
                ``ORG/NAME`` on the Hub, which is downloaded once and cached.
            revision: branch, tag or commit on the Hub; a commit pins exactly what is loaded.
            device: where to predict: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            ConfigError: there is no such run, or it is damaged or not whole.

        Example:
            >>> run = Run.from_pretrained("ORG/NAME")  # doctest: +SKIP
        """
        if not Path(name).is_dir():
            return load_run(fetch_run(str(name), revision), device)
        check_listed(Path(name))
        return load_run(name, device)

    def save_pretrained(
        self, folder: Path | str, *, license: str = "", keep_names: bool = False
    ) -> None:
        """Write the run as a folder to share, with a model card; uses no network.

        Names of patients become ``patient-1`` and so on, and paths are taken out; predictions stay
        the same bit by bit.

        Args:
            folder: to write; it must not be there yet.
            license: licence of the shared model, such as ``apache-2.0`` or the address of a text;
                by default that of the encoder.
            keep_names: keep the names of patients.

        Raises:
            ConfigError: the encoder's licence forbids to share the run, or a file is damaged.
        """
        save_run(self.path, Path(folder), license=license, keep_names=keep_names)

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, license: str = "", keep_names: bool = False
    ) -> str:
        """Upload the run to the Hugging Face Hub in one commit, as `save_pretrained` writes it.

        Args:
            repo_id: ``ORG/NAME``; made if it is not there.
            private: whether a new repository is visible to its owners only.
            license, keep_names: as for `save_pretrained`.

        Returns:
            Address of the commit.

        Raises:
            ConfigError: as `save_pretrained`, or the Hub refuses.
        """
        return push_run(self.path, repo_id, license=license, keep_names=keep_names, private=private)

    def check_store(self, store: Store) -> None:
        """Raise `ConfigError` unless the store's tokens are those the decoder was trained on."""
        manifest = store.manifest
        expected = (self.state["encoder"], self.state["grid"], self.state["dim"])
        actual = (manifest["encoder"], manifest["grid"], manifest["dim"])
        if actual != expected:
            raise ConfigError(
                f"{store.path}: expected tokens of {expected[0]['name']} {expected[0]['weights']}; "
                f"got {actual[0]['name']} {actual[0]['weights']}; extract with the run's encoder"
            )


def load_run(path: Path | str, device: str = "auto", *, orientations: int = N_ORIENTATIONS) -> Run:
    """Load the best checkpoint of a run directory.

    Args:
        path: run directory written by ``vst train --run``; or ``hf:ORG/NAME``, optionally with
            ``@REVISION``, for a run on the Hugging Face Hub, which is downloaded once and cached.
        device: where to predict: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        orientations: 8, so that predictions are the mean over the orientations of a patch, or 1
            for the patch as it lies, which takes the decoder an eighth of the time. A run of
            virchow_st 0.1 knows no others.

    Raises:
        ConfigError: there is no such run, or no checkpoint in it.
    """
    if str(path).startswith(_ON_HUB):
        repo, _, revision = str(path).removeprefix(_ON_HUB).partition("@")
        return load_run(fetch_run(repo, revision or None), device, orientations=orientations)
    restored = restore(Path(path))
    where = pick_device(device)
    state = restored.state
    return Run(
        path=Path(path),
        config=restored.config,
        genes=restored.genes,
        split=restored.split,
        state=state,
        decoder=restored.decoder.to(where).eval(),
        objective=restored.objective.to(where).eval(),
        device=where,
        orientations=Orientations.of_run(state, orientations),
    )
