"""Writes a run as a folder that can be shared."""

from __future__ import annotations

from pathlib import Path

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.output.share.card import model_card
from virchow_st.output.share.listing import CARD, best_of, write_listing
from virchow_st.output.share.nameless import copy_nameless
from virchow_st.output.share.terms import sharing_terms
from virchow_st.run.integrity import CONFIG
from virchow_st.run.state import read_state
from virchow_st.run.transcriptome import RunGenes
from virchow_st.runtime.atomic import new_output
from virchow_st.settings import from_toml


def save_run(
    run: Path, out: Path, *, license: str = "", keep_names: bool = False, name: str = ""
) -> None:
    """Write a run and its model card into a new folder to share; uses no network.

    Args:
        run: run directory of ``vst train``.
        out: folder to write; it must not be there yet, and appears whole or not at all.
        license: licence of the shared model: an id of the Hub or the address of a text; empty for
            that of the encoder.
        keep_names: keep the patients' names instead of writing ``patient-1`` and so on.
        name: what the card calls the model, ``ORG/NAME``; empty for the folder's name.

    Raises:
        ConfigError: the encoder's licence forbids it, the run is damaged or missing, or the folder
            is there already.
    """
    check_may_be_shared(run, license)
    if out.exists():
        raise ConfigError(f"{out}: is already there; delete it or give another folder")
    with new_output(out) as aside:
        result = aside / "result"
        result.mkdir()
        fill(run, result, license, keep_names, name or out.resolve().name)


def check_may_be_shared(run: Path, license: str) -> None:
    """Raise `ConfigError` if there is no run, or if its encoder's licence forbids sharing it."""
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run; write it with `vst train … --run {run}`")
    sharing_terms(read_state(best_of(run))["encoder"], license)


def fill(run: Path, folder: Path, license: str, keep_names: bool, name: str) -> None:
    """Write the shared run into an empty folder; arguments and errors as `save_run`."""
    from virchow_st import __version__

    state = copy_nameless(run, folder, keep_names)
    terms = sharing_terms(state["encoder"], license)
    config = from_toml(TrainConfig, folder / CONFIG)
    genes = RunGenes.read(folder)
    about = {
        "version": __version__,
        "decoder": config.decoder,
        "loss": config.loss,
        "n_genes": len(genes.all),
        "encoder": state["encoder"],
    }
    write_listing(folder, about)
    (folder / CARD).write_text(model_card(folder, name, config, genes, state, terms), "utf-8")
