"""What a short trial costs beside its work: gangs against the pattern that Ray's documentation recommends.

Both run trials of the trainable `curves`, whose epochs take no time, on two workers with a process group, one
trial after the other, on one Ray cluster. So the wall clock between the ends of two trials is overhead, all
of it. The documented pattern (Ray 2.60, "Hyperparameter Tuning with Ray Tune") builds a `TorchTrainer` inside
a Tune function; the first trial of either is left out, it also starts Tune, or the gang.

A gang writes a checkpoint with every report. The documented pattern writes them in the trials of five reports
only, so that its trials of one report are as cheap as they can be.

A line more tells what promoting a paused trial costs: the time from its start to the end of its next epoch,
its checkpoint loaded, beside that from one epoch to the next of a trial that stays on its gang. Under the
documented pattern a paused trial begins like any other, with a `TorchTrainer` of its own.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.connect import connect
from trainables.curves import Curves
from trainables.trial import TrialContext
from tuning import Experiment, run
from tuning.events import EpochReported, Event, TrialEnded, TrialStarted

WORKERS = 2
REPORTS = (1, 5)
DOCUMENTED_TRIALS = 2
GANG_TRIALS = 40


def documented_worker(config: dict[str, Any]) -> None:
    """`train_loop_per_worker`: the same calls on the trainable that a gang's worker makes."""
    from ray import train

    worker = train.get_context()
    trial = Curves()
    trial.setup({}, TrialContext(trial_id="0", rank=worker.get_world_rank(), world_size=WORKERS))
    for _ in range(config["reports"]):
        metrics = trial.train_epoch() | trial.evaluate(full=True)
        with contextlib.ExitStack() as stack:
            checkpoint = None
            if config["reports"] > 1 and worker.get_world_rank() == 0:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                trial.save(Path(folder))
                checkpoint = train.Checkpoint.from_directory(folder)
            train.report(metrics, checkpoint=checkpoint)


def documented_driver(config: dict[str, Any]) -> None:
    """The function that Tune runs for each trial."""
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        documented_worker,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(num_workers=WORKERS),
        run_config=train.RunConfig(
            name=f"train-trial_id={tune.get_context().get_trial_id()}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def documented_seconds(trials: int, storage: str) -> dict[int, float]:
    """Seconds per trial by its number of reports, mean over `trials` each."""
    from ray import tune

    ends: list[tuple[int, float]] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            ends.append((trial.config["reports"], time.perf_counter()))

    reports = [REPORTS[0], *(count for count in REPORTS for _ in range(trials))]  # the first: warm-up
    outcome = tune.Tuner(
        documented_driver,
        param_space={"reports": tune.grid_search(reports), "storage": storage},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(name="documented", storage_path=storage, callbacks=[Clock()], verbose=0),
    ).fit()
    assert not outcome.errors, outcome.errors
    taken: dict[int, list[float]] = {count: [] for count in REPORTS}
    for (_, before), (count, end) in zip(ends, ends[1:], strict=False):
        taken[count].append(end - before)
    return {count: sum(seconds) / len(seconds) for count, seconds in taken.items()}


class Ends:
    """A listener that notes when each trial ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def handle(self, event: Event) -> None:
        """Note the end of a trial."""
        if isinstance(event, TrialEnded):
            assert event.state == "completed", event
            self.times.append(time.perf_counter())

    def tick(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def gang_seconds(reports: int, trials: int, storage: str) -> tuple[float, float]:
    """(Seconds per trial, mean; seconds from the start of the run to the end of its first trial)."""
    experiment = Experiment.from_dict(
        {
            "name": f"overhead-{reports}",
            "trainable": "curves",
            "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
            "objectives": [{"metric": "score", "mode": "max"}],
            "search": {"algorithm": "tpe"},
            "scheduler": {"algorithm": "none", "max_epochs": reports},
            "budget": {"trials": trials + 1},
            "training": {"workers": WORKERS, "gangs": 1, "gpus_per_worker": 0},
            "storage": storage,
        }
    )
    ends = Ends()
    begin = time.perf_counter()
    run(experiment, listeners=[ends])
    return (ends.times[-1] - ends.times[0]) / trials, ends.times[0] - begin


class Course:
    """A listener that times epochs: of trials that stayed on their gang, and that were promoted before."""

    def __init__(self) -> None:
        self.stayed: list[float] = []
        self.promoted: list[float] = []
        self._began: dict[str, tuple[list[float], float]] = {}  # where a trial's next epoch counts, and since

    def handle(self, event: Event) -> None:
        """Note a start, or the time since the last one or the last epoch."""
        now = time.perf_counter()
        if isinstance(event, TrialStarted):
            # The first epoch of a trial builds the trial, and counts nowhere.
            self._began[event.trial_id] = (self.promoted if event.trial_id in self._began else [], now)
        elif isinstance(event, EpochReported):
            counts, since = self._began[event.trial_id]
            counts.append(now - since)
            self._began[event.trial_id] = (self.stayed, now)

    def tick(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def promotion_seconds(trials: int, storage: str) -> tuple[float, float]:
    """(Seconds of an epoch before which the trial was promoted, of one on the gang where it was), medians."""
    course = Course()
    experiment = Experiment.from_dict(
        {
            "name": "promotions",
            "trainable": "curves",
            "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
            "objectives": [{"metric": "score", "mode": "max"}],
            "search": {"algorithm": "random"},
            "scheduler": {"algorithm": "asha", "min_epochs": 1, "max_epochs": 4, "reduction_factor": 4},
            "budget": {"trials": trials},
            "training": {"workers": WORKERS, "gangs": 1, "gpus_per_worker": 0},
            "storage": storage,
        }
    )
    run(experiment, listeners=[course])
    return statistics.median(course.promoted), statistics.median(course.stayed)


def main(documented_trials: int = DOCUMENTED_TRIALS, gang_trials: int = GANG_TRIALS) -> None:
    """Print the table and the ratio, that of the case in which gangs gain less."""
    # Cores on paper: the documented pattern's driver, which only waits, takes one beside its workers.
    with tempfile.TemporaryDirectory() as storage, connect("local", cpus=WORKERS + 2):
        # First, while Tune still has its defaults: a run of ours sets some by environment variables.
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # but for a box on the terminal, whatever `verbose` says
        documented = documented_seconds(documented_trials, storage)
        gangs = {reports: gang_seconds(reports, gang_trials, storage) for reports in REPORTS}
        promoted, stayed = promotion_seconds(gang_trials, storage)
    print(f"{'reports':>7}{'documented s':>14}{'gang s':>10}{'ratio':>8}{'gang start s':>14}")
    ratios = []
    for reports, (seconds, start) in gangs.items():
        ratios.append(documented[reports] / seconds)
        print(f"{reports:7}{documented[reports]:14.2f}{seconds:10.3f}{ratios[-1]:8.0f}{start:14.1f}")
    print(
        f"an epoch {1000 * stayed:.0f} ms, before which the trial was promoted {1000 * promoted:.0f} ms: "
        f"a new trial of the documented pattern takes {documented[REPORTS[0]] / promoted:.0f} times as long"
    )
    print(f"gang_overhead ratio={min(ratios):.1f}")
