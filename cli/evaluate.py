"""``vst evaluate``: score runs on their test patient."""

from __future__ import annotations

from pathlib import Path

import click

from virchow_st.errors import ConfigError
from virchow_st_cli.console import Console
from virchow_st_cli.options import with_console
from virchow_st_cli.scores import print_comparison, print_scores, short_names


@click.command(short_help="Score runs on their test patient.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    help="truth.h5 of a simulated test slide, to compare with the true rates as well",
)
@click.option(
    "--gene-sets",
    type=click.Path(path_type=Path),
    help="GMT file whose gene sets are scored as well; for a run with --panel all",
)
@click.option(
    "--regions",
    type=click.Path(path_type=Path),
    help="regions of the test slide with classes, to score each class: .geojson or a label image",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="file to write the comparison of several runs to",
)
@with_console
def evaluate(
    console: Console,
    runs: tuple[Path, ...],
    device: str,
    truth: Path | None,
    gene_sets: Path | None,
    regions: Path | None,
    json_file: Path | None,
) -> None:
    """Score the best decoder on the test patient; writes metrics.json, per_gene.csv and maps.

    Several runs of the same panel and test patient are also compared: is one better than another?
    """
    if json_file is not None and len(runs) == 1:
        raise ConfigError("--json: expected several runs to compare; got one, see its metrics.json")
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"--json: {json_file.parent} is not a folder; create it first")
    from virchow_st.evaluation.evaluate import check_comparable, evaluate_run
    from virchow_st.run.compare import compare_runs
    from virchow_st.runtime.atomic import write_json
    from virchow_st.runtime.lock import locked

    if len(runs) > 1:
        check_comparable(runs)
    metrics = [evaluate_run(run, device, console, truth, gene_sets, regions) for run in runs]
    if len(runs) == 1:
        (only,) = metrics
        print_scores(console, {f"{only['decoder']}, {only['loss']}": only})
    else:
        names = short_names(runs)
        print_scores(console, dict(zip(names.values(), metrics, strict=True)))
        comparison = compare_runs(runs)
        print_comparison(console, comparison, names)
        if json_file is not None:
            with locked(json_file):
                write_json(json_file, comparison)
    for run in runs:
        console.result(f"{run / 'metrics.json'}; next: vst figures {run}")
