"""``vst inspect`` and ``vst verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st_cli.console import Console
from virchow_st_cli.options import with_console

_STORE = click.argument("store", type=click.Path(path_type=Path))


@click.command(short_help="Say what a store holds.")
@_STORE
@click.option("--json", "as_json", is_flag=True, help="the manifest without the gene list, as JSON")
@with_console
def inspect(console: Console, store: Path, as_json: bool) -> None:
    """Say what a store holds and where it came from."""
    from virchow_st.store.reader import open_store

    opened = open_store(store)
    summary = _summary(opened)
    if as_json:
        brief = {k: v for k, v in opened.manifest.items() if k != "genes"}
        console.json({**brief, **summary})
        return
    manifest = opened.manifest
    licence = manifest["encoder"]["licence"] or "no restriction noted"
    console.table(
        str(store),
        ["", "value"],
        [
            ["patient, slide", f"{opened.patient}, {manifest['slide']}"],
            ["patches", f"{len(opened)} of 256 µm"],
            ["tissue in patches", f"{summary['tissue_covered']:.1%}"],
            ["genes", f"{len(opened.genes):,}"],
            ["UMIs", f"{summary['total_umi']:,}"],
            ["non-zero, top 50 genes", f"{summary['nonzero_top50']:.2%} of tissue bins"],
            ["bytes a non-zero count", f"{summary['bytes_per_nonzero']:.2f}"],
            ["tokens", f"{manifest['grid']}×{manifest['grid']}×{manifest['dim']} float16"],
            ["encoder", f"{manifest['encoder']['name']} {manifest['encoder']['weights']}"],
            ["licence", licence],
            ["image", f"{manifest['job']['inputs']['image']['name']}, {manifest['mpp']:.3f} µm/px"],
            ["matrix", manifest["job"]["inputs"]["matrix"]["name"]],
            ["size on disk", f"{summary['bytes'] / 2**20:.1f} MiB"],
            ["written by", f"virchow_st {manifest['software']['virchow_st']}"],
        ],
        justify="left",
    )


def _summary(store: Any) -> dict[str, Any]:
    """Figures that need a look at the records."""
    import numpy as np

    from virchow_st.store.format import Kind

    top = np.argsort(-store.genes.totals, kind="stable")[:50]
    nonzero = n_entries = n_bytes = n_tissue = 0
    for patch in store:
        counts = patch.counts()
        nonzero += counts[top].nnz
        n_entries += counts.nnz
        n_bytes += len(store.record(patch.index, Kind.COUNTS))
        n_tissue += int(patch.tissue_mask.sum())
    tissue = store.manifest["tissue_bins"]
    return {
        "total_umi": int(store.genes.totals.sum()),
        "tissue_covered": tissue["patches"] / max(tissue["slide"], 1),
        "nonzero_top50": nonzero / max(n_tissue * len(top), 1),
        "bytes_per_nonzero": n_bytes / max(n_entries, 1),
        "bytes": sum(f.stat().st_size for f in store.path.iterdir()),
    }


@click.command(short_help="Compare every checksum of a store.")
@_STORE
@with_console
def verify(console: Console, store: Path) -> int:
    """Compare every checksum and unpack every record; exit code 1 if any is damaged."""
    from virchow_st.store.reader import open_store
    from virchow_st.store.reader import verify as verify_store

    opened = open_store(store)
    faults = verify_store(opened, lambda done, total: console.step(done, total, "patches"))
    for fault in faults:
        console.result(fault)
    console.result(f"{store}: {'damaged' if faults else f'{len(opened)} patches, all sound'}")
    return int(bool(faults))
