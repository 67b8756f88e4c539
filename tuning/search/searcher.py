"""Which configuration is tried next: what was suggested and how it fared, kept on disk and shown a proposer.

This file knows Optuna's storage and the order of a trial's life. How a configuration is chosen is
`tuning/search/proposers.py`'s and `tuning/search/auto.py`'s business; Ray, gangs and why a trial stopped are
nobody's here. The study lies in a journal file, so that `optuna-dashboard` opens it and a killed driver loses
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, create_trial

from search_spaces import Space
from tuning.events import TrialState
from tuning.search.journal import open_journal
from tuning.search.proposers import Observed, Proposal, Proposer
from tuning.search.ranking import Standing
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.configurations import in_domain

_OUTCOMES: dict[str, optuna.trial.TrialState] = {
    "completed": optuna.trial.TrialState.COMPLETE,
    "paused": optuna.trial.TrialState.PRUNED,
    "stopped": optuna.trial.TrialState.PRUNED,
    "diverged": optuna.trial.TrialState.FAIL,
    "failed": optuna.trial.TrialState.FAIL,
    "out_of_memory": optuna.trial.TrialState.FAIL,
}
#: What is kept of a proposal beside its configuration, as user attributes of the study's trial.
_PROPOSED = ("generation", "parent", "parent_epoch", "why")


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One trial to run."""

    trial_id: str
    """Five digits, counting from "00000"; the same in the study, the tables and the checkpoints."""
    config: Mapping[str, Any]
    """Hyperparameters by dotted name; inactive conditional ones are absent."""


class Searcher:
    """Suggests configurations and learns from how they fared.

    The seam to whoever drives a run, in the order of a trial's life:

    * `suggest()` opens a trial and says its configuration;
    * `report(trial_id, epoch, standing)` after an epoch: how it stands against objectives and constraints;
    * `finish(trial_id, state)` closes it, with what really happened.

    After a restart the driver tells again what its tables hold: `configs()` are those of all trials ever
    suggested; those that the tables do not call finished are taken up under the same trial_id. Suggestions
    and ends are on disk before a call returns, so the study is never behind the tables.

    A suggestion depends on the seed, its own number and the outcomes told before it, not on whether the
    process was restarted in between.
    """

    def __init__(
        self,
        *,
        path: Path | None,
        name: str,
        space: Space,
        modes: Sequence[str],
        proposer: Proposer,
        start: Sequence[Proposal] = (),
    ):
        """Open the study in the journal at `path`, or create it.

        Args:
            path: the journal file; its folder exists. One process at a time may write. None: in memory.
            name: the study's name.
            space: what to suggest from.
            modes: `max` or `min` for each objective.
            proposer: chooses configurations.
            start: what comes first; hyperparameters that are left out are the proposer's choice.

        Raises:
            ValueError: the journal holds a study of this name with other objectives.
        """
        self._space, self._proposer = space, proposer
        self._start = start
        self._signs = [-1.0 if mode == "max" else 1.0 for mode in modes]
        self.observed: list[Observed] = []
        """All trials ever suggested, oldest first; kept up as they are reported."""
        self.reported: list[tuple[int, int]] = []
        """Number and epoch of every result, and number and 0 of every end, as they came."""
        directions = [optuna.study.StudyDirection[f"{mode.upper()}IMIZE"] for mode in modes]
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # else a line per study, and gp's, on the terminal
        self._study = optuna.create_study(
            study_name=name,
            storage=InMemoryStorage() if path is None else open_journal(path),
            directions=directions,
            load_if_exists=True,
        )
        if self._study.directions != directions:
            made = ", ".join(direction.name.lower() for direction in self._study.directions)
            raise ValueError(f"{path}: the study {name!r} was made to {made}")
        # Optuna looks a trial up by copying the list of all of them; the storage's own numbers spare that.
        self._ids: list[int] = []
        for trial in self._study.get_trials(deepcopy=False):
            known = {name: trial.user_attrs[name] for name in _PROPOSED if name in trial.user_attrs}
            self._remember(Proposal(trial.params, **known), trial._trial_id)

    def suggest(self) -> Suggestion | None:
        """Open a trial; None where the proposer has no more."""
        number = len(self.observed)
        proposal = self._proposer.propose(number, self.observed)
        if number < len(self._start):
            drawn = {} if proposal is None else proposal.config
            first = self._start[number]
            given = {name: in_domain(self._space[name], value) for name, value in first.config.items()}
            proposal = replace(first, config=self._space.complete(given, drawn))
        if proposal is None:
            return None
        distributions = self._space.distributions()
        template = create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=proposal.config,
            distributions={name: distributions[name] for name in proposal.config},
            user_attrs={name: value for name in _PROPOSED if (value := getattr(proposal, name))},
        )
        # Not Study.ask: it opens the trial first and writes each hyperparameter with a wait for the disk.
        storage_id = self._study._storage.create_new_trial(self._study._study_id, template_trial=template)
        self._remember(proposal, storage_id)
        return Suggestion(trial_id=f"{number:05d}", config=proposal.config)

    def report(self, trial_id: str, epoch: int, standing: Standing, violations: Sequence[float] = ()) -> None:
        """Note how a trial stands. What is reported again, or of a closed trial, changes nothing on disk.

        Args:
            trial_id: a trial that was suggested.
            epoch: number of epochs done.
            standing: losses and violation; may be NaN.
            violations: for each constraint how far the trial is beyond it, at most 0 where it is kept.
                Always in the same order. Those of the last report count.
        """
        self._find(trial_id).results[epoch] = standing
        self.reported.append((int(trial_id), epoch))
        if len(self._signs) > 1:  # Optuna has no intermediate values for several objectives
            self._note(trial_id, f"values/{epoch}", self._values(standing))
        else:
            trial = self._frozen(trial_id)
            if not trial.state.is_finished() and epoch not in trial.intermediate_values:
                self._reopen(trial).report(self._values(standing)[0], step=epoch)
        if violations:
            self._note(trial_id, "violations", list(violations))

    def finish(self, trial_id: str, state: TrialState) -> None:
        """Close a trial; one that is closed already stays as it is.

        Args:
            trial_id: an open trial.
            state: a final one, or `paused` for one that this run leaves for good. `completed` counts with
                what was reported last, and as failed if that is not a number.
        """
        if state not in _OUTCOMES:
            raise ValueError(f"a trial ends as one of {', '.join(_OUTCOMES)}, but got {state!r}")
        observed = self._find(trial_id)
        observed.over, observed.failed = state != "paused", state in WENT_WRONG
        self.reported.append((int(trial_id), 0))
        trial = self._frozen(trial_id)
        if trial.state.is_finished():
            return
        opened = self._reopen(trial)
        for index, excess in enumerate(trial.user_attrs.get("violations", ())):
            if f"{index}" not in trial.constraints:  # else a killed driver came this far already
                opened.set_constraint(f"{index}", math.inf if math.isnan(excess) else excess)
        opened.set_user_attr("state", state)  # Optuna has one word for three kinds of failure
        last = observed.results[max(observed.results)] if observed.results else None
        values = None
        if state == "completed":
            values = self._values(last) if last is not None and last.finite else None
            state = "completed" if values else "failed"
            observed.failed = not values
        elif state in ("paused", "stopped") and len(self._signs) == 1 and last is not None and last.finite:
            values = self._values(last)  # as Study.tell does for a pruned trial
        self._study._storage.set_trial_state_values(trial._trial_id, _OUTCOMES[state], values)

    def configs(self) -> dict[str, Mapping[str, Any]]:
        """Configuration of every trial that was suggested, by trial_id, oldest first."""
        return {f"{number:05d}": trial.config for number, trial in enumerate(self.observed)}

    def _remember(self, proposal: Proposal, storage_id: int) -> None:
        remembered = {name: getattr(proposal, name) for name in _PROPOSED}
        self.observed.append(Observed(dict(proposal.config), **remembered))
        self._ids.append(storage_id)

    def _find(self, trial_id: str) -> Observed:
        if not trial_id.isdigit() or int(trial_id) >= len(self.observed):
            raise ValueError(f"trial {trial_id!r} was never suggested; there are {len(self.observed)} trials")
        return self.observed[int(trial_id)]

    def _values(self, standing: Standing) -> list[float]:
        return [sign * loss for sign, loss in zip(self._signs, standing.losses, strict=True)]

    def _frozen(self, trial_id: str) -> FrozenTrial:
        return self._study._storage.get_trial(self._ids[int(trial_id)])

    def _reopen(self, trial: FrozenTrial) -> Trial:
        # Study.ask opens new trials only; this is what it does for them. No sampler draws here.
        return Trial(self._study, trial._trial_id)

    def _note(self, trial_id: str, key: str, value: Any) -> None:
        trial = self._frozen(trial_id)
        if not trial.state.is_finished() and trial.user_attrs.get(key) != value:
            self._study._storage.set_trial_user_attr(trial._trial_id, key, value)
