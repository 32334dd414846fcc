"""``vst extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import CohortConfig, ExtractConfig
from virchow_st.errors import ConfigError
from virchow_st.runtime.distributed import Processes
from virchow_st_cli.cohorts import OF_A_LIST, refuse_cohort, split_cohort
from virchow_st_cli.console import Console
from virchow_st_cli.options import PlaceOnDiskOrUrl, build_config, config_options, with_console


@click.command(short_help="Encode a slide into a store.")
@click.argument("outs", type=PlaceOnDiskOrUrl(), required=False)
@click.option(
    "--image",
    type=PlaceOnDiskOrUrl(),
    help="full-resolution microscope image of the slide",
)
@click.option("--store", type=PlaceOnDiskOrUrl(), help="store to write, NAME.vst")
@click.option("--patient", help="name of the slide's patient")
@click.option(
    "--manifest",
    type=PlaceOnDiskOrUrl(),
    help="CSV file with the columns patient,outs,image,store, to extract a whole cohort",
)
@config_options(ExtractConfig)
@config_options(CohortConfig)
@with_console
def extract(
    console: Console,
    outs: Path | None,
    image: Path | None,
    store: Path | None,
    patient: str | None,
    manifest: Path | None,
    **options: Any,
) -> int:
    """Encode the patches of a slide and write tokens and counts to a store. Resumes automatically.

    OUTS is Space Ranger's outs/, binned_outputs/ or square_002um/. With --manifest, --executor
    shares the slides over workers, and what became of each is kept in NAME.cohort/ beside the list.
    OUTS, --image, --store and --manifest may be URLs in object storage, such as s3://bucket/P1.vst.
    """
    cohort, options = split_cohort(options)
    if manifest is None:
        refuse_cohort(OF_A_LIST)
    config = build_config(ExtractConfig, options)
    if manifest is not None:
        if outs or image or store or patient:
            raise ConfigError("--manifest names the slides; leave out OUTS and the other options")
        return _extract_cohort(console, manifest, config, cohort)
    if Processes.here().size > 1:
        raise ConfigError(
            "torchrun: expected --manifest, whose slides are divided among the processes; extract "
            "a single slide without torchrun"
        )
    if not (outs and image and store and patient):
        raise ConfigError("expected OUTS, --image, --store and --patient, or --manifest")
    from virchow_st.extract.remote import RemoteSlide

    with RemoteSlide(outs, image, store, patient, config, console) as slide:
        _, n_patches, n_genes = slide.extract(console)
    console.result(f"{store}: {n_patches} patches, {n_genes} genes")
    return 0


def _extract_cohort(
    console: Console, manifest: Path, config: ExtractConfig, cohort: CohortConfig
) -> int:
    """Extract every slide of the manifest; a slide that fails does not stop the others."""
    from virchow_st.extract.cohort import extract_cohort

    outcomes = extract_cohort(manifest, config, console, cohort)
    if not outcomes:  # one of torchrun's processes; the first works and shows the table
        return 0
    console.table(
        "Slides",
        ["patient", "store", "patches", "outcome"],
        [
            [o.patient, str(o.store), "" if o.n_patches is None else str(o.n_patches), o.text]
            for o in outcomes
        ],
        justify="left",
    )
    return int(any(o.n_patches is None for o in outcomes))
