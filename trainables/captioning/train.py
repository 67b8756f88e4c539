"""Training of a captioner over the workers of a gang: steps, precision, clipping, divergence.

Knows the model, the optimizer and batches as the loader gives them. The process group is the gang's: where
`torch.distributed` is set up, the gradients are averaged over its workers (DDP), else this process trains
alone. What a trial is made of, and when it is evaluated or saved, is `trial.py`'s business.

The gradient of a step is that of the mean loss per token over the *global* batch, however that is divided
into workers and passes: each pass adds the sum of its tokens' losses over the global number of tokens, times
the number of workers, because DDP divides by it. With a teacher, a token's loss is (1 - w) times its negative
log-likelihood and w times its divergence from the teacher (see `compress/teacher.py`), and perhaps how far
the encoder looks elsewhere than the teacher's (`compress/teacher_attention.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.captioning import collective
from trainables.captioning.data.loader import Batch, Step
from trainables.captioning.data.tokenizer import PAD
from trainables.captioning.model.captioner import Captioner, token_loss
from trainables.captioning.optimizer import SET, build_optimizer, learning_rate_factor, set_learning_rate
from trainables.captioning.settings import Settings
from trainables.trial import LeftEarly, Metrics, TrialDiverged

if TYPE_CHECKING:
    from trainables.captioning.compress.teacher import TeacherOutputs
    from trainables.captioning.compress.teacher_attention import TeacherAttention

_CHECK_STEPS = 20
"""Workers compare losses after so many steps: often enough to end a lost trial, too seldom to cost time."""
_MOST_SKIPPED = 20
"""fp16: overflow in so many steps in a row, each at half the scale of the last, is divergence."""
_HOPELESS = 2.0
"""A likelihood loss of so many times that of guessing uniformly, after the warm-up, is divergence."""

#: What an epoch of training reports.
TRAINING = ("train_loss", "learning_rate", "grad_norm", "images_per_s", "data_wait_s")

_TALLY = ("objective", "likelihood", "tokens", "grad_norm", "updates", "leaving")
"""Added up over passes, steps and workers, in one float64 tensor; the last: workers that have to leave."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Trains one captioner.

    Args:
        captioner: on its device; frozen parameters do not require gradients.
        settings: of the trial.
        precision: fp32, bf16 or fp16.
        steps_per_epoch: optimisation steps of each epoch.
        max_epochs: over which warm-up and cosine are laid out.
        device: of this worker.
    """

    def __init__(
        self,
        captioner: Captioner,
        settings: Settings,
        *,
        precision: str,
        steps_per_epoch: int,
        max_epochs: int,
        device: torch.device,
    ):
        self.settings = settings
        self.precision = precision
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * max_epochs
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.replace(captioner)

    def replace(self, captioner: Captioner) -> None:
        """Train `captioner` from now on, with a new optimizer; the learning-rate schedule goes on."""
        self.captioner = captioner
        self.teacher: TeacherOutputs | None = None
        """Its answers count with `compression.distil_weight`, the captions with what remains."""
        self.attention: TeacherAttention | None = None
        """Where the teacher's encoder looks; counts with `compression.attention_weight`."""
        self.steps_done = 0
        """Of an epoch that was broken off."""
        self.skipped = 0
        """Steps in a row, perhaps over several epochs, whose fp16 gradients overflowed."""
        self._total = torch.zeros(len(_TALLY), dtype=torch.float64)  # of these steps
        self.parameters = [p for p in captioner.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(captioner, self.settings)
        self.model: nn.Module = captioner
        if collective.world_size() > 1:
            # No buffer changes in training: batch statistics are frozen (see model/encoders.py).
            self.model = DistributedDataParallel(captioner, broadcast_buffers=False)

    def state_dicts(self) -> dict[str, Any]:
        """Optimizer and loss scaler, and where an epoch was broken off, for a checkpoint."""
        states = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        if self.steps_done:
            states["within"] = {"steps": self.steps_done, "total": self._total.tolist()}
        return states

    def load_state_dicts(self, states: Mapping[str, Any]) -> None:
        """What `state_dicts` gave, perhaps those of other settings: learning rate and decay stay our own."""
        own = [{name: group[name] for name in SET if name in group} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(states["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        if self.scaler.is_enabled() and states["scaler"]:
            self.scaler.load_state_dict(states["scaler"])
        if "within" in states:
            self.steps_done = states["within"]["steps"]
            self._total = torch.tensor(states["within"]["total"], dtype=torch.float64)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision in which the model computes; parameters and losses stay in fp32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_AUTOCAST[self.precision])

    def train_epoch(
        self, epoch: int, steps: Iterable[Step], *, leaving: Callable[[], bool] = bool
    ) -> Metrics:
        """Train epoch `epoch` (from 0): this worker's share of its steps, without the `steps_done`.

        Args:
            leaving: whether this worker has to leave, asked now and then.

        Returns:
            `train_loss`: the objective, nats per token, averaged over the epoch while it changed.
            `learning_rate`: of the last step, of the decoder. `grad_norm`: mean over the steps, before
            clipping. `images_per_s`: image-caption pairs per second of the whole gang. `data_wait_s`: mean
            over the workers of the seconds spent waiting for batches.

        Raises:
            TrialDiverged: on every worker alike.
            LeftEarly: on every worker alike, as one has to leave; `state_dicts` say where the epoch stands.
        """
        self.model.train()
        begin = time.perf_counter()
        stopwatch = _Stopwatch()
        window = torch.zeros(len(_TALLY), dtype=torch.float64, device=self.device)
        captions = 0
        first, last = epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch - 1
        left = itertools.islice(stopwatch.waiting(steps), self.steps_done, None)
        for step, share in enumerate(left, start=first + self.steps_done):
            factor = learning_rate_factor(step, self.total_steps, self.settings.warmup_fraction)
            set_learning_rate(self.optimizer, factor)
            captions += share.captions
            window += self._accumulate(share)
            self.skipped = 0 if self._update(window) else self.skipped + 1
            if self.skipped == _MOST_SKIPPED:
                raise TrialDiverged(
                    f"fp16 gradients overflowed in {self.skipped} steps in a row, up to step {step + 1}"
                )
            if (step + 1) % _CHECK_STEPS == 0 or step == last:
                window[-1] = leaving()
                self._total += self._checked(window, step)
                window.zero_()
                if self._total[-1] and step < last:
                    self._total[-1], self.steps_done = 0.0, step + 1 - first
                    raise LeftEarly
        assert step == last, (
            f"{self.steps_per_epoch} steps were announced, epoch {epoch} ended at step {step}"
        )
        seconds = time.perf_counter() - begin
        (waited,) = collective.summed([stopwatch.seconds], self.device)
        loss, _, tokens, norm, updates, _ = self._total.tolist()
        self._total, self.steps_done = torch.zeros_like(self._total), 0
        return {
            "train_loss": loss / tokens,
            "learning_rate": self.settings.learning_rate * factor,
            "grad_norm": norm / max(updates, 1),
            "images_per_s": captions / seconds,
            "data_wait_s": waited / collective.world_size(),
        }

    def _accumulate(self, share: Step) -> Tensor:
        """Gradients of one step, summed over its passes; this worker's tally, without the norm."""
        workers = collective.world_size()
        tally = torch.zeros(len(_TALLY), dtype=torch.float64, device=self.device)
        for number, batch in enumerate(share.micro_batches, start=1):
            inputs = batch.inputs.to(self.device, non_blocking=True)
            tokens = batch.tokens.to(self.device, non_blocking=True)  # [B, T+1]
            with (
                self._gradients_stay_here() if number < len(share.micro_batches) else contextlib.nullcontext()
            ):
                with self.autocast(), self._encoded() as features:
                    logits = self.model(inputs, tokens[:, :-1])  # [B, T, V]
                likelihood, _, count = token_loss(
                    logits, tokens[:, 1:], label_smoothing=self.settings.label_smoothing
                )
                loss = self._taught(likelihood, logits, tokens[:, 1:], batch, features)
                self.scaler.scale(loss * (workers / share.global_tokens)).backward()
            tally[:3] += torch.stack([loss.detach().double(), likelihood.detach().double(), count.double()])
        return tally

    @contextlib.contextmanager
    def _encoded(self) -> Iterator[list[Tensor]]:
        """What the encoder gives out meanwhile, [B, P, C] each, if a teacher's attention is asked for; the
        model's own output is logits alone."""
        features: list[Tensor] = []
        if self.attention is None:
            yield features
            return
        hook = self.captioner.encoder.register_forward_hook(lambda _, __, output: features.append(output))
        try:
            yield features
        finally:
            hook.remove()  # it would be copied with the captioner

    def _taught(
        self, likelihood: Tensor, logits: Tensor, targets: Tensor, batch: Batch, features: Sequence[Tensor]
    ) -> Tensor:
        """The objective: the captions' part, `likelihood`, and the teacher's where there is one."""
        if self.teacher is None or not len(batch.captions):  # no captions: a filler, which counts nothing
            return likelihood
        settings = self.settings.compression
        divergence = self.teacher.divergence(logits, targets, batch.captions)
        loss = (1 - settings.distil_weight) * likelihood + settings.distil_weight * divergence
        if self.attention is not None:
            tokens = (targets != PAD).sum(1)
            distance = self.attention.distance(features[-1], batch.captions)
            loss = loss + settings.attention_weight * (tokens * distance).sum()
        return loss

    def _gradients_stay_here(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _update(self, tally: Tensor) -> bool:
        """Clip and step; the gradient's norm goes into `tally`. False where fp16 gradients overflowed."""
        self.scaler.unscale_(self.optimizer)
        limit = self.settings.gradient_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        applied = self.scaler.get_scale() >= scale
        if applied:
            tally[3:5] += torch.stack([norm.double(), torch.ones_like(norm, dtype=torch.float64)])
        return applied

    def _checked(self, tally: Tensor, step: int) -> Tensor:
        """`tally` summed over the workers.

        Raises:
            TrialDiverged: it shows that the trial is lost; on every worker alike, for all see the sum.
        """
        summed = torch.tensor(collective.summed(list(tally), self.device), dtype=torch.float64)
        loss, likelihood, tokens, norm, *_ = summed.tolist()
        steps = f"up to step {step + 1} of {self.total_steps}"
        if not math.isfinite(loss):
            raise TrialDiverged(f"training loss is {loss}, {steps}")
        if not math.isfinite(norm):
            raise TrialDiverged(f"norm of the gradient is {norm}, {steps}")
        guessing = math.log(self.captioner.vocabulary_size)
        warm = step >= self.settings.warmup_fraction * self.total_steps
        if warm and likelihood / tokens > _HOPELESS * guessing:
            raise TrialDiverged(
                f"training loss {likelihood / tokens:.3g} is over {_HOPELESS:g} times that of guessing "
                f"({guessing:.3g}), {steps}"
            )
        return summed


class _Stopwatch:
    """Adds up the seconds that an iterable keeps its consumer waiting."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def waiting(self, items: Iterable[Step]) -> Iterator[Step]:
        iterator = iter(items)
        while True:
            begin = time.perf_counter()
            item = next(iterator, None)
            self.seconds += time.perf_counter() - begin
            if item is None:
                return
            yield item
