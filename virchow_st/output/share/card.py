"""The model card of a shared run, README.md, made from the run's own files.

It is made from the files as they are shared, so it contains no name that these do not contain. The
card asks the author to add what a run does not record, such as tissue and scanner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virchow_st.config import TrainConfig
from virchow_st.output.share.gene_scores import gene_section
from virchow_st.output.share.listing import is_repo
from virchow_st.output.share.markdown import code, plain_text, table
from virchow_st.output.share.terms import Terms
from virchow_st.run.integrity import SPLIT
from virchow_st.run.results import METRICS, read_metrics, read_per_gene
from virchow_st.run.score_table import (
    ABUNDANCE_COLUMNS,
    SCALES,
    abundance_caption,
    abundance_rows,
    abundance_title,
    below_baselines,
    score_rows,
    table_caption,
    table_title,
)
from virchow_st.run.split import SplitFile, read_split
from virchow_st.run.transcriptome import RunGenes

_MOST_LISTED = 200  # genes; more are counted, and panel.tsv has their names
_TAGS = ("spatial-transcriptomics", "gene-expression", "visium-hd", "histopathology", "pathology",
         "biology")  # fmt: skip
_INSET = "&nbsp;&nbsp;"


def model_card(
    folder: Path,
    name: str,
    config: TrainConfig,
    genes: RunGenes,
    state: Mapping[str, Any],
    terms: Terms,
) -> str:
    """Text of the card: Markdown with the YAML header that the Hub reads.

    Args:
        folder: the shared run.
        name: of the model, ``ORG/NAME``.
        config, genes, state: of the shared run.
        terms: its licence.
    """
    is_scored = (folder / METRICS).is_file()
    parts = [
        _header(state["encoder"], terms, is_scored),
        f"# {code(name)}",
        _what(config, genes),
        _use(name, state.get("decoder_package", "")),
        _encoder(state),
        _genes(genes),
        _training(read_split(folder / SPLIT), config, state),
    ]
    if is_scored:
        metrics = read_metrics(folder)
        parts += [_scores(metrics), gene_section(read_per_gene(folder))]
    parts += [_not_tested(is_scored), _files(is_scored)]
    return "\n\n".join(parts) + "\n"


def _header(encoder: Mapping[str, str], terms: Terms, is_scored: bool) -> str:
    """YAML; texts are quoted as JSON, which YAML reads too."""
    lines = ["---", f"license: {terms.id}"]
    if terms.name:
        lines.append(f"license_name: {json.dumps(terms.name)}")
        lines.append(f"license_link: {json.dumps(terms.link)}")
    repo = encoder["name"].removeprefix("hf-hub:").removeprefix("hf_hub:")
    if "/" in repo:
        lines.append(f"base_model: {json.dumps(repo)}")
    lines += ["library_name: virchow_st", "pipeline_tag: image-to-image", "tags:"]
    lines += [f"- {tag}" for tag in _TAGS]
    if is_scored:
        lines += ["metrics:", "- pearsonr"]
    return "\n".join([*lines, "---"])


def _what(config: TrainConfig, genes: RunGenes) -> str:
    n = len(genes.all)
    rate = "expected UMIs per bin" if config.loss != "mse" else "UMIs per bin, by regression"
    return (
        f"Predicts the expression of {n} gene{'s' * (n > 1)} from an H&E image: {rate} of 2 µm, as "
        f"Visium HD would count them. A `{config.decoder}` decoder with the loss `{config.loss}`, "
        "trained with virchow_st on tokens of a frozen encoder."
    )


def _use(name: str, package: str) -> str:
    source = f"hf:{name}" if is_repo(name) else name
    needs = ""
    if package:
        install = code(f"pip install {package.replace(' ', '==')}")
        needs = f"The decoder is part of another package; install it first: {install}.\n\n"
    return f"""## How to use it

{needs}```python
import virchow_st as vst
run = vst.Run.from_pretrained({json.dumps(name, ensure_ascii=False)})
rates = run.predict_image(image, mpp=0.5)  # image: (H, W, 3) uint8 RGB, H&E at mpp µm per pixel
```

`rates["GENE"]` is then a map with one value for each 2 µm bin. For whole slides:
{code(f"vst predict {source} SLIDE.svs --out slide.zarr")}."""


def _encoder(state: Mapping[str, Any]) -> str:
    encoder = state["encoder"]
    licence = encoder["licence"] or "part of virchow_st, under its MIT licence"
    if encoder["name"] != "stain" and not encoder["licence"]:
        licence = "not stated by its source"
    return (
        "## Encoder\n\n"
        f"{code(encoder['name'])}, weights {code(encoder['weights'] or '–')}, "
        f"{state['grid']} × {state['grid']} tokens of {state['dim']} numbers per patch of "
        f"256 µm. Its licence: {code(licence)}. Its weights are not part of this model."
    )


def _genes(genes: RunGenes) -> str:
    labels = genes.panel.labels
    lines = ["## Genes", ""]
    if len(genes.all) > len(genes.panel):
        lines += [
            f"{len(genes.all)} genes, listed in `genes.tsv`, are predicted as sums of factors. "
            f"{len(genes.panel)} of them form the panel, by which the model was selected:", "",
        ]  # fmt: skip
    if len(labels) <= _MOST_LISTED:
        lines.append(", ".join(map(code, labels)))
    else:
        lines.append(f"{len(labels)} genes, listed in `panel.tsv`.")
    return "\n".join(lines)


def _training(split: SplitFile, config: TrainConfig, state: Mapping[str, Any]) -> str:
    rows = []
    for part, label in (
        ("train", "training"),
        ("validation", "validation"),
        ("test", "test"),
    ):
        entries = split[part]  # type: ignore[literal-required]
        patients = {entry["patient"] for entry in entries}
        n_patches = sum(len(entry["patches"]) for entry in entries)
        rows.append((label, *map(str, (len(patients), len(entries), n_patches))))
    return "\n\n".join(
        [
            "## Training data",
            table(("part", "patients", "slides", "patches of 256 µm"), rows),
            "Validation patches are blocks of the training patients' slides and chose the epoch "
            f"({state['epoch']}). No patient is in both training and test.",
            "The run does not record species, tissue, disease, stain, scanner, laboratory, or how "
            "patients consented. **Author: please add them here.**",
        ]
    )


def _scores(metrics: dict[str, Any]) -> str:
    rows = [
        (f"**{row.label}**" if row.kind == "head" else _INSET * row.inset + plain_text(row.label),
         *(f"{plain_text(cell)}{' !' * (i in row.below)}" for i, cell in enumerate(row.cells)))
        for row in score_rows({"this model": metrics})
    ]  # fmt: skip
    parts = [
        "## Scores on the held-out patient",
        plain_text(f"{table_title(metrics)}.") + " Columns are bin sides in µm.",
        table(("", *SCALES), rows),
        plain_text(table_caption(metrics).replace("\n", " ")),
    ]
    if below := below_baselines({"this model": metrics}):
        parts.append("\n".join(f"- {plain_text(line)}" for line in below))
    if "all_genes" in metrics:
        parts += [
            f"### {plain_text(abundance_title(metrics))}",
            table(("", *ABUNDANCE_COLUMNS), abundance_rows(metrics)),
            plain_text(abundance_caption(metrics).replace("\n", " ")),
        ]
    return "\n\n".join(parts)


def _not_tested(is_scored: bool) -> str:
    tested = (
        "- Any other patient than the held-out one. The intervals come from blocks of that "
        "patient's slides and say nothing about how patients differ.\n"
        if is_scored
        else "- Anything: the run was not evaluated, so nothing is known of its accuracy. "
        "`vst evaluate` scores it.\n"
    )
    return (
        "## What it was not tested on\n\n"
        f"{tested}"
        "- Tissues, diseases, preparations (fixed or frozen), stains, laboratories, scanners and\n"
        "  magnifications other than those of its slides.\n"
        "- Any clinical use. It is for research; a predicted map is no measurement."
    )


def _files(is_scored: bool) -> str:
    scores = "; scores in `metrics.json` and, gene by gene, `per_gene.csv`" if is_scored else ""
    return (
        "## Files\n\n"
        "Weights as safetensors, settings as TOML, the rest JSON and tables; nothing is pickled. "
        "`config.json` lists every file with its SHA-256, which is compared when the model is "
        f"loaded{scores}. Paths and, unless the author kept them, names of patients were taken out."
    )
