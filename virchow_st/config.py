"""Settings of the jobs as frozen dataclasses, checked on creation and stored as TOML (`settings`).

Every setting is defined once, in this module: the command line derives the ``--option`` and its
help text from the field, and a run's ``config.toml`` is the same dataclass written as TOML.
"""

from __future__ import annotations

from dataclasses import dataclass

from virchow_st.errors import ConfigError
from virchow_st.settings import Checked, setting
from virchow_st.types import SCALES_UM


@dataclass(frozen=True)
class SimulateConfig(Checked):
    """Settings of ``vst simulate``."""

    patients: tuple[str, ...] = setting(("P1", "P2", "P5"), "patients to simulate, one slide each")
    bins: int = setting(640, "side of the capture area in 2 µm bins", at_least=128, at_most=3350)
    genes: int = setting(
        1000,
        "number of genes; more than 1000 have the abundances of a whole transcriptome of 18000",
        at_least=60,
        at_most=40_000,
    )
    seed: int = setting(0, "seed of the random numbers", at_least=0)
    hidden_variation: float = setting(
        0.0,
        "sd of random variation of each gene's log rate over about 40 µm, which H&E does not show",
        at_least=0.0,
        at_most=2.0,
    )
    depth: float = setting(
        0.0, "sd of a further log-normal factor of every slide's depth", at_least=0.0, at_most=1.0
    )
    stripes: float = setting(
        0.0, "sd of further log-normal factors of rows and columns", at_least=0.0, at_most=1.0
    )
    cells: bool = setting(
        False, "write the planted cells too, as Space Ranger 4 writes its segmentation"
    )


@dataclass(frozen=True)
class ExtractConfig(Checked):
    """Settings of ``vst extract``."""

    encoder: str = setting(
        "virchow2",
        "virchow2, stain, efficientnet_lite0, the Hugging Face Hub id of a timm ViT or CNN "
        "(org/name), its name in timm, or the name that an installed package adds "
        "(docs/encoders.md)",
    )
    weights: str = setting(
        "", "local weights file of the encoder, .safetensors, .bin or .pth, instead of the hub"
    )
    token_um: int = setting(
        16,
        "side of a token in µm, 16 or 8; with 8 a patch is encoded as 2×2 images, at 4 times the "
        "cost",
        choices=(16, 8),
    )
    token_dtype: str = setting(
        "float16",
        "number format of stored tokens; int8 takes half the disk space",
        choices=("float16", "int8"),
    )
    matrix: str = setting("filtered", "count matrix to read", choices=("filtered", "raw"))
    min_tissue: float = setting(
        0.5, "smallest share of tissue bins for a patch to be kept", at_least=0.0, at_most=1.0
    )
    lattice: str = setting(
        "origin",
        "place patches from the first bin of the grid, or so that they contain the most tissue",
        choices=("origin", "best"),
    )
    match_stain: str = setting(
        "",
        "run that will predict the store: haematoxylin and eosin are made as strong as in its "
        "training slides before encoding (docs/predict.md)",
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Settings of ``vst train``."""

    stores: tuple[str, ...] = setting((), "stores of the training patients and the test patient")
    test_patient: str = setting("", "patient held out from training, scored by vst evaluate")
    leave_one_out: bool = setting(
        False,
        "train one run per held-out patient, in RUN/fold-PATIENT, and summarise them in "
        "RUN/summary.json",
    )
    panel: str = setting(
        "top50",
        "genes to predict, score and draw: top50, top:N (the N most variable), or a file of gene "
        "ids or symbols; with all, all:top:N or all:FILE every other gene is predicted as well, "
        "through factors (docs/transcriptome.md)",
    )
    factors: int = setting(
        0,
        "number of factors that --panel all predicts every gene from; 0 for the number that fits "
        "held-out training counts best",
        at_least=0,
        at_most=256,
    )
    genes_in: str = setting(
        "any",
        "genes that --panel chooses from, where stores measured different ones: those of any "
        "training store, left out wherever they were not measured, or those that all stores list",
        choices=("any", "all"),
    )
    decoder: str = setting(
        "fusion",
        "how tokens, and for some the image, become rates: fusion, hist2st, hist2st-large, guided, "
        "pixels, img2st, linear (docs/decoders.md), or the name that an installed package adds "
        "(docs/own-decoder.md)",
    )
    loss: str = setting(
        "poisson",
        "Poisson or negative binomial (nb) on raw counts, or squared error (mse) on z-scores",
        choices=("poisson", "nb", "mse"),
    )
    exposure: str = setting(
        "none",
        "what multiplies the rates of a bin and is no expression: the slide's depth and stripes of "
        "rows and columns (auto), its depth alone (depth), or nothing (none) (docs/metrics.md)",
        choices=("auto", "depth", "none"),
    )
    scales: tuple[int, ...] = setting(SCALES_UM, "supervised scales, µm", choices=SCALES_UM)
    balance: str = setting(
        "gradnorm",
        "method that balances the losses of the scales (docs/losses.md)",
        choices=("gradnorm", "uncertainty", "equal"),
    )
    balance_every: int = setting(
        1, "optimiser steps between updates of the weights of the scales", at_least=1
    )
    epochs: int = setting(
        30,
        "number of epochs; an epoch is one pass over the training patches, or several if they are "
        "few",
        at_least=1,
    )
    batch_size: int = setting(4, "patches per batch", at_least=1)
    accumulate: int = setting(1, "batches per optimiser step", at_least=1)
    optimizer: str = setting(
        "muon",
        "Muon for matrices and AdamW for the other parameters (muon), or AdamW for all (adamw)",
        choices=("muon", "adamw"),
    )
    lr: float = setting(3e-3, "peak learning rate", at_least=0.0)
    warmup_epochs: int = setting(1, "epochs of linear warm-up of the learning rate", at_least=0)
    patience: int = setting(
        10, "epochs without a better validation loss before training stops", at_least=1
    )
    ema: float = setting(
        0.0,
        "decay of an exponential moving average of the decoder's weights, such as 0.99; the "
        "average is then validated and saved; 0 for none",
        at_least=0.0,
        at_most=0.99999,
    )
    stain_variation: float = setting(
        -1.0,
        "strength of the random stain variation in training, for patients stained differently; 0 "
        "for slides stained alike; -1 for as much as the training patients differ "
        "(docs/decoders.md)",
        at_least=-1.0,
        at_most=4.0,
    )
    seed: int = setting(
        0,
        "seed of initial weights, patch order, orientations and stain variation",
        at_least=0,
    )
    compile: str = setting(
        "auto",
        "compile the decoder with torch.compile, which takes about a minute; auto compiles on a "
        "GPU for long runs",
        choices=("auto", "always", "never"),
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.leave_one_out and self.test_patient:
            raise ConfigError(
                "leave_one_out: expected it without a test patient, since every patient is the "
                f"test once; got test_patient {self.test_patient!r}; leave one of the two out"
            )
        if self.loss == "mse" and self.exposure != "none":
            raise ConfigError(
                "exposure: expected none with the loss mse, whose z-scores know no exposure; got "
                f"{self.exposure}; choose the loss poisson or nb, or leave --exposure out"
            )


def wants_all_genes(panel: str) -> bool:
    """Whether a panel as ``--panel`` takes it asks for every gene.

    Example:
        >>> wants_all_genes("all"), wants_all_genes("all:top:100"), wants_all_genes("top50")
        (True, True, False)
    """
    return panel == "all" or panel.startswith("all:")


KEEP_PATHS = "write the full paths of input files into the output, not only their names"


@dataclass(frozen=True)
class PredictConfig(Checked):
    """Settings of ``vst predict``."""

    mpp: float = setting(
        0.0, "µm per pixel of the image; 0 to read it from the image file", at_least=0.0
    )
    format: str = setting(
        "spatialdata",
        "a folder with rates at 2 and 8 µm (spatialdata, ome-zarr), or a file with rates at 8 µm "
        "(h5ad, npz)",
        choices=("spatialdata", "ome-zarr", "h5ad", "npz"),
    )
    weights: str = setting(
        "", "local weights file of the encoder, .safetensors, .bin or .pth, instead of the hub"
    )
    min_tissue: float = setting(
        0.5, "smallest share of tissue for a patch to be predicted", at_least=0.0, at_most=1.0
    )
    overlap_um: int = setting(
        32,
        "overlap in µm over which neighbouring patches are blended; with 0 seams are visible",
        choices=(0, 32, 64, 128),
    )
    orientations: int = setting(
        8,
        "orientations of each patch, flipped and turned, that rates are the mean of; 1 takes the "
        "decoder an eighth of the time and predicts a little worse",
        choices=(8, 1),
    )
    match_stain: bool = setting(
        False,
        "make haematoxylin and eosin as strong as in the training slides before encoding "
        "(docs/predict.md)",
    )
    features: str = setting(
        "",
        "folder for a vector per patch of each slide, SLIDE.h5, for multiple-instance learning; "
        "with --manifest also a table of means per slide, slides.csv",
    )
    features_layout: str = setting(
        "stamp",
        "layout of the files of --features",
        choices=("stamp", "trident"),
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    keep_paths: bool = setting(False, KEEP_PATHS)


@dataclass(frozen=True)
class CohortConfig(Checked):
    """Settings of commands that share a list of slides, or folds, over workers."""

    executor: str = setting(
        "none",
        "where the slides of --manifest, or the folds of --leave-one-out, are worked on: none "
        "(this process), local (processes of this machine), slurm (jobs, through submitit) or ray "
        "(docs/cluster.md)",
        choices=("none", "local", "slurm", "ray"),
    )
    workers: int = setting(
        0,
        "number of workers of --executor; 0 for one per GPU of this machine or of the Ray cluster, "
        "or one where there is none",
        at_least=0,
    )
    slurm: tuple[str, ...] = setting(
        (),
        "options of sbatch for each worker, such as partition=gpu,gpus=1,time=4:00:00,mem=32G",
    )
    ray_address: str = setting(
        "", "address of a Ray cluster, or auto; by default Ray is started on this machine"
    )
    ray_gpus: float = setting(
        1.0,
        "GPUs per worker on a Ray cluster that has any; with 0.5 two workers share one",
        at_least=0.0,
    )


@dataclass(frozen=True)
class DenoiseConfig(Checked):
    """Settings of ``vst denoise``."""

    factors: int = setting(
        0,
        "number of factors that all genes share; 0 for the number that fits held-out counts best",
        at_least=0,
        at_most=256,
    )
    leave_blocks_out: int = setting(
        0,
        "train so many decoders on this slide, each without a part of its blocks, whose "
        "predictions are the prior of that part; for a lab without other patients; 0 for none",
        at_least=0,
        at_most=16,
    )
    seed: int = setting(
        0, "seed of the counts that are held out, the factorisation and the training", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.leave_blocks_out == 1:
            raise ConfigError(
                "leave_blocks_out: expected 2 or more, such as 4, or 0 for none; got 1, which "
                "leaves nothing to train on"
            )


@dataclass(frozen=True)
class ExportConfig(Checked):
    """Settings of ``vst export``."""

    format: str = setting(
        "spatialdata",
        "a folder with images at 2 and 8 µm (spatialdata, ome-zarr), or a file with 8 µm bins "
        "(h5ad, npz)",
        choices=("spatialdata", "ome-zarr", "h5ad", "npz"),
    )
    genes: str = setting(
        "",
        "gene symbols or ids separated by commas, or a file of them: from a run or a field the "
        "genes to export (default: all; required for a field by factors), from a store the genes "
        "to write images of (default: none)",
    )
    slide: str = setting("", "test slide to export, if the run has several")
    vitessce: str = setting(
        "",
        "URL at which the folder will be served, for example http://localhost:8000/P5.zarr; writes "
        "a view for Vitessce beside it, P5.vitessce.json",
    )
    keep_paths: bool = setting(False, KEEP_PATHS)


@dataclass(frozen=True)
class CellsConfig(Checked):
    """Settings of ``vst cells``."""

    genes: str = setting(
        "", "gene symbols or ids separated by commas, or a file of them; every gene if empty"
    )
    nuclei: bool = setting(False, "nuclei instead of cells, of files that hold both")
    expand_um: float = setting(
        0.0,
        "let cells (or nuclei) grow by so many µm where no other is nearer",
        at_least=0.0,
        at_most=100.0,
    )
    weights: str = setting(
        "centre",
        "a bin belongs to the cell that its centre lies in, or by the share of its area",
        choices=("centre", "area"),
    )
    mpp: float = setting(
        0.0, "µm per pixel of a label image; 0 to find out", at_least=0.0, at_most=100.0
    )
    slide: str = setting("", "test slide to take, if the run has several")
    keep_paths: bool = setting(False, KEEP_PATHS)
