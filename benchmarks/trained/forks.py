"""Captioners trained whole and the children made of them, for `compression` and `forking`.

One process, one thread, no Ray: a trial is `Captioning` as a gang's worker drives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.captioning.trial import Captioning
from trainables.trial import Metrics, TrialContext

#: Of every captioner; a child takes over its parent's. The decoder is wide, so that much can be removed.
MODEL = {"encoder_width": 16, "decoder_width": 96, "batch_size": 32, "learning_rate": 4e-3, "beam_width": 2}


@dataclass(frozen=True)
class Course:
    """How long captioners are trained, and on what."""

    data: Mapping[str, Any]
    """The experiment's `data` section."""
    epochs: int
    """Of one that is trained anew, whole or with its compression."""
    fine_tune_epochs: int
    """Of a child, after the epoch that only compresses."""
    trainable: type[Captioning] = Captioning

    def anew(self, seed: int, settings: Mapping[str, Any]) -> Captioning:
        """One that is trained to its end; not evaluated."""
        return trained(self._begun(seed, {**MODEL, **settings}, self.epochs), self.epochs)

    def parent(self, seed: int, folder: Path) -> Captioning:
        """A whole one, trained to its end, and its checkpoint in `folder`."""
        whole = self.anew(seed, {})
        folder.mkdir(parents=True)
        whole.save(folder)
        return whole

    def child(self, seed: int, point: Mapping[str, Any]) -> Captioning:
        """One of `Captioning.variants`, compressed and not fine-tuned yet."""
        return trained(self._begun(seed, point, 1 + self.fine_tune_epochs), 1)

    def fine_tuned(self, child: Captioning) -> Metrics:
        """The figures of a child when the rest of its epochs are over."""
        return trained(child, self.fine_tune_epochs).evaluate(full=True)

    def _begun(self, seed: int, settings: Mapping[str, Any], epochs: int) -> Captioning:
        trial = self.trainable()
        context = TrialContext(trial_id=f"seed{seed}", seed=seed, max_epochs=epochs, data=self.data)
        trial.setup(settings, context)
        return trial


def trained(trial: Captioning, epochs: int) -> Captioning:
    """The same trial, so many epochs later."""
    for _ in range(epochs):
        trial.train_epoch()
    return trial


def shapes(size: int, cache: Path) -> dict[str, Any]:
    """The `data` section for `size` drawn scenes of 32 px, prepared."""
    data = {"format": "shapes", "size": size, "image_size": 32, "cache": str(cache)}
    Captioning.prepare(data, MODEL)
    return data


def name(point: Mapping[str, Any]) -> str:
    """Method and the ratio asked for, as in `prune .5`."""
    ratio = point.get("compression.ratio")
    return point["compression.method"] + ("" if ratio is None else f" {ratio:.2g}".replace("0.", "."))
