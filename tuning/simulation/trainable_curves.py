"""Learning curves for `tuning.simulation.simulator.simulate` from the experiment's own trainable, run in this
process.

For trainables that cost next to nothing, a formula or a small model of one's own: every simulated epoch is
run. Figures are those of a real trial on one CPU worker, from the same seeds.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.figures import figures
from trainables.order import Failure
from trainables.trial import Trainable, TrialContext, TrialDiverged, resolve_trainable
from tuning.events import FINAL_STATES, Event, TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.tables.lineage import trial_seed

#: A setting of this name is how long an epoch takes; here it passes in virtual time only.
PACE = "seconds_per_epoch"


class TrainableCurves:
    """One instance of the trainable per trial, open until the trial is over.

    Pass it to `simulate` both as curves and among the listeners, by which it hears of forks and of ends.

    Raises:
        trainables.trial.SettingsError: there is no such trainable, or its data cannot be used.
    """

    epochs = estimated = borrowed = 0

    def __init__(self, experiment: Experiment):
        from trainables.seeding import seed_everything  # imports torch

        self._seed_everything = seed_everything
        self._experiment = experiment
        self._trainable = resolve_trainable(experiment.trainable)
        prepare = getattr(self._trainable, "prepare", None)
        if prepare is not None:
            prepare(experiment.data, experiment.model, progress=False)
        self._open: dict[str, Trainable] = {}
        self._checkpoints: dict[str, tempfile.TemporaryDirectory] = {}  # of forks that did not begin yet

    def __call__(self, trial_id: str, config: Mapping[str, Any], epoch: int) -> Mapping[str, float] | Failure:
        """Run the next epoch of a trial; its figures with `seconds`, or the failure in it."""
        config = {**self._experiment.model, **config}
        # The trainable is not to sleep; without the setting an epoch takes 1 s.
        pace = float(config.get(PACE) or 1.0)
        if PACE in config:
            config[PACE] = 0.0
        try:
            metrics = self._run(trial_id, config, epoch)
        except TrialDiverged as error:
            failure = Failure(state="diverged", reason=str(error))
        except Exception as error:  # the trainable's own code
            first_line = (str(error).strip() or "no message").splitlines()[0]
            reason = f"{type(error).__name__}: {first_line}"
            failure = Failure(state="failed", reason=reason, error=traceback.format_exc())
        else:
            self.epochs += 1
            return {"seconds": pace, **metrics}
        self._release(trial_id)
        return failure

    def handle(self, event: Event) -> None:
        """Save what a fork starts from, as its parent goes on later; let go of a trial that is over."""
        if isinstance(event, TrialStarted) and event.parent is not None and event.trial_id not in self._open:
            self._checkpoints[event.trial_id] = tempfile.TemporaryDirectory()
            self._open[event.parent].save(Path(self._checkpoints[event.trial_id].name))
        if isinstance(event, TrialEnded) and event.state in FINAL_STATES:
            self._release(event.trial_id)

    def tick(self) -> None:
        """Nothing is put off."""

    def close(self) -> None:
        """Let go of all trials."""
        for trial_id in [*self._open, *self._checkpoints]:
            self._release(trial_id)

    def _run(self, trial_id: str, config: Mapping[str, Any], epoch: int) -> dict[str, float]:
        seed = trial_seed(self._experiment.search.seed, trial_id)
        if trial_id not in self._open:
            context = TrialContext(
                trial_id=trial_id,
                seed=seed,
                max_epochs=self._experiment.scheduler.max_epochs,
                data=self._experiment.data,
            )
            self._seed_everything(seed)
            trial = self._open[trial_id] = self._trainable()
            trial.setup(config, context)
            if trial_id in self._checkpoints:
                with self._checkpoints.pop(trial_id) as folder:
                    trial.load(Path(folder))
        trial = self._open[trial_id]
        self._seed_everything(seed, epoch, 0)
        metrics = figures("train_epoch", trial.train_epoch())
        full = epoch in self._experiment.full_epochs()
        return metrics | figures("evaluate", trial.evaluate(full=full))

    def _release(self, trial_id: str) -> None:
        trial, checkpoint = self._open.pop(trial_id, None), self._checkpoints.pop(trial_id, None)
        if trial is not None:
            trial.close()
        if checkpoint is not None:
            checkpoint.cleanup()
