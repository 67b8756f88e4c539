"""What a trial is trained with; where asked, after it ran out of memory, the same batch in smaller parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trainables.trial import resolve_trainable
from tuning.experiment import Experiment


class TrialSettings:
    """Settings of the trials of one experiment.

    Args:
        workers: of one gang.
        whole: what a trial is run with, of its configuration; the experiment's `model` goes before it.
    """

    def __init__(
        self,
        experiment: Experiment,
        workers: int,
        whole: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: config,
    ):
        self._experiment, self._workers, self._whole = experiment, workers, whole

    def of(self, config: Mapping[str, Any], halvings: int = 0) -> dict[str, Any] | None:
        """All settings of a trial that ran out of memory `halvings` times; None where that was too often.

        Args:
            config: its searched hyperparameters.
        """
        settings: dict[str, Any] | None = {**self._experiment.model, **self._whole(config)}
        if halvings and self._experiment.training.on_out_of_memory != "accumulate":
            return None
        for _ in range(halvings):
            if settings is not None:
                settings = self._halved(settings)
        return settings

    def can_halve(self, config: Mapping[str, Any], halvings: int) -> bool:
        """Whether such a trial can be tried with less memory once more."""
        return self.of(config, halvings + 1) is not None

    def _halved(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        trainable: Any = resolve_trainable(self._experiment.trainable)
        found = trainable.with_less_memory(settings, self._workers)
        return None if found is None else dict(found)
