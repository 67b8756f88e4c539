"""A trainable whose learning curve is a formula: no torch, no data, no waiting unless asked for.

For tests of the search, for simulation, and for measuring what everything around a trial costs. The same
settings and seed give the same figures on every worker and machine.

The score of epoch `e` rises as `asymptote * (1 - exp(-speed * e))`. The asymptote is highest, 1, at a
learning rate of 10^-2.5 and a momentum of 0.9; the speed grows with the learning rate, so that early
figures favour other settings than late ones do and a scheduler can be misled, as by a real model.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainables.refusal import refusal
from trainables.trial import Metrics, SettingsError, TrialContext, TrialDiverged

FOR_EVER_S = 1e6


class CurveSettings(BaseModel):
    """Settings of one trial. The last ones exist to try what the tuning side does about trouble."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    learning_rate: float = Field(default=10**-2.5, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of Gaussian noise on every score, seeded."""
    seconds_per_epoch: float = Field(default=0.0, ge=0)
    """Real time that an epoch takes, slept."""
    fail_at_epoch: int | None = Field(default=None, ge=1)
    """Epoch in which every worker raises RuntimeError."""
    diverge_at_epoch: int | None = Field(default=None, ge=1)
    """Epoch in which every worker raises TrialDiverged."""
    crash_at_epoch: int | None = Field(default=None, ge=1)
    """Epoch in which the process of the highest rank dies without a word; needs `crash_marker`."""
    hang_at_epoch: int | None = Field(default=None, ge=1)
    """Epoch in which the highest rank stands still for ever; needs `crash_marker`."""
    batch_size: int = Field(default=64, ge=1)
    """Changes nothing but what memory an epoch seems to take."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Likewise; parts of a batch that are taken one after the other."""
    fits_in_memory: int | None = Field(default=None, ge=1)
    """Largest part of a batch with which a worker does not run out of memory."""
    crash_marker: Path | None = None
    """File written just before the crash or the hang: where it exists there is none, so that a retry gets
    through."""


class Curves:
    """The trainable `curves`; implements `trainables.trial.Trainable`."""

    mutable = frozenset(CurveSettings.model_fields)
    reported_metrics = frozenset({"train_loss", "learning_rate", "val_loss", "score"})

    @classmethod
    def check(
        cls, data: Mapping[str, Any], settings: Mapping[str, Any], searched: Mapping[str, list[Any]]
    ) -> None:
        """Refuse unknown names and values out of range.

        Raises:
            SettingsError: names the setting and the rule it breaks.
        """
        if data:
            raise SettingsError(("data",), "curves uses no data; leave the section out")
        for section, values in (("model", {k: [v] for k, v in settings.items()}), ("search_space", searched)):
            for name, examples in values.items():
                for example in examples:
                    try:
                        CurveSettings.model_validate({name: example})
                    except ValidationError as error:
                        raise SettingsError((section, name), refusal(error.errors()[0])) from error

    @classmethod
    def with_less_memory(cls, settings: Mapping[str, Any], workers: int) -> dict[str, Any] | None:
        """The same with half the `micro_batch_size`."""
        known = CurveSettings.model_validate(dict(settings))
        part = known.micro_batch_size or known.batch_size
        return None if part == 1 else {**settings, "micro_batch_size": math.ceil(part / 2)}

    def setup(self, config: Mapping[str, Any], context: TrialContext) -> None:
        """Take the settings; nothing is built."""
        self.settings = CurveSettings.model_validate(dict(config))
        self.context = context
        self.epoch = 0

    def train_epoch(self) -> Metrics:
        """One step along the curve, after `seconds_per_epoch`."""
        epoch, settings = self.epoch + 1, self.settings
        time.sleep(settings.seconds_per_epoch)
        if (settings.micro_batch_size or settings.batch_size) > (settings.fits_in_memory or math.inf):
            from torch import OutOfMemoryError  # nothing else here needs torch

            raise OutOfMemoryError("tried to allocate more than there is")
        if epoch == settings.diverge_at_epoch:
            raise TrialDiverged(f"told to diverge in epoch {epoch}")
        if epoch == settings.fail_at_epoch:
            raise RuntimeError(f"told to fail in epoch {epoch}")
        if self.context.rank == self.context.world_size - 1:
            if epoch == settings.crash_at_epoch and self._first_time():
                os._exit(1)
            if epoch == settings.hang_at_epoch and self._first_time():
                time.sleep(FOR_EVER_S)
        self.epoch = epoch
        return {"train_loss": 1 - self._score(), "learning_rate": settings.learning_rate}

    def evaluate(self, full: bool) -> Metrics:
        """`val_loss`, and `score` (larger is better, at most about 1). `full` changes nothing."""
        score = self._score()
        return {"val_loss": 1 - score, "score": score}

    def save(self, folder: Path) -> None:
        """The epoch, as `state.json`."""
        (folder / "state.json").write_text(json.dumps({"epoch": self.epoch}), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Continue after the epoch that `save` wrote."""
        self.epoch = json.loads((folder / "state.json").read_text(encoding="utf-8"))["epoch"]

    def close(self) -> None:
        """Nothing to let go of."""

    def _score(self) -> float:
        settings = self.settings
        decades_off = math.log10(settings.learning_rate) + 2.5
        asymptote = math.exp(-0.5 * decades_off**2 - 2 * (settings.momentum - 0.9) ** 2)
        speed = 0.3 * math.exp(0.5 * decades_off)
        noise = random.Random(f"{self.context.seed} {self.epoch}").gauss(0, 1) * settings.noise
        return asymptote * -math.expm1(-speed * self.epoch) + noise

    def _first_time(self) -> bool:
        marker = self.settings.crash_marker
        if marker is None:
            raise ValueError("crash_at_epoch and hang_at_epoch need crash_marker, the file that remembers")
        first = not marker.exists()
        marker.touch()
        return first
