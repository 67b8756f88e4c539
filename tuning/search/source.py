"""An earlier experiment, as `search.from` names it: an experiment, its folder, or a bare table of trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from search_spaces import Space
from tuning.experiment import Experiment
from tuning.experiment_file import ExperimentError
from tuning.tables.configurations import differing_settings, searched_names
from tuning.tables.results import load
from tuning.tables.storage import UnreadableResults, read_table, recorded_data


@dataclass(frozen=True)
class Source:
    """What is known of an earlier experiment."""

    name: str
    place: Path
    """What tells it from others: its folder, or the table where there is none."""
    trials: pd.DataFrame
    epochs: pd.DataFrame | None
    """None: of a bare table of trials, which has one epoch of each, its best."""
    space: Space | None
    """What was searched; None where only the table's columns tell."""
    fixed: Mapping[str, Any]
    """Its `model` section."""
    differs: Sequence[str]
    """Settings in which its trials differ from the new ones beside the search."""

    @property
    def comparable(self) -> bool:
        """Whether its figures mean here what they mean there."""
        return self.epochs is not None and not self.differs

    @property
    def searched(self) -> list[str]:
        """Names of its hyperparameters."""
        return searched_names(self.trials) if self.space is None else list(self.space)


def read_source(named: str, storage: str | Path, experiment: Experiment, data: str | None = None) -> Source:
    """What `search.from` names.

    Args:
        named: an experiment in `storage`, a folder, or a table of trials (`.parquet`).
        experiment: the new one.
        data: the identity of its data, where that is known.

    Raises:
        UnknownExperiment: there is none of that name.
        UnreadableResults: it cannot be read, or is no such table.
        ExperimentError: it is the new experiment itself.
    """
    folder: Path | None = None
    path = Path(named)
    if path.suffix == ".parquet":
        siblings = [path.parent / name for name in ("experiment.yaml", "epochs.parquet")]
        if path.name != "trials.parquet" or not all(map(Path.exists, siblings)):
            trials = read_table(path)
            lacking = [name for name in ("trial_id", "best_epoch") if name not in trials]
            if lacking:
                raise UnreadableResults(f"is no table of trials: it has no column {', '.join(lacking)}")
            if not is_numeric_dtype(trials["best_epoch"]):
                raise UnreadableResults("is no table of trials: best_epoch is no column of numbers")
            if trials["trial_id"].duplicated().any():
                raise UnreadableResults("is no table of trials: a trial_id is there twice")
            return Source(path.name, path.resolve(), trials, epochs=None, space=None, fixed={}, differs=())
        folder = path.parent
    found = load(folder or named, storage)
    place = found.folder.resolve()
    if place == experiment.folder.resolve():
        raise ExperimentError(["is this experiment itself; --resume goes on with it, `from` takes others"])
    earlier = found.experiment
    differs = differing_settings(earlier, experiment)
    differs += [f"model.{name}" for name in earlier.space if name in experiment.model]
    if data is not None and (there := recorded_data(place)) is not None:
        # What lies in a folder counts, not its name.
        differs = [name for name in differs if name != "data.path"]
        differs += ["data"] if there != data else []
    return Source(earlier.name, place, found.trials, found.epochs, earlier.space, earlier.model, differs)
