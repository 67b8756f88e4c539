"""One search in which every epoch is trained, in this process: Captune's own, or that of one of `RIVALS`.

One trial trains at a time, on one thread. Captune's searcher, scheduler and budget are driven by its
simulator, whose learning curves are here the trainable itself; rivals by the loop below. Ray and its gangs
are left out on purpose: they cost the same under every method. A paused trial waits in memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any, Literal

from benchmarks.simulated.driving import Method, RandomSearch
from benchmarks.simulated.ray_rivals import RayAsha
from benchmarks.trained.problems import Captioner, Problem
from trainables.order import Failure
from tuning.events import TrialEnded
from tuning.experiment import Experiment
from tuning.search.earlier import Earlier
from tuning.search.warm_start import earlier_trials
from tuning.simulation.simulator import simulate
from tuning.simulation.trainable_curves import TrainableCurves
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import write_description

OURS, ASHA, RANDOM = "captune auto", "ray asha + optuna", "random"
#: Ours with `search.from`: an earlier experiment on the problem's `earlier`, which is not charged.
WARM = "captune auto, from another"
METHODS = (OURS, ASHA, RANDOM, WARM)
#: Where each method has trials evaluated in full, at its rungs and at the end, as an experiment's scheduler.
SCHEDULERS: dict[str, Literal["auto", "asha", "none"]] = {
    OURS: "auto",
    ASHA: "asha",
    RANDOM: "none",
    WARM: "auto",
}
REDUCTION_FACTOR = 3


class Record:
    """Trains what it is asked to, and writes down what every epoch cost and showed."""

    def __init__(self, curves: TrainableCurves):
        self._curves = curves
        self.worker_s: list[float] = []
        """Seconds of processor time of each epoch, with what it took to set up and to evaluate."""
        self.cider: list[float | None] = []
        """Of each epoch; None where the trial was not evaluated in full, or diverged."""
        self.trials: set[str] = set()

    @property
    def epochs(self) -> int:
        """Epochs spent, the ones in which trials diverged included."""
        return len(self.worker_s)

    def __call__(self, trial_id: str, config: Mapping[str, Any], epoch: int) -> Mapping[str, float] | Failure:
        """An epoch, as `tuning.simulation.simulator.Curves`.

        Raises:
            RuntimeError: the trial failed other than by diverging.
        """
        began = time.process_time()
        figures = self._curves(trial_id, config, epoch)
        seconds = time.process_time() - began
        if isinstance(figures, Failure) and figures.state != "diverged":
            raise RuntimeError(f"{dict(config)}: {figures.error or figures.reason}")
        self.trials.add(trial_id)
        self.worker_s.append(seconds)
        self.cider.append(None if isinstance(figures, Failure) else figures.get("cider"))
        return figures if isinstance(figures, Failure) else {**figures, "seconds": seconds}


def search(problem: Problem, method: str, seed: int, budget_epochs: int) -> dict[str, Any]:
    """Run `method`; `worker_s` and `cider` of each epoch, how many `trials`, and the search's own `search_s`.

    The n-th trial to begin has the same initial weights and order of data under every method, by `seed`.
    """
    experiment = described(problem, method, seed, budget_epochs)
    earlier = None
    if method == WARM:
        assert problem.earlier is not None
        earlier = learnt(experiment, described(problem.earlier, OURS, seed, budget_epochs))
    curves = TrainableCurves(experiment)
    record = Record(curves)
    began = time.process_time()
    if method in (OURS, WARM):
        for _ in simulate(experiment, record, gangs=1, listeners=[curves], earlier=earlier):
            pass
    elif method == RANDOM:
        drive(RandomSearch(problem, seed), problem, record, curves, budget_epochs)
    else:
        grace = experiment.scheduler.rungs()[0]
        asha = RayAsha(problem, seed, "optuna", grace, REDUCTION_FACTOR)
        drive(asha, problem, record, curves, budget_epochs)
    search_s = time.process_time() - began - sum(record.worker_s)
    curves.close()
    return {
        "worker_s": record.worker_s,
        "cider": record.cider,
        "trials": len(record.trials),
        "search_s": search_s,
    }


def described(problem: Problem, method: str, seed: int, budget_epochs: int) -> Experiment:
    """The search as an experiment of Captune's."""
    return Experiment.from_dict(
        {
            "name": problem.name,
            "trainable": f"{Captioner.__module__}:{Captioner.__name__}",
            "data": problem.data,
            "model": problem.model,
            "search_space": problem.space,
            "objectives": [{"metric": "cider", "mode": "max"}],
            "search": {"seed": seed},
            "scheduler": {
                "algorithm": SCHEDULERS[method],
                "max_epochs": problem.max_epochs,
                "reduction_factor": REDUCTION_FACTOR,
            },
            "budget": {"epochs": budget_epochs},
        }
    )


def learnt(experiment: Experiment, before: Experiment) -> Earlier:
    """Run the experiment `before` and take from its tables what `experiment` would."""
    with TemporaryDirectory() as storage:
        before = before.model_copy(update={"storage": storage})
        write_description(before, command=["captune"])
        writer, curves = ResultsWriter(before), TrainableCurves(before)
        for _ in simulate(before, curves, gangs=1, listeners=[curves, writer]):
            pass
        writer.close()
        curves.close()
        sources = experiment.search.model_copy(update={"from_": (before.name,)})
        return earlier_trials(experiment.model_copy(update={"search": sources}), storage)


def drive(
    method: Method, problem: Problem, record: Record, curves: TrainableCurves, budget_epochs: int
) -> None:
    """Train what `method` says, one trial after the other, until the epochs are spent.

    It hears of an epoch where the trial was evaluated in full; its loss is the negative CIDEr.
    """
    while record.epochs < budget_epochs and (start := method.next()) is not None:
        for epoch in range(start.start_epoch + 1, problem.max_epochs + 1):
            figures = record(start.trial_id, start.config, epoch)
            diverged, decision = isinstance(figures, Failure), "continue"
            if diverged or "cider" in figures:
                loss = math.nan if diverged else -figures["cider"]
                decision = method.report(start.trial_id, epoch, (loss,))
            if diverged or decision != "continue" or record.epochs == budget_epochs:
                break
        over = TrialEnded(trial_id=start.trial_id, state="stopped", reason="", at=datetime.now(UTC))
        curves.handle(over)  # none of these methods pauses a trial
