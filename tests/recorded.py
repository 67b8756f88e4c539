"""An experiment's folder as a run leaves it behind, from a few numbers."""

from datetime import UTC, datetime, timedelta

from tuning.events import EpochReported, TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.tables.results import load
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import write_description

AT = datetime(2026, 1, 1, tzinfo=UTC)


def describe(tmp_path, **changes):
    """A small experiment that keeps its results under `tmp_path`."""
    tree = {
        "name": "new",
        "trainable": "curves",
        "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
        "objectives": [{"metric": "score", "mode": "max"}],
        "search": {"algorithm": "random"},
        "scheduler": {"min_epochs": 1, "max_epochs": 9, "reduction_factor": 3},
        "budget": {"trials": 6},
        "storage": str(tmp_path),
    }
    return Experiment.from_dict(tree | changes)


def record(experiment, trials):
    """Write the tables of `trials`, each (configuration, figures by epoch, state and, perhaps, why); returns
    the results."""
    write_description(experiment, command=["captune"])
    writer = ResultsWriter(experiment)
    for number, (config, epochs, state, *why) in enumerate(trials):
        trial_id, at = f"{number:05d}", AT + timedelta(minutes=number)
        writer.handle(TrialStarted(trial_id=trial_id, config=config, at=at))
        for epoch, figures in enumerate(epochs, 1):
            metrics = {"score": figures} if isinstance(figures, (int, float)) else figures
            writer.handle(
                EpochReported(
                    trial_id=trial_id,
                    epoch=epoch,
                    attempt=1,
                    metrics={"seconds": 2.0, "worker_s": 2.0} | metrics,
                    checkpoint=f"checkpoints/{trial_id}/{epoch:04d}",
                    gang="gang-0",
                    node="here",
                    at=at,
                )
            )
        if state != "running":
            (reason,) = why or [f"told to be {state}"]
            writer.handle(TrialEnded(trial_id=trial_id, state=state, reason=reason, at=at))
    writer.close()
    return load(experiment.folder)
