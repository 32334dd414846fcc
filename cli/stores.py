"""``vst inspect`` and ``vst verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st_cli.console import Console, size_text
from virchow_st_cli.fields import inspect_fields, is_field
from virchow_st_cli.images import inspect_images, is_image
from virchow_st_cli.options import with_console


@click.command(short_help="Show the content of stores, fields or images.")
@click.argument(
    "stores",
    metavar="STORES|FIELDS|IMAGES",
    type=click.Path(path_type=Path),
    nargs=-1,
    required=True,
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="print everything, and the manifest without the gene list, as JSON; a list for several "
    "stores",
)
@with_console
def inspect(console: Console, stores: tuple[Path, ...], as_json: bool) -> None:
    """Show the content and origin of stores, one column per store.

    For fields: genes, factors with their leading genes, area, expected UMIs and origin. For images:
    how each would be read, its µm per pixel, and whether it can be H&E.
    """
    if any(is_image(path) for path in stores):
        inspect_images(console, stores, as_json)
        return
    if any(is_field(path) for path in stores):
        inspect_fields(console, stores, as_json)
        return
    from virchow_st.run.exposure import slide_exposure
    from virchow_st.store.reader import open_store
    from virchow_st.store.summary import summarise

    opened = [open_store(path) for path in stores]
    summaries = [
        {**summarise(store), "exposure": slide_exposure(store).summary()} for store in opened
    ]
    if as_json:
        console.json(summaries[0] if len(summaries) == 1 else summaries)
        return
    columns = [_column(summary) for summary in summaries]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    console.table(
        str(stores[0]) if len(stores) == 1 else "Stores",
        ["", "value"] if len(stores) == 1 else ["", *map(str, stores)],
        [[label, *(column.get(label, "") for column in columns)] for label in labels],
        justify="left",
    )


def _column(summary: dict[str, Any]) -> dict[str, str]:
    """Label and text of every row of the table for a store."""
    from virchow_st.extract.registration import describe

    encoder = summary["encoder"]
    rows = {
        "patient": summary["patient"],
        "slide": summary["slide"],
        "patches": f"{summary['n_patches']} of 256 µm",
        "tissue in patches": f"{summary['tissue_covered']:.1%}",
        "genes": f"{summary['n_genes']:,}",
        "UMIs": f"{summary['total_umi']:,}",
        "non-zero": f"{summary['nonzero']:.2%} of genes × tissue bins",
        "non-zero, top 50 genes": f"{summary['nonzero_top50']:.2%}",
        "bytes per non-zero count": f"{summary['bytes_per_nonzero']:.2f}",
        "stripes": _stripes(summary["exposure"]),
        "token grid": f"{summary['grid']}×{summary['grid']}×{summary['dim']}, "
        f"{summary['token_um']} µm, {summary['token_dtype']}",
        "size on disk": size_text(summary["bytes"]),
    }
    for name, n_bytes in summary["record_bytes"].items():
        rows[f"  {name.replace('_', ' ')}"] = size_text(n_bytes)
    rows |= {
        "encoder": f"{encoder['name']} {encoder['weights']}",
        "licence": encoder["licence"] or "no restriction noted",
        "image scale": f"{summary['mpp']:.3f} µm/px",
    }
    for name, source in summary["job"]["inputs"].items():
        if isinstance(source, dict):  # a file: its name and fingerprint
            rows[name] = ", ".join(map(str, source.values()))
    rows["options"] = _listed(summary["job"]["options"])
    if "lattice" in summary:
        rows["lattice"] = f"starts at bin {summary['lattice']} (row, column)"
    if "registration" in summary:
        rows["registration"] = describe(summary["registration"])
    rows["written by"] = _listed(summary["software"])
    return rows


def _stripes(exposure: dict[str, Any]) -> str:
    parts = []
    for axis in ("row", "col"):
        name = {"row": "rows", "col": "columns"}[axis]
        sd, se = exposure[f"{axis}_sd"], exposure[f"{axis}_se"]
        parts.append(f"{name} differ by {sd:.1%} (± {se:.1%})" if sd else f"none of {name}")
    return ", ".join(parts)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


@click.command(short_help="Compare every checksum of a store.")
@click.argument("store", type=click.Path(path_type=Path))
@with_console
def verify(console: Console, store: Path) -> int:
    """Verify every checksum and unpack every record; exit code 1 if any is damaged."""
    from virchow_st.store.reader import open_store
    from virchow_st.store.reader import verify as verify_store

    opened = open_store(store)
    faults = verify_store(opened, lambda done, total: console.step(done, total, "patches"))
    for fault in faults:
        console.result(fault)
    console.result(f"{store}: {'damaged' if faults else f'{len(opened)} patches, all intact'}")
    return int(bool(faults))
