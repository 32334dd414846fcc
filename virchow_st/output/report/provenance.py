"""The provenance of a run as a section of the page: model, split, slides, settings, versions."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from virchow_st.errors import StoreError
from virchow_st.output.report.markup import Cell, Markup, facts, joined, table, tag
from virchow_st.run.evaluated import RunResults
from virchow_st.runtime.software import versions
from virchow_st.store.manifest import read_manifest

_PACKAGES = ("virchow_st", "torch", "timm", "numpy", "numba", "h5py", "lmdb")
_NO_RESTRICTION = "no restriction noted"


def run_section(results: RunResults, keep_paths: bool) -> Markup:
    """How the run was made: model, settings, versions, stores and split.

    Of paths only the last name, unless they are to be kept: the page is made to be shared.
    """
    metrics, encoder = results.metrics, results.metrics["encoder"]
    n_epochs = len(results.history)
    model = facts(
        [
            ("Encoder", f"{encoder['name']}, weights {encoder['weights']}"),
            ("Encoder's licence", encoder["licence"] or _NO_RESTRICTION),
            ("Decoder", f"{metrics['decoder']}, of epoch {metrics['epoch']} of {n_epochs}, "
                        "the best in validation"),
            ("Loss", f"{metrics['loss']} at {', '.join(map(str, results.config.scales))} µm, "
                     f"balanced by {results.config.balance}"),
            ("Seed", results.config.seed),
            ("Written by", _versions()),
        ]
    )  # fmt: skip
    settings = asdict(results.config)
    settings.pop("stores")
    settings["panel"] = _place(settings["panel"], keep_paths)
    rows = [(name, _setting(value)) for name, value in settings.items()]
    return joined(
        [
            tag("h3", "Model"),
            model,
            tag("h3", "Split"),
            _split(results),
            tag("h3", "Slides"),
            _slides(results, keep_paths),
            tag(
                "details",
                tag("summary", "All settings (config.toml)"),
                table(("setting", "value"), rows),
            ),
        ]
    )


def _split(results: RunResults) -> Markup:
    content = results.split
    parts: dict[str, list[Any]] = {
        "train": content["train"], "validation": content["validation"], "test": content["test"],
    }  # fmt: skip
    n_patches: Counter[tuple[str, int]] = Counter()
    for part in parts:
        for member in parts[part]:
            n_patches[part, member["store"]] += len(member["patches"])
    rows = [
        (slide["patient"], *(n_patches[part, slide["store"]] or "–" for part in parts))
        for slide in content["slides"]
    ]
    total = (sum(n for (part, _), n in n_patches.items() if part == p) for p in parts)
    rows.append(("all", *total))
    rule = (
        "No patient is in both training and test; the validation patches are spatial blocks of the "
        "training patients. Genes, means and scalers come from training patches."
    )
    digest = tag("p", "Hash of the split: ", tag("code", content["xxh64"]), class_="caption")
    counts = table(("patient", "training patches", "validation", "test"), rows, numbers=3)
    return joined([tag("p", rule), counts, digest])


def _slides(results: RunResults, keep_paths: bool) -> Markup:
    """What the stores' manifests say of the run's slides, as far as they are still there."""
    rows, software = [], Counter[str]()
    places = zip(results.config.stores, results.split["slides"], strict=True)
    for store, slide in places:
        manifest = _manifest(Path(store), slide["records_xxh64"])
        if isinstance(manifest, str):
            rows.append(
                (slide["patient"], manifest, *["–"] * 5, tag("code", slide["records_xxh64"]))
            )
            continue
        tissue, image = manifest["tissue_bins"], manifest["job"]["inputs"].get("image", {})
        packages = (f"{name} {number}" for name, number in manifest["software"].items())
        software[", ".join(packages)] += 1
        rows.append(
            (
                slide["patient"],
                manifest["slide"],
                joined([image.get("name", "–"), " ", tag("code", image.get("fingerprint", ""))]),
                f"{manifest['mpp']:.3f}",
                manifest["n_patches"],
                f"{tissue['patches'] / max(tissue['slide'], 1):.0%}",
                manifest.get("registration", {}).get("verdict", "–"),
                tag("code", slide["records_xxh64"]),
            )
        )
    heads = ("patient", "slide", "image and its fingerprint", "µm/px", "patches",
             "of the tissue", "registration", "hash of the store's records")  # fmt: skip
    paths = (joined([_place(store, keep_paths), tag("br")]) for store in results.config.stores)
    made: list[tuple[str, Cell]] = [("Stores", joined(paths))]
    made += [("Extracted with", text) for text in software]
    return joined([table(heads, rows), facts(made)])


def _manifest(store: Path, records: str) -> dict[str, Any] | str:
    """The manifest of a store, or the reason why it does not describe the run's slide."""
    try:
        manifest = read_manifest(store)
    except StoreError:
        return "the store is missing or cannot be read"
    return (
        manifest if manifest["records_xxh64"] == records else "the store was changed after training"
    )


def _versions() -> str:
    installed = versions(_PACKAGES)
    lines = [f"Python {platform.python_version()}", *(f"{n} {v}" for n, v in installed.items())]
    return ", ".join(lines)


def _place(path: str, keep_paths: bool) -> str:
    return path if keep_paths else Path(path).name


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
