"""The search's own method: one model of all results decides what runs next, a new trial or a paused one.

A Gaussian process over configurations and epochs predicts how good each configuration would be after its
last epoch, and how much of that each rung on the way will tell (freeze and thaw, Swersky et al. 2014).
Whenever a gang is free, what goes on until its next rung is the paused trial, or the new configuration, whose
epochs are worth most (`tuning/search/worth.py`): where early epochs tell the truth many trials begin and few
go on, where they mislead those that begin go on.

* The first trials are random draws and run to the last rung, with a budget of trials some of them: from them
  the rungs' worth is learnt.
* Of many gangs, one in eight trains beyond each rung where several trials wait to choose from: else nothing
  would be whole for as long as beginning another is worth more. With eight it gains nothing.
* With a budget of trials all of them begin, and have as many epochs as under ASHA (`allotment.py`); when the
  last has begun, the model alone decides who goes on. When these are spent, one more goes on, to its end:
  whoever is expected to end best, if it waits.
* No configuration is tried twice, but where a small space has hardly another: what a second training would
  tell is luck.
* A twentieth of the decisions are random draws and as many the promotions that ASHA would make, so that no
  error of the model lasts. After ALWAYS trials these are ever more of them, so that no decision costs more.
* Losses are modelled on a scale of their own that is cut off above: neither units nor outliers matter.
  Constraints come first (feasibility first, Deb et al. 2002). Of several objectives each has a process of
  its own, and the improvement is of the hypervolume.
* Beside another scheduler this file only proposes, what is expected to improve most in the end.

All of it is a function of what was observed, in the order in which it was: a restarted driver decides what
the first one would have. This file knows neither Ray nor files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces import Space
from tuning.search.allotment import Allotment
from tuning.search.encoding import Encoding
from tuning.search.evidence import Evidence
from tuning.search.gaussian_process import one_thread
from tuning.search.outlook import CANDIDATES, Outlook
from tuning.search.proposers import Observed, Proposal
from tuning.search.ranking import Standing
from tuning.search.scheduler import Decision, PromotingAsha, Scheduler

#: Trials that are drawn at random, and as far as may be are not paused below the last rung, before the model.
STARTUP = 8  # results of so many trials suffice for the first fit, see `evidence.py`
#: Share of decisions that are random draws, and share that are ASHA's promotions.
RANDOM, BY_RANK = 0.05, 0.05
#: With more gangs than this, one in so many trains beyond each rung.
FINISHING = 8
#: Decisions after which the model is asked more and more seldom: that bounds its cost.
ALWAYS = 1000
TO_THE_END = "expected to end best, trained to its end"


@dataclass(frozen=True)
class _Choice:
    """What is to run next: a paused trial by its number, or a new configuration."""

    paused: int | None = None
    config: dict[str, Any] | None = None
    why: str = ""
    """One line for a person."""


class Auto(Scheduler):
    """A proposer and a scheduler in one, which `tuning/search/strategies.py` hands to both places."""

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        levels: Sequence[int],
        objectives: int = 1,
        reduction_factor: int = 3,
        trials: int | None = None,
        earlier: Sequence[Observed] = (),
    ):
        """Know nothing but `earlier` yet.

        Args:
            levels: epochs at which trials are evaluated in full, ascending; the last is that of their end.
            objectives: how many there are.
            reduction_factor: of the ASHA that has a share of the promotions; of so many one is promoted to
                have something whole.
            trials: how many may begin, where that is what the budget counts.
            earlier: trials of earlier experiments.
        """
        self._seed, self._levels = seed, tuple(levels)
        self._encoding = Encoding(space)
        self._reduction_factor = reduction_factor
        self._asha = PromotingAsha(rungs=self._levels[:-1], reduction_factor=reduction_factor)
        self._evidence = Evidence(self._encoding, self._levels, objectives, earlier)
        self._allotment = Allotment(self._levels, trials, reduction_factor)
        self._startup = STARTUP - len(earlier)
        self._decides = True
        self._waiting: dict[int, int] = {}  # number -> epoch of the rung at which it is paused
        self._paused_before: dict[int, str] = {}  # number -> reason, in an earlier run
        self._done: dict[int, int] = {}  # number -> epochs
        self._last: int | None = None  # number of the one that went on when all epochs were given away
        self._reported: Sequence[tuple[int, int]] = ()
        self._looked_at = 0  # how many of those reports are taken in
        self._choice: tuple[Any, _Choice | None] = (None, None)  # and what it was made from, before it

    def watch(
        self, observed: Sequence[Observed], reported: Sequence[tuple[int, int]], *, decides: bool
    ) -> None:
        """Learn from these trials, which somebody else keeps up to date; to be called once, first.

        Args:
            observed: all trials, by number.
            reported: number and epoch of every result, and number and 0 of every end, as they came.
            decides: whether this object is the scheduler, too, or only proposes.
        """
        self._evidence.observed, self._reported, self._decides = observed, reported, decides

    # As a proposer.

    def propose(self, number: int, observed: Sequence[Observed]) -> Proposal:
        """A draw, or the configuration from which most is expected."""
        if not self._decides:
            self._take_in_results()
        choice = self._choose(or_new=True)
        if choice is None or choice.config is None:  # a paused trial, but its promotion was not asked for
            choice = self._drawn(self._rng(), "no promotion was asked for")
        return Proposal(choice.config or {}, why=choice.why)

    # As a scheduler.

    def report(self, trial_id: str, epoch: int, standing: Standing) -> Decision:
        """Pause a trial at its rung, unless it is one of the first, or the last."""
        self.went_on(trial_id, epoch)
        if epoch not in self._levels:
            return Decision("continue")
        number = int(trial_id)
        self._evidence.add(number, epoch)
        self._allotment.until(number, epoch)
        if epoch == self._levels[0]:
            self._allotment.come()
        decision = self._asha.report(trial_id, epoch, standing)
        if decision.action != "pause":
            return decision
        stays = decision.reason == self._paused_before.get(number)
        if not stays and (why := self._why_unpaused(number, epoch)):
            return Decision("continue", f"rung {decision.rung}: {why}", decision.rung)
        self._waiting[number] = epoch
        return decision

    def next_promotion(self, *, or_new: bool = True) -> tuple[str, str] | None:
        """The paused trial that is to go on before any new one begins."""
        choice = self._choose(or_new=or_new)
        if choice is None or choice.paused is None:
            return None
        self._leaves_its_rung(choice.paused)
        return f"{choice.paused:05d}", choice.why

    def went_on(self, trial_id: str, epoch: int) -> None:
        """It does not wait any more, nor in ASHA's rungs."""
        number = int(trial_id)
        if self._waiting.get(number, epoch) < epoch:
            self._leaves_its_rung(number)
        self._done[number] = max(epoch, self._done.get(number, 0))
        self._allotment.until_next(number, epoch - 1)
        self._asha.went_on(trial_id, epoch)

    def was_paused(self, trial_id: str, reason: str) -> None:
        """It stays there: a larger budget has more for the first trials, but not for those that waited."""
        self._paused_before[int(trial_id)] = reason

    def drop(self, trial_id: str) -> None:
        """Never promote it; if it failed, remember where it would have been evaluated next as a bad place."""
        number = int(trial_id)
        trial = self._evidence.trial(number)
        if number in self._waiting and not trial.over:  # it is to run to its end
            self._leaves_its_rung(number)
        self._waiting.pop(number, None)
        if trial.over:
            self._allotment.until(number, self._done.get(number, 0))
            if self._levels[0] not in trial.results:
                self._allotment.lose()
        self._asha.drop(trial_id)
        self._evidence.add_failure(number)

    # The decision.

    def _choose(self, *, or_new: bool) -> _Choice | None:
        """One choice per state of knowledge: asked again before anything happened, the same answer.

        None where no new trial may begin and none that is paused may go on.
        """
        state = (or_new, len(self._evidence.observed), len(self._evidence), tuple(self._waiting))
        if self._choice[0] != state:
            decide = self._decide if or_new else self._decide_without_new
            self._choice = (state, decide(self._rng()))
        return self._choice[1]

    def _decide(self, rng: np.random.Generator) -> _Choice | None:
        kind = rng.random()
        asked = rng.random() < ALWAYS / max(ALWAYS, len(self._evidence.observed))
        if self._evidence.trials < STARTUP:
            return self._drawn(rng, f"fewer than {STARTUP} trials have a result")
        if kind < RANDOM:
            return self._drawn(rng, f"one decision in {1 / RANDOM:.0f} is")
        if not asked or kind < RANDOM + BY_RANK:
            if chosen := self._promoted_by_rank():
                return chosen
            if not asked:
                return self._drawn(rng, f"beyond {ALWAYS} trials the model is asked more seldom")
        return self._most_promising(rng, or_new=True)

    def _decide_without_new(self, rng: np.random.Generator) -> _Choice | None:
        if not any(map(self._allotment.fits, self._waiting.values())):
            return self._expected_best(rng)
        if self._evidence.trials < STARTUP:
            fitting = [n for n, epoch in self._waiting.items() if self._allotment.fits(epoch)]
            standings = {n: self._evidence.standing(n, self._waiting[n]) for n in fitting}
            best = min(fitting, key=lambda n: (-self._waiting[n], standings[n].key, n))
            return _Choice(paused=best, why=f"the best that waits after epoch {self._waiting[best]}")
        return self._most_promising(rng, or_new=False)

    def _promoted_by_rank(self) -> _Choice | None:
        """ASHA's promotion, unless the model has promoted that trial already."""
        if not all(map(self._allotment.fits, self._waiting.values())):
            return None  # whom ASHA names it does not name again
        trial_id, why = self._asha.next_promotion() or ("-1", "")
        number = int(trial_id)
        return _Choice(paused=number, why=f"{why} (ASHA)") if number in self._waiting else None

    @one_thread()
    def _most_promising(self, rng: np.random.Generator, *, or_new: bool) -> _Choice | None:
        outlook = self._outlook(rng)
        if (needed := self._needed_to_finish(self._running(), outlook.order)) is not None:
            return needed
        new = outlook.new(self._stops(0) if self._decides else None) if or_new else None
        rungs = sorted(filter(self._allotment.fits, set(self._waiting.values())))
        paused = [outlook.paused(epoch, self._stops(epoch)) for epoch in rungs]
        options = [option for option in (new, *paused) if option is not None]
        if not options:
            return None
        best = max(options, key=lambda option: option.price)  # of equals the new one
        return _Choice(best.paused, best.config, outlook.why(best, options))

    @one_thread()
    def _expected_best(self, rng: np.random.Generator) -> _Choice | None:
        """When all epochs are given away: the trial that is expected to end best, if it waits; once."""
        if self._last is not None or not self._waiting or self._evidence.trials < STARTUP:
            return None
        order = self._outlook(rng).order
        able = (n for n in order if n >= 0 and not self._evidence.trial(n).failed)
        best = next(able, None)
        return _Choice(paused=best, why=TO_THE_END) if best in self._waiting else None

    def _why_unpaused(self, number: int, epoch: int) -> str:
        """Why a trial does not wait at this rung; empty: it does."""
        if number == self._last:
            return TO_THE_END
        passes = self._passes(number, epoch) and self._allotment.pass_unchosen(number, epoch)
        return "one of the first trials" if passes else ""

    def _leaves_its_rung(self, number: int) -> None:
        """A trial that waits goes on, whoever decided it: as the last, if its next rung does not fit."""
        rung = self._waiting.pop(number)
        if self._last is None and not self._allotment.fits(rung):
            self._last = number
        self._allotment.until_next(number, rung)

    def _outlook(self, rng: np.random.Generator) -> Outlook:
        return Outlook(self._encoding, self._evidence, self._running(), self._waiting, rng)

    def _drawn(self, rng: np.random.Generator, why: str) -> _Choice:
        """A random configuration that no trial has; one of theirs where many draws find no other."""
        for _ in range(CANDIDATES):
            config = self._encoding.draw(rng, 1)[0]
            if not self._evidence.tried(config):
                break
        return _Choice(config=config, why=f"drawn at random: {why}")

    def _needed_to_finish(self, running: Sequence[int], order: Sequence[int]) -> _Choice | None:
        """Of those that wait at a rung beyond which too few train, the first in `order`.

        It is one of several, else whatever comes to a rung first would be the one. The first trials of all
        do not count: they run far unchosen.
        """
        gangs = len(running) + 1  # one is free
        needed = gangs // FINISHING if gangs > FINISHING else 0
        done = [max(self._evidence.trial(n).results, default=0) for n in running if n >= self._startup]
        for rung in self._levels[-2::-1]:
            if sum(epoch >= rung for epoch in done) < needed and self._allotment.fits(rung):
                waiting = [number for number in order if self._waiting.get(number) == rung]
                if len(waiting) >= self._reduction_factor:
                    why = f"the best of {len(waiting)} after epoch {rung}, beyond which too few train"
                    return _Choice(paused=waiting[0], why=why)
        return None

    def _stops(self, epoch: int) -> list[int]:
        """Levels after `epoch` where a trial stops, at most three: the first, the last but one, the last."""
        left = [level for level in self._levels if level > epoch]
        if epoch == 0:
            next_number = len(self._evidence.observed)
            left = [level for level in left if not self._passes(next_number, level)]
        return left if len(left) < 4 else [left[0], *left[-2:]]

    def _passes(self, number: int, level: int) -> bool:
        """Whether a trial does not stop at this level: one of the first of all, below the last rung."""
        return number < self._startup and level < self._levels[-2:][0]

    def _take_in_results(self) -> None:
        """What another scheduler was told since the last time, in that order."""
        for number, epoch in self._reported[self._looked_at :]:
            if epoch in self._levels:
                self._evidence.add(number, epoch)
            elif epoch == 0:
                self._evidence.add_failure(number)
        self._looked_at = len(self._reported)

    def _running(self) -> list[int]:
        """Trials of which more is to be expected now; another scheduler does not say which are paused."""
        return [
            number
            for number, trial in enumerate(self._evidence.observed)
            if not trial.over and number not in self._waiting and (self._decides or not trial.results)
        ]

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self._seed, len(self._evidence.observed), len(self._evidence)])
