"""``vst denoise``: the rates of a measured slide, from its counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import DenoiseConfig
from virchow_st.errors import ConfigError
from virchow_st.runtime.interrupt import exit_code
from virchow_st_cli.console import Console
from virchow_st_cli.options import build_config, config_options, with_console

_METHODS = {
    "raw": "raw counts",
    "total": "smoothed total UMIs × gene mean",
    "gaussian": "best Gaussian per gene",
    "prior": "H&E alone",
    "counts": "counts alone",
    "denoised": "denoised",
}
_SCORES = {"d2_poisson": "D²", "pcc": "PCC", "calibration": "Level: 1 right"}


@click.command(short_help="Estimate the rates of a measured slide from its counts.")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="field to write, NAME.zarr")
@click.option(
    "--score",
    is_flag=True,
    help="denoise one half of the UMIs and score it on the other half, beside simpler ways",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="file to write the scores to",
)
@click.option(
    "--run",
    metavar="RUN",
    help="run of other patients, whose predictions from H&E are the prior; or hf:ORG/NAME",
)
@click.option(
    "--failed",
    type=click.Path(path_type=Path),
    help="image with a pixel per 2 µm bin of the array; bins that are not 0 in it failed and are "
    "filled in",
)
@click.option(
    "--h5ad",
    type=click.Path(path_type=Path),
    help="file of the denoised 8 µm bins for scanpy, with the counts in a layer",
)
@config_options(DenoiseConfig)
@with_console
def denoise(
    console: Console,
    store: Path,
    out: Path | None,
    score: bool,
    json_file: Path | None,
    run: str | None,
    failed: Path | None,
    h5ad: Path | None,
    **options: Any,
) -> int:
    """Estimate the rates of all genes of STORE at 2 µm from its counts, without Poisson noise.

    All genes share a few factors, so that weak genes borrow from strong ones. With --run, the H&E
    image helps where counts are few. The output is a rate field with 90 % intervals;
    docs/denoise.md says what to do with it and what not.
    """
    if json_file is not None and not score:
        raise ConfigError("--json: expected --score, whose result it writes; give both")
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"--json: {json_file.parent} is not a folder; create it first")
    config = build_config(DenoiseConfig, options)
    from virchow_st.denoise.store import denoise_store
    from virchow_st.runtime.atomic import write_json
    from virchow_st.runtime.lock import locked

    try:
        done = denoise_store(store, out, config, score, console, run=run, failed=failed, h5ad=h5ad)
    except KeyboardInterrupt as e:
        trains = config.leave_blocks_out and (out is not None or h5ad is not None)
        console.error(
            "stopped; what was trained is kept, the same command goes on"
            if trains
            else "stopped; nothing was kept, the same command starts again"
        )
        return exit_code(e)
    if done.scores is not None:
        _print_scores(console, store, done.scores)
        if json_file is not None:
            with locked(json_file):
                write_json(json_file, done.scores)
    if h5ad is not None:
        console.result(f"{h5ad}: denoised 8 µm bins, {done.n_genes} genes")
    if done.path is not None:
        console.result(
            f"{done.path}: {done.n_genes} genes, {done.n_factors} factors; next: vst inspect "
            f"{done.path}"
        )
    return 0


def _print_scores(console: Console, store: Path, scores: dict[str, Any]) -> None:
    scales = list(scores["scales"])
    methods = {m: name for m, name in _METHODS.items() if m in scores["scales"][scales[0]]}
    rows, rules, styles = [], [], {}
    for score, title in _SCORES.items():
        rows.append([title, *[""] * len(scales)])
        styles[len(rows) - 1] = "bold"
        for method, name in methods.items():
            found = [scores["scales"][scale][method][score] for scale in scales]
            rows.append([f"  {name}", *map(_text, found)])
            styles[len(rows) - 1] = "cyan" if method == "denoised" else ""
        rules.append(len(rows) - 1)
    console.table(
        f"{store.name}: one half of the UMIs, scored on the other half",
        ["", *(f"{scale} µm" for scale in scales)],
        rows,
        tuple(rules[:-1]),
        f"Means over the {len(scores['panel'])} most variable genes. {scores['n_factors']} "
        f"factors, Gaussian of {scores['width_um']:g} µm at the end.",
        styles=styles,
    )
    shown = scales[0], scales[-2]
    others = [method for method in methods if method != "denoised"]
    console.table(
        "Denoised less the other ways: D² (95 % interval)",
        ["", *(f"{scale} µm" for scale in shown)],
        [
            [
                methods[method],
                *(_difference(scores["differences"][method][s]["d2_poisson"]) for s in shown),
            ]
            for method in others
        ],
        caption=f"Intervals from {scores['n_blocks']} blocks of {scores['block_um']} µm drawn with "
        "replacement.",
        styles={},
    )
    for scale in shown:
        deciles = scores["by_abundance"][scale]
        console.table(
            f"D² at {scale} µm by abundance, tenths of the genes",
            ["UMIs per 2 µm bin", "genes", *methods.values()],
            [
                [
                    _small(d["umis_per_bin"]),
                    str(d["n_genes"]),
                    *(_text(d[method]["d2_poisson"]) for method in methods),
                ]
                for d in deciles
            ],
            styles={},
        )


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _difference(found: dict[str, Any]) -> str:
    if found["difference"] is None:
        return "–"
    if found["ci95"] is None:
        return f"{found['difference']:+.3f}"
    low, high = found["ci95"]
    return f"{found['difference']:+.3f} ({low:.3f} to {high:.3f})"


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
