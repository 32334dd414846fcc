"""The runs that predict a slide, loaded once for any number of slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virchow_st.config import PredictConfig
from virchow_st.errors import ConfigError
from virchow_st.field.loadings import Loadings
from virchow_st.metrics.appearance import Appearance
from virchow_st.models.encoders.base import Encoder
from virchow_st.predict.factors import maps_of, panel_of_all
from virchow_st.predict.image import TrainedRun, named, open_encoder
from virchow_st.predict.load import Run, load_run
from virchow_st.run.appearance import known_appearance, read_appearance
from virchow_st.run.panel import Panel
from virchow_st.runtime.progress import Progress
from virchow_st.store.genes import same_ids


@dataclass
class LoadedRuns:
    """One run, or several of the same encoder and genes, and their encoder.

    Attributes:
        runs: the runs.
        panel: the genes of the first run's panel that all runs predict.
        maps: the runs, giving factors where they have any.
        loadings: of the maps of one run after another.
        training: how the training patients of all runs look; empty if a run does not know.
        encoder: loaded when the first slide has been opened.
    """

    runs: Sequence[Run]
    panel: Panel
    maps: Sequence[TrainedRun]
    loadings: Loadings
    training: Sequence[Appearance] = ()
    encoder: Encoder | None = field(default=None, repr=False)

    def with_encoder(self, config: PredictConfig, progress: Progress) -> Encoder:
        """The encoder; its licence's conditions are shown where it is loaded.

        Raises:
            ConfigError: the weights cannot be loaded, or differ from the runs'.
        """
        if self.encoder is None:
            self.encoder = open_encoder(self.runs[0], config.weights, config.device)
            if self.encoder.licence:
                progress.warn(f"{self.encoder.name}: {self.encoder.licence}")
        return self.encoder


def load_runs(paths: Sequence[Path], config: PredictConfig, progress: Progress) -> LoadedRuns:
    """Load runs that predict together.

    Args:
        paths: one run, or several of the same encoder and panel, for their mean and spread.
        config: the device.
        progress: receives a note where the runs predict different genes.

    Raises:
        ConfigError: a run is missing, damaged, given twice, or does not fit the first.
    """
    runs = [load_run(path, config.device, orientations=config.orientations) for path in paths]
    check_alike(runs)
    panel = panel_of_all(runs)
    maps, loadings = maps_of(runs)
    if len(loadings.genes) < len(runs[0].genes.all):
        progress.note(f"{len(loadings.genes):,} genes are predicted by all runs")
    read_looks = known_appearance if config.match_stain else read_appearance
    looks = [read_looks(run.path) for run in runs]
    training = [look for of_run in looks for look in of_run] if all(looks) else []
    return LoadedRuns(runs, panel, maps, loadings, training)


def check_alike(runs: Sequence[Run]) -> None:
    """Raise `ConfigError` unless runs can predict together."""
    first = runs[0]
    for run in runs[1:]:
        if any(run.state[key] != first.state[key] for key in ("encoder", "grid", "dim")):
            raise ConfigError(
                f"{run.path}: expected a run on tokens of {named(first.state['encoder'])}, as "
                f"{first.path}; got {named(run.state['encoder'])}; give runs of one encoder"
            )
        if (run.loadings is None) != (first.loadings is None):
            kinds = [
                f"{'genes directly' if r.loadings is None else 'factors'}" for r in (first, run)
            ]
            raise ConfigError(
                f"{run.path}: expected a run that predicts {kinds[0]}, as {first.path}; got one "
                f"that predicts {kinds[1]}; give runs of one kind"
            )
        if first.loadings is None and not same_ids(run.panel.ids, first.panel.ids):
            raise ConfigError(
                f"{run.path}: expected the genes of {first.path} in their order; got others; give "
                "runs with one --panel file"
            )
    for i, run in enumerate(runs):
        for other in runs[:i]:
            if (run.config, run.split, run.state) == (other.config, other.split, other.state):
                raise ConfigError(
                    f"{run.path}: is the same run as {other.path}; their spread would be 0; give "
                    "runs of other folds or seeds"
                )
