"""When a trial's captioner is made smaller, how far at each epoch, and what would ship of it.

Two courses. *Joint*: it is trained whole for `compression.warmup_epochs`, then compressed and fine-tuned in
the epochs that are left. *Child* (`compression.parent`): the first epoch only compresses a trained parent, so
that it can be judged without any training; the epochs that follow fine-tune.

Unstructured pruning comes gradually over the first two thirds of the fine-tuning (Zhu & Gupta 2018). Which
methods there are, and what they do, is said by `compress`; training is the trial's business.
"""

from __future__ import annotations

import math

from trainables.captioning.compress import applied, find_strength
from trainables.captioning.compress.hold import hold, prune_further, released
from trainables.captioning.compress.prune import prune, sparsity, sparsity_at
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Compression


class Shrinking:
    """The course of one trial.

    Args:
        compression: its settings.
        captioner: whole, or compressed already with `strength`; only looked at.
        max_epochs: of the trial.
        strength: of the compression (see `compress`), where it is known; else it is found.

    Raises:
        SettingsError: the methods cannot remove as much as was asked for.
    """

    def __init__(
        self,
        compression: Compression,
        captioner: Captioner,
        *,
        max_epochs: int,
        strength: float | None = None,
    ):
        self.methods = compression.methods
        self.child = compression.parent is not None
        self._begin = 0 if self.child else compression.warmup_epochs
        self._max_epochs = max_epochs
        self._gradual = "prune" in self.methods
        if strength is None:
            strength = find_strength(captioner, self.methods, compression.ratio)
        self.strength = strength

    @property
    def untrained_epochs(self) -> int:
        """Epochs at the beginning in which nothing is trained."""
        return int(self.child)

    def starts(self, epoch: int) -> bool:
        """Whether the whole captioner is to be compressed before this epoch (from 0).

        A child's twice where it comes gradually: for the verdict at once, and for the fine-tuning.
        """
        if not self.methods:
            return False
        return epoch == self._begin or (self.child and self._gradual and epoch == self.untrained_epochs)

    def begun(self, captioner: Captioner, epoch: int) -> Captioner:
        """What is trained from this epoch on, made of the whole `captioner`, which stays as it is."""
        strengths = dict.fromkeys(self.methods, self.strength)
        if "prune" in strengths:
            strengths["prune"] *= self._share(epoch)
        return hold(applied(captioner, strengths))

    def go_on(self, captioner: Captioner, epoch: int) -> None:
        """Prune what is trained as far as this epoch wants it, in place."""
        if self._gradual:
            prune_further(captioner, sparsity(self.strength) * self._share(epoch))

    def shipped(self, captioner: Captioner, *, begun: bool) -> Captioner:
        """A copy of what is trained, as it would ship if the training ended now: in float32, on its grids."""
        if not begun:
            captioner = applied(captioner, dict.fromkeys(self.methods, self.strength))
        small = released(captioner)
        return prune(small, self.strength) if begun and self._gradual else small

    def _share(self, epoch: int) -> float:
        """Of the zeros, at this epoch."""
        if not self._gradual or epoch < self.untrained_epochs:
            return 1.0
        start = max(self._begin, self.untrained_epochs)
        ramp = math.ceil((self._max_epochs - start) * 2 / 3)
        return sparsity_at((epoch - start + 1) / max(ramp, 1))
