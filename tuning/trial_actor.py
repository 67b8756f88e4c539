"""One trial as Ray Tune sees it: an actor that hands a gang's reports on, epoch by epoch.

Each gang has one, which runs trial after trial. The process imports neither torch nor the search, so that it
starts soon; what is decided, and what survives it, is elsewhere (`tuning/tune_adapter.py`).
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError

from trainables.order import Failure, Moved, Order, Report

ASK_S = 10.0  # how long one question to a gang's owner may stay open
PATIENCE_S = 120.0  # how long an owner may take to come back before its trial counts as lost


class TrialActor(tune.Trainable):
    """A step is an epoch of the gang."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Some bytes: gangs hold the resources, and Tune refuses trials that ask for nothing at all.

        Each gang has a number of bytes of its own, by which Tune tells its actor from the others': it would
        give a trial that waits for a new actor any idle one instead, end the new one before it is there, and
        with trials shorter than the start of a process start one after the other.
        """
        number_of_gang = int(config["gang"].rpartition("-")[2])
        return tune.PlacementGroupFactory([{"CPU": 0.0, "memory": 1.0 + number_of_gang}])

    def __repr__(self) -> str:  # Ray asks once, when the actor is new; it then runs many trials
        return f"trials on {self._gang}"

    def setup(self, config: dict[str, Any]) -> None:
        """Take the order, and the gang that `config` names."""
        self._gang: str = config["gang"]
        self._order: Order = config["order"]
        self._owner = ray.get_actor(self._gang)
        self._epoch = self._order.epoch

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial: Tune uses the actor again (`reuse_actors`)."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Let the gang run one more epoch and return its report, or the failure that ended the trial."""
        self._epoch += 1
        return {"answer": self._ask(self._epoch)}

    def _ask(self, epoch: int) -> Report | Failure | Moved:
        patience = PATIENCE_S
        # Where the owner was restarted it has forgotten the order: it starts anew from this epoch.
        order = dataclasses.replace(self._order, epoch=epoch - 1)
        while True:
            try:
                answer: Any = ray.get(self._owner.await_report.remote(order, epoch, ASK_S))
            except RayActorError:  # being restarted, and its workers with it; it takes some seconds
                order = dataclasses.replace(order, attempt=self._order.attempt + 1)
                patience -= 0.5
                if patience < 0:
                    raise
                time.sleep(0.5)
                continue
            if isinstance(answer, Report):
                self._order = dataclasses.replace(self._order, attempt=answer.attempt)
            if answer is not None:
                return answer

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial's state is in its own checkpoints and in the experiment's tables."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, see `save_checkpoint`."""
