"""What a new experiment takes from earlier ones: trials to learn from, or configurations to begin with.

Hyperparameters are matched by name, results by epoch; what does not fit is filled or left out, and said.
What a searcher makes of the trials is for `auto.py` and `optuna_proposers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from search_spaces import Space
from search_spaces.nearest import nearest
from tuning.experiment import Experiment
from tuning.experiment_file import ExperimentError
from tuning.render import count
from tuning.search.earlier import Earlier
from tuning.search.proposers import Observed, Proposal
from tuning.search.ranking import Standing, best_first
from tuning.search.source import Source, read_source
from tuning.tables.comparison import WENT_WRONG, Comparison, Row
from tuning.tables.configurations import (
    configurations,
    in_domain,
    values_of,
)
from tuning.tables.lineage import without_forks
from tuning.tables.schema import figure_column
from tuning.tables.storage import UnknownExperiment, UnreadableResults

#: Configurations to begin with where figures cannot be compared.
FIRST = 4


def earlier_trials(experiment: Experiment, storage: str | Path, data: str | None = None) -> Earlier:
    """What all sources in `search.from` tell, with a line for each that says what was taken.

    Trials are learnt from as if they were the new experiment's where data and model are the same. Where they
    are not, or nothing tells, figures cannot be compared (learning from them all the same found less than no
    source did): then the best FIRST configurations come first, of several such sources in turn.

    A hyperparameter that the earlier experiment searched has its value from there, one that it fixed in
    `model` that value. One that it did not know is drawn at random from its domain, so that no model sees a
    pattern in it; one that only it knew is ignored. Trials with a value outside the new domains, or without
    a result after an epoch at which the new experiment evaluates in full, are left out; those that diverged,
    failed or ran out of memory are taken as failed. A bare table of trials (`.parquet` without the
    experiment beside it) tells of each trial's best epoch only, and ranks it at the highest full epoch that
    is not beyond that one. A constraint whose figure the source lacks counts as kept.

    Args:
        experiment: the new one; its seed decides the draws.
        storage: where names are looked up.
        data: the identity of the new one's data, where that is known: then a folder that was moved is the
            same, and one that has changed is another.

    Raises:
        ExperimentError: a source cannot be read, lacks an objective, shares no hyperparameter, or is this
            experiment itself, or another source by another name.
    """
    trials: list[Observed] = []
    shortlists: list[list[Proposal]] = []
    lines: list[str] = []
    seen: dict[Path, str] = {}
    for index, place in enumerate(experiment.search.from_):
        try:
            source = read_source(place, storage, experiment, data)
            if (other := seen.setdefault(source.place, place)) != place:
                raise ExperimentError([f"is {other!r} by another name; keep one"])
            taken, line = _take(source, experiment, index)
        except (UnknownExperiment, UnreadableResults, ExperimentError) as error:
            problems = (f"got {place!r}: {problem}" for problem in str(error).splitlines())
            path = ("search", "from", index)
            raise ExperimentError([experiment.problem(path, each) for each in problems]) from error
        if source.comparable:
            trials += taken
        else:
            shortlists.append(_best(source, taken))
        lines.append(line)
    in_turn = (each for row in zip_longest(*shortlists) for each in row if each is not None)
    return Earlier(trials, list(islice(in_turn, FIRST)), lines)


def _best(source: Source, taken: Sequence[Observed]) -> list[Proposal]:
    """Configurations that are not the same, the best first: of trials that trained longer before others."""
    trained: dict[int, list[Observed]] = {}
    for trial in taken:
        if not trial.failed:
            trained.setdefault(max(trial.results), []).append(trial)
    found: list[Proposal] = []
    for epoch in sorted(trained, reverse=True):
        for index in best_first([trial.results[epoch] for trial in trained[epoch]]):
            config = dict(trained[epoch][index].config)
            if all(config != each.config for each in found):
                found.append(Proposal(config, why=f"number {len(found) + 1} of {source.name}"))
    return found


def _take(source: Source, experiment: Experiment, index: int) -> tuple[list[Observed], str]:
    comparison, space = Comparison(experiment), experiment.space
    alone = without_forks(source.trials)
    forks, source = len(source.trials) - len(alone), replace(source, trials=alone)
    absent = _absent_constraints(source, experiment, comparison)
    if not set(space) & set(source.searched):
        raise ExperimentError(
            [f"shares no hyperparameter with this one; it searched {_list(source.searched)}"]
        )
    configs = _configs(source, space)
    results = _results(source, experiment, comparison, absent)
    taken: list[Observed] = []
    outside: list[list[str]] = []  # names, of every trial that has such
    states = source.trials["state"] if "state" in source.trials else [""] * len(source.trials)
    for number, ((trial_id, known), state) in enumerate(zip(configs.items(), states, strict=True)):
        standings, failed = results.get(trial_id, {}), state in WENT_WRONG
        rng = np.random.default_rng([abs(experiment.search.seed), index, number])
        config, misfits = _configuration({**source.fixed, **known}, space, rng)
        if misfits:
            outside.append(misfits)
        elif standings or failed:
            taken.append(Observed(config, standings, over=True, failed=failed))
    parts = [f"{len(taken)} of {len(configs)} trials", *_matching(source, space)]
    if not source.comparable:
        why = f"{_list(source.differs)} not the same there" if source.differs else "nothing tells of its data"
        parts.append(f"{why}: its best come first, its figures do not count")
    if absent:
        parts.append(f"{_list(absent)} was not reported there, its constraint counts as kept")
    if outside:
        parts.append(f"{count(len(outside), 'trial')} outside the domains ({_list(sum(outside, []))})")
    if forks:
        parts.append(f"{count(forks, 'fork')} left out, which had several configurations")
    without = len(configs) - len(taken) - len(outside)
    if without:
        epochs = _list(sorted(experiment.full_epochs()))
        parts.append(f"{count(without, 'trial')} without a result after epoch {epochs}")
    return taken, f"from {source.name}: {'; '.join(parts)}"


def _matching(source: Source, space: Space) -> Iterator[str]:
    """How the hyperparameters of the two go together, in words."""
    yield f"{_list(name for name in space if name in source.searched)} matched"
    for name in space:
        if name in source.fixed:
            yield f"{name} is {source.fixed[name]!r} as it was fixed there"
    drawn = [name for name in space if name not in source.searched and name not in source.fixed]
    if drawn:
        yield f"{_list(drawn)} drawn at random ({'were' if len(drawn) > 1 else 'was'} not searched there)"
    ignored = [name for name in source.searched if name not in space]
    if ignored:
        yield f"{_list(ignored)} ignored"


def _absent_constraints(source: Source, experiment: Experiment, comparison: Comparison) -> list[str]:
    """Constrained columns that the source lacks; refuses one that lacks an objective."""
    table = source.trials if source.epochs is None else source.epochs
    there = [str(name) for name, some in table.select_dtypes("number").notna().any().items() if some]
    objectives = comparison.columns[: len(experiment.objectives)]
    problems = [
        f"its trials reported no {name!r}, which is an objective here{nearest(name, there)}"
        for name in objectives
        if name not in there
    ]
    if problems:
        raise ExperimentError(problems)
    return [name for name in comparison.columns[len(objectives) :] if name not in there]


def _configs(source: Source, space: Space) -> dict[str, dict[str, Any]]:
    """What each trial of the source had, by trial_id."""
    if source.space is not None:
        return configurations(source.trials, source.space)
    domains = {name: space[name] for name in space if name in source.searched}
    return {str(row["trial_id"]): values_of(row, domains) for row in source.trials.to_dict("records")}


def _configuration(
    values: Mapping[str, Any], space: Space, rng: np.random.Generator
) -> tuple[dict[str, Any], list[str]]:
    """A configuration of `space` with `values`, the rest drawn; and the names whose values are outside."""
    given = {name: in_domain(space[name], value) for name, value in values.items() if name in space}
    drawn = {name: space[name].at(rng.random()) for name in sorted(space)}
    config = space.complete(given, drawn)
    return config, [name for name, value in config.items() if not space[name].contains(value)]


def _results(
    source: Source, experiment: Experiment, comparison: Comparison, absent: list[str]
) -> dict[str, dict[int, Standing]]:
    """How each trial stood, by trial_id and full epoch."""
    full_epochs = experiment.full_epochs()
    bounds = [(figure_column(each.metric), each.excess) for each in experiment.constraints]
    results: dict[str, dict[int, Standing]] = {}
    for trial_id, epoch, row in _figures(source, full_epochs):
        figures = {name: value for name, value in row.items() if not pd.isna(value)}
        losses = comparison.losses(figures)
        if epoch not in full_epochs or losses is None:
            continue
        violation = sum(
            max(0.0, excess(figures[name])) if name in figures else math.inf
            for name, excess in bounds
            if name not in absent
        )
        results.setdefault(trial_id, {})[epoch] = Standing(losses, violation)
    return results


def _figures(source: Source, full_epochs: frozenset[int]) -> Iterator[tuple[str, int, Row]]:
    if source.epochs is not None:
        for row in source.epochs.to_dict("records"):
            yield str(row["trial_id"]), int(row["epoch"]), {str(k): v for k, v in row.items()}
        return
    for row in source.trials.to_dict("records"):
        best = 0 if pd.isna(row["best_epoch"]) else row["best_epoch"]
        reached = [epoch for epoch in full_epochs if epoch <= best]
        if reached:
            yield str(row["trial_id"]), max(reached), {str(k): v for k, v in row.items()}


def _list(names: Iterable[Any]) -> str:
    return ", ".join(map(str, dict.fromkeys(names))) or "none"
