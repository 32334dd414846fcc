"""``vst predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virchow_st.cloud.place import check_local
from virchow_st.config import CohortConfig, PredictConfig
from virchow_st.errors import ConfigError
from virchow_st.runtime.interrupt import exit_code
from virchow_st_cli.cohorts import OF_A_LIST, refuse_cohort, split_cohort
from virchow_st_cli.console import Console
from virchow_st_cli.options import PlaceOnDiskOrUrl, build_config, config_options, with_console

if TYPE_CHECKING:
    from virchow_st.predict.cohort import Outcome


@click.command(short_help="Predict the rates of H&E slides without counts.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("image", type=PlaceOnDiskOrUrl(), required=False)
@click.option("--out", type=PlaceOnDiskOrUrl(), help="folder or file to write")
@click.option(
    "--manifest",
    type=PlaceOnDiskOrUrl(),
    help="CSV file with the columns image,out and optionally mpp,patient, to predict many slides",
)
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path),
    help="another run with the same encoder and panel; the output then has mean and standard "
    "deviation over the runs",
)
@config_options(PredictConfig)
@config_options(CohortConfig)
@with_console
def predict(
    console: Console,
    run: Path,
    image: Path | None,
    out: Path | None,
    manifest: Path | None,
    also: tuple[Path, ...],
    **options: Any,
) -> int:
    """Predict the genes of RUN on all tissue of IMAGE, an H&E slide without counts.

    The output is a SpatialData folder with the H&E image, the tissue mask, and rates at 2 and 8 µm.
    An overview picture of tissue and patches is written next to it. With --manifest, --executor
    shares the slides over workers, and what became of each is kept in NAME.cohort/ beside the list.
    IMAGE, --out and --manifest may be URLs in object storage, such as s3://bucket/slide.svs.
    """
    cohort, options = split_cohort(options)
    if manifest is None:
        refuse_cohort(OF_A_LIST)
    config = build_config(PredictConfig, options)
    check_local({"features": Path(config.features)})
    if manifest is not None:
        if image or out:
            raise ConfigError("--manifest names the slides; leave out IMAGE and --out")
        return _predict_cohort(console, [run, *also], manifest, config, cohort)
    if not (image and out):
        raise ConfigError("expected IMAGE and --out, or --manifest")
    from virchow_st.predict.remote import predict_to

    try:
        n_patches, covered = predict_to([run, *also], image, out, config, console)
    except KeyboardInterrupt as e:
        console.error("stopped; what was finished is kept, the same command goes on there")
        return exit_code(e)
    console.result(f"{out}: {n_patches} patches, {covered:.1%} of the tissue")
    return 0


def _predict_cohort(
    console: Console,
    runs: list[Path],
    manifest: Path,
    config: PredictConfig,
    cohort: CohortConfig,
) -> int:
    """Predict every slide of the manifest; a slide that fails does not stop the others."""
    from virchow_st.predict.cohort import predict_cohort

    outcomes = predict_cohort(runs, manifest, config, console, cohort)
    console.table(
        "Slides",
        ["image", "out", "patches", "tissue in them", "outcome"],
        [
            [
                o.slide.image.name,
                o.slide.out.name,
                "" if o.n_patches is None else str(o.n_patches),
                "" if o.covered is None else f"{o.covered:.1%}",
                o.text,
            ]
            for o in outcomes
        ],
        justify="left",
    )
    _print_quality(console, outcomes)
    return int(not all(o.is_done for o in outcomes))


def _print_quality(console: Console, outcomes: Sequence[Outcome]) -> None:
    """The quality of the slides that were predicted; docs/predict.md says what the numbers mean."""

    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    rows = [
        [
            o.slide.image.name,
            text(q.tissue, ".1%"),
            text(q.pen, ".1%"),
            text(q.sharpness, ".0f"),
            text(q.sharpness_ratio, ".2f"),
            text(q.stain_shift, ".1f"),
            text(q.stain_angle, ".1f"),
        ]
        for o in outcomes
        if (q := o.quality) is not None
    ]
    if rows:
        heads = ["image", "tissue", "pen", "sharpness", "of training", "stain SD", "stain °"]
        console.table("Quality", heads, rows, styles={})
