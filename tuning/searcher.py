"""Which configuration is tried next: Optuna, asked and told, with every option said out loud.

This file knows Optuna and the search space. It knows neither Ray nor gangs nor why a trial stopped, and
nothing here decides when a trial starts or ends. The study lives in a journal file, so that
`optuna-dashboard` opens it and a killed driver loses nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial

from search_spaces import Space
from tuning.events import TrialState

_OUTCOMES: dict[str, optuna.trial.TrialState] = {
    "completed": optuna.trial.TrialState.COMPLETE,
    "stopped": optuna.trial.TrialState.PRUNED,
    "diverged": optuna.trial.TrialState.FAIL,
    "failed": optuna.trial.TrialState.FAIL,
    "out_of_memory": optuna.trial.TrialState.FAIL,
}
_VIOLATIONS = "violations"


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
    * `report(trial_id, epoch, value, violations)` after an epoch: objective and constraints as they stand;
    * `finish(trial_id, state, value)` closes it, with what really happened.

    `configs()` are those of all trials ever suggested: after a restart, the driver takes up again, under
    the same trial_id, the trials that its tables do not call finished. Everything is on disk before a call
    returns, so the study is never behind the tables.

    A suggestion depends on the seed, its own number and the outcomes told before it, not on whether the
    process was restarted in between: the sampler is seeded afresh for each.
    """

    def __init__(
        self,
        *,
        path: Path,
        name: str,
        space: Space,
        mode: Literal["max", "min"],
        algorithm: Literal["tpe", "random"] = "tpe",
        seed: int = 0,
        startup_trials: int = 10,
    ):
        """Open the study in the journal at `path`, or create it.

        Args:
            path: the journal file; its folder exists. One process at a time may write.
            name: the study's name.
            space: what to suggest from.
            mode: whether a larger or a smaller objective is better.
            algorithm: see the two samplers below.
            seed: decides the suggestions.
            startup_trials: `tpe` draws at random until so many trials were completed or stopped.

        Raises:
            ValueError: the journal holds a study of this name with the other mode.
        """
        self._space = space
        self._algorithm = algorithm
        self._seed = seed
        self._startup_trials = startup_trials
        maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        direction = maximize if mode == "max" else minimize
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line per study on the terminal
        self._study = optuna.create_study(
            study_name=name,
            storage=_open_journal(path),
            sampler=self._sampler(0),
            direction=direction,
            load_if_exists=True,
        )
        if self._study.direction != direction:
            raise ValueError(f"{path}: the study {name!r} was made to {self._study.direction.name.lower()}")

    def suggest(self) -> Suggestion:
        """Open a trial."""
        number = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = self._sampler(number)
        trial = self._study.ask()
        assert trial.number == number, "another process writes into this study"
        return Suggestion(trial_id=f"{number:05d}", config=self._space.suggest(trial))

    def report(self, trial_id: str, epoch: int, value: float, violations: Sequence[float] = ()) -> None:
        """Note how a trial stands. What is reported again, or of a closed trial, changes nothing.

        Args:
            trial_id: a trial that was suggested.
            epoch: number of epochs done.
            value: the objective; may be NaN.
            violations: for each constraint how far the trial is beyond it, at most 0 where it is kept.
                Always in the same order. Those of the last report count.
        """
        trial = self._find(trial_id)
        if trial.state.is_finished() or epoch in trial.intermediate_values:
            return  # a killed driver came this far already
        opened = self._reopen(trial)
        opened.report(value, step=epoch)
        if violations:
            opened.set_user_attr(_VIOLATIONS, list(violations))

    def finish(self, trial_id: str, state: TrialState, value: float | None = None) -> None:
        """Close a trial; one that is closed already stays as it is.

        Args:
            trial_id: an open trial.
            state: a final one. `completed` counts with `value`; `stopped` with the last reported value,
                ranked behind the completed ones and those that were stopped later; the others teach the
                sampler nothing. Behind all of these come trials that break a constraint.
            value: the objective of a completed trial. Without a finite one it counts as failed.
        """
        if state not in _OUTCOMES:
            raise ValueError(f"a trial ends as one of {', '.join(_OUTCOMES)}, but got {state!r}")
        trial = self._find(trial_id)
        if trial.state.is_finished():
            return
        opened = self._reopen(trial)
        for index, excess in enumerate(trial.user_attrs.get(_VIOLATIONS, ())):
            if f"{index}" not in trial.constraints:  # else a killed driver came this far already
                opened.set_constraint(f"{index}", math.inf if math.isnan(excess) else excess)
        opened.set_user_attr("state", state)  # Optuna has one word for three kinds of failure
        if state != "completed":
            self._study.tell(trial.number, state=_OUTCOMES[state])
        elif value is None or not math.isfinite(value):
            self._study.tell(trial.number, state=_OUTCOMES["failed"])
        else:
            self._study.tell(trial.number, value, state=_OUTCOMES["completed"])

    def configs(self) -> dict[str, Mapping[str, Any]]:
        """Configuration of every trial that was suggested, by trial_id, oldest first."""
        configs: dict[str, Mapping[str, Any]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                configs[f"{trial.number:05d}"] = dict(trial.params)
                continue
            # Asking again returns what was drawn; where a driver was killed between two draws, the rest.
            self._study.sampler = self._sampler(trial.number)
            configs[f"{trial.number:05d}"] = self._space.suggest(self._reopen(trial))
        return configs

    def _find(self, trial_id: str) -> FrozenTrial:
        trials = self._study.get_trials(deepcopy=False)
        if not trial_id.isdigit() or int(trial_id) >= len(trials):
            raise ValueError(f"trial {trial_id!r} was never suggested; there are {len(trials)} trials")
        return trials[int(trial_id)]

    def _reopen(self, trial: FrozenTrial) -> Trial:
        # Study.ask opens new trials only; this is what it does for them. Neither sampler draws here.
        return Trial(self._study, trial._trial_id)

    def _sampler(self, number: int) -> BaseSampler:
        """A sampler that is seeded for the trial of this number."""
        digest = hashlib.sha256(f"{self._seed}/{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self._algorithm == "random":
            return RandomSampler(seed=seed)
        # Optuna 5 defaults to multivariate and constant_liar. Under Ray's OptunaSearch, which tells stopped
        # trials as complete, those searched worse than random; told the truth they are about as good as
        # these. The options that are not named here are deprecated: naming them warns.
        return TPESampler(
            seed=seed,
            n_startup_trials=self._startup_trials,
            n_ei_candidates=24,
            multivariate=False,
            group=False,
            constant_liar=False,
        )


def _open_journal(path: Path) -> JournalStorage:
    """The journal, repaired after a killed driver: half a last line cut off, its lock broken after 3 s."""
    if path.exists():
        with path.open("r+b") as journal:
            content = journal.read()
            journal.truncate(content.rfind(b"\n") + 1)
    lock = JournalFileSymlinkLock(str(path), grace_period=3)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
