"""What ``vst inspect FIELD`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from virchow_st.errors import ConfigError
from virchow_st.names import shortened
from virchow_st_cli.console import Console, size_text


def is_field(path: Path) -> bool:
    """Whether a path stands for a field, not a store: a folder of Zarr."""
    return (path / "zarr.json").is_file()


def inspect_fields(console: Console, paths: tuple[Path, ...], as_json: bool) -> None:
    """Show the content and origin of fields, one table per field."""
    from virchow_st.field.read import open_field
    from virchow_st.field.summary import summarise_field

    if not all(is_field(path) for path in paths):
        raise ConfigError("vst inspect: expected stores or fields; got both; give one kind")
    summaries = [summarise_field(open_field(path)) for path in paths]
    if as_json:
        console.json(summaries[0] if len(summaries) == 1 else summaries)
        return
    for path, summary in zip(paths, summaries, strict=True):
        rows = [[label, text] for label, text in _rows(summary).items()]
        console.table(str(path), ["", "value"], rows, justify="left")


def _rows(summary: dict[str, Any]) -> dict[str, str]:
    """Label and text of every row of the table for a field."""
    is_direct = summary["held"] == "rates"
    rows, cols = summary["bins"]
    found = {
        "genes": f"{summary['n_genes']:,}{', held directly' if is_direct else ''}",
        "bins": f"{rows}×{cols} of 2 µm, {rows * 2 / 1000:.1f}×{cols * 2 / 1000:.1f} mm",
        "covered": f"{summary['covered_mm2']:.2f} mm²",
        "tissue": f"{summary['tissue_mm2']:.2f} mm²",
        "expected UMIs": f"{summary['umi']:,.0f}, {summary['umi_per_bin']:.3g} per 2 µm bin",
        "size on disk": size_text(summary["bytes"]),
    }
    found |= _origin(summary["provenance"])
    if not is_direct:
        found["factors"] = f"{summary['n_factors']}, by leading genes and share of the UMIs"
        for k, factor in enumerate(summary["factors"], start=1):
            leading = ", ".join(shortened(gene) for gene in factor["leading_genes"][:6])
            found[f"  {k}"] = f"{factor['share']:6.1%}  {leading}"
    return found


def _origin(provenance: dict[str, Any]) -> dict[str, str]:
    """Rows about what predicted the field; one that says so where others wrote it."""
    try:
        return _predicted_from(provenance)
    except (KeyError, TypeError, ValueError, AttributeError):
        return {"origin": "another program's; --json shows it"}


def _predicted_from(provenance: dict[str, Any]) -> dict[str, str]:
    found = {}
    if runs := provenance.get("runs"):
        found["runs"] = ", ".join(f"{run['path']} (epoch {run['epoch']})" for run in runs)
    if encoder := provenance.get("encoder"):
        found["encoder"] = f"{encoder['name']} {encoder['weights']}"
        found["licence"] = provenance.get("licence") or "no restriction noted"
    if image := provenance.get("image"):
        found["image"] = f"{image['name']}, {image['mpp']:.3f} µm/px"
    if sources := provenance.get("sources"):
        for um, shares in sources.items():
            parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            found[f"{um} µm bins rest on"] = parts
    if software := provenance.get("software"):
        found["written by"] = ", ".join(f"{name} {version}" for name, version in software.items())
    return found
