"""The trainable `captioning`: one captioner, trained, evaluated, saved and shipped.

Implements `trainables.trial.Trainable` by putting the parts together: data, model, `train.py`, `evaluate.py`,
`checkpoint.py`, `compress`. Knows torch, and DDP through its parts; knows nothing of gangs, of Ray, or of the
search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainables.captioning import check, checkpoint, children, collective, prepared, shipped
from trainables.captioning.compress.arithmetic import fast
from trainables.captioning.compress.artefact import size_bytes
from trainables.captioning.compress.hold import hold
from trainables.captioning.compress.measure import COST, measure
from trainables.captioning.compress.teacher import teacher_outputs
from trainables.captioning.compress.teacher_attention import teacher_attention
from trainables.captioning.compress.teacher_captions import with_teacher_captions
from trainables.captioning.data.features import cached_features
from trainables.captioning.data.loader import (
    Features,
    eval_batches,
    eval_images,
    steps_per_epoch,
    train_steps,
)
from trainables.captioning.evaluate import HELD_OUT, QUALITY, caption_quality, held_out_loss
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.encoders import Encoder
from trainables.captioning.settings import Settings
from trainables.captioning.shrinking import Shrinking
from trainables.captioning.side_by_side import side_by_side
from trainables.captioning.train import TRAINING, Trainer
from trainables.patience import StorageFailed
from trainables.processor import processor
from trainables.trial import Metrics, Tables, TrialContext

_SIZE = ("size_mb", "compression_ratio")
_EVALUATION_BATCH = 64


class Captioning:
    """One trial, on one worker; see `trainables.trial.Trainable` for when each method is called."""

    mutable = checkpoint.MUTABLE
    reported_metrics = frozenset({*TRAINING, *HELD_OUT, *QUALITY, *COST, *_SIZE})

    @classmethod
    def check(
        cls, data: Mapping[str, Any], settings: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]
    ) -> None:
        """Refuse an experiment that cannot work; see `check.check_experiment`."""
        check.check_experiment(data, settings, searched)

    @classmethod
    def check_variants(cls, methods: Sequence[str], ratios: Sequence[float]) -> None:
        """Refuse ways to compress that cannot be; see `check.check_variants`."""
        check.check_variants(methods, ratios)

    # Data, before any trial.
    prepare = staticmethod(prepared.prepare)
    identity = staticmethod(prepared.identity)

    # What becomes of a checkpoint, and of what was exported of it.
    variants = staticmethod(children.variants)
    starts_untrained = staticmethod(children.starts_untrained)
    export = staticmethod(shipped.export)
    convert = staticmethod(shipped.convert)
    measure = staticmethod(shipped.measure_exported)
    caption = staticmethod(shipped.caption)

    @classmethod
    def compare(cls, a: Path, b: Path, data: Mapping[str, Any], *, progress: bool = False) -> Tables:
        """What exported captioner `b` stops saying that `a` says; see `side_by_side.py`."""
        return side_by_side(a, b, check.read_data_settings(data), progress=progress)

    @classmethod
    def with_less_memory(cls, settings: Mapping[str, Any], workers: int) -> dict[str, Any] | None:
        """The same batches, of which a worker takes at most half as many captions at once."""
        known = Settings.from_flat(dict(settings))
        share = math.ceil(known.batch_size / workers)
        at_once = min(known.micro_batch_size or share, share)
        return None if at_once == 1 else {**settings, "micro_batch_size": math.ceil(at_once / 2)}

    def setup(self, config: Mapping[str, Any], context: TrialContext) -> None:
        """Open the prepared data and build model and optimizer.

        Raises:
            SettingsError: a value that no check before the run could foresee.
        """
        torch.set_num_threads(context.cpus)
        self.context = context
        self.settings = check.read_settings(config)
        self.device = torch.device(context.device)
        data_settings = check.read_data_settings(context.data)
        self.data = self.lessons = prepared.open_data(data_settings, context.cpus)
        self.parent = self.settings.compression.parent
        if self.parent is not None:
            asked = self.settings
            self.settings = children.inherited(self.parent, asked.compression, self.data)
            if asked.micro_batch_size is not None:  # for lack of memory
                smaller = {"micro_batch_size": asked.micro_batch_size}
                self.settings = self.settings.model_copy(update=smaller)
        self.features: Features = None
        if check.caches_features(self.settings):
            self.features = prepared.open_features(
                data_settings, self.settings.encoder, context.cpus, self.device
            )
        self._seed(0)
        captioner = self._whole()
        self.whole_bytes = size_bytes(captioner)
        self.shrinking = Shrinking(self.settings.compression, captioner, max_epochs=context.max_epochs)
        self.trainer = Trainer(
            captioner.to(self.device),
            self.settings,
            precision=context.precision,
            steps_per_epoch=steps_per_epoch(self.data, self.settings.batch_size),
            max_epochs=context.max_epochs - self.shrinking.untrained_epochs,
            device=self.device,
        )
        self.epoch = 0
        self.compressed = False
        self.measured: Metrics = {}
        self.measured_on: dict[str, str] = {}
        """Processor and version of torch, for the card: a trial may move."""
        self.quality: Metrics = {}

    def train_epoch(self) -> Metrics:
        """One epoch; before it the captioner is compressed, where its time has come.

        A child's first epoch trains nothing and has no figures.
        """
        done = self.trainer.steps_done  # of this epoch, where it was broken off
        if not done and self.shrinking.starts(self.epoch):
            self._compress()
        elif self.compressed:
            self.shrinking.go_on(self.trainer.captioner, self.epoch)
        trained_epochs = self.epoch - self.shrinking.untrained_epochs
        if trained_epochs < 0:
            self.epoch += 1
            return {}
        self._ask_teacher()
        # Per epoch and worker: a resumed trial draws what it would have drawn, without any stored state.
        self._seed(self.epoch + 1, self.context.rank, *([done] if done else []))
        steps = train_steps(
            self.lessons,
            rank=self.context.rank,
            world_size=self.context.world_size,
            epoch=trained_epochs,
            seed=self.context.seed,
            batch_size=self.settings.batch_size,
            micro_batch_size=self.settings.micro_batch_size,
            features=self._features(),
            augment=self.settings.augment,
        )
        metrics = self.trainer.train_epoch(trained_epochs, steps, leaving=self.context.leaving)
        self.epoch += 1
        return metrics

    def evaluate(self, full: bool) -> Metrics:
        """Figures on the validation split, equal on every worker.

        Always `val_loss` and `token_accuracy` of the model in training. With `full` also `bleu4`, `rouge_l`
        and `cider` of the captions that the model *as it would ship* writes, the `compression_ratio` that was
        reached, and what the model costs (`compress/measure.py`), which depends on the settings alone and is
        measured once but for the bytes.
        """
        shard: dict[str, Any] = {
            "rank": self.context.rank,
            "world_size": self.context.world_size,
            "batch_size": _EVALUATION_BATCH,
            "features": self._features(),
        }
        with self.trainer.autocast():
            metrics = held_out_loss(self.trainer.captioner, eval_batches(self.data, **shard), self.device)
        if not full:
            return metrics
        small = self._shipped()
        if not self.compressed:  # what ships may see otherwise than what is trained
            shard["features"] = self._features_of(small.encoder)
        with self.trainer.autocast():
            images = eval_images(self.data, **shard)
            metrics |= caption_quality(small, self.data, "val", images, self.settings, self.device)
        self.quality = metrics
        return metrics | self._cost(small)

    def save(self, folder: Path) -> None:
        """Write a checkpoint; see `checkpoint.py`."""
        state = checkpoint.TrialState(
            settings=self.settings,
            model=self.trainer.captioner.settings,
            epoch=self.epoch,
            image_size=self.data.images.shape[1],
            vocabulary_size=self.data.tokenizer.vocabulary_size,
            max_caption_tokens=self.data.tokens.shape[1] - 1,
            strength=self.shrinking.strength if self.compressed else None,
            encodings=self.trainer.captioner.encodings,
            measured=self.measured,
            quality=self.quality,
            facts={
                "trial": self.context.trial_id,
                **self.measured_on,
                "data": shipped.data_facts(self.data, check.read_data_settings(self.context.data)),
            },
        )
        checkpoint.save_checkpoint(
            folder,
            state=state,
            captioner=self.trainer.captioner,
            tokenizer=self.data.tokenizer,
            training=self.trainer.state_dicts(),
        )

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of a trial with the same data and settings, the `mutable` ones aside.

        Raises:
            StorageFailed: the captions have changed since: no fault of the trial's, but the run cannot go on.
        """
        state = checkpoint.load_state(folder)
        if checkpoint.load_tokenizer(folder) != self.data.tokenizer:
            raise StorageFailed(children.OTHER_CAPTIONS, full=False)
        captioner = checkpoint.load_captioner(folder, self.settings).to(self.device)
        self.compressed = state.strength is not None
        self.trainer.replace(hold(captioner) if self.compressed else captioner)
        if self.compressed:
            self.features = None
        self.trainer.load_state_dicts(checkpoint.load_training(folder))
        self.epoch, self.measured, self.quality = state.epoch, state.measured, state.quality
        self.measured_on = {name: state.facts[name] for name in ("hardware", "torch") if name in state.facts}

    def close(self) -> None:
        """Let go of the model and the optimizer; prepared data stays open for the next trial."""
        self.__dict__.clear()

    def _seed(self, *parts: int) -> None:
        seed = np.random.SeedSequence((self.context.seed, *parts)).generate_state(1)[0]
        torch.manual_seed(int(seed))

    def _whole(self) -> Captioner:
        """Uncompressed: the parent's, or a new one."""
        if self.parent is not None:
            return checkpoint.load_captioner(self.parent)
        return Captioner(self.settings, self.data.tokenizer.vocabulary_size, self.data.images.shape[1])

    def _compress(self) -> None:
        self._seed(0)  # what is new in it is the same on all workers
        # A child that is pruned gradually was compressed at once for its verdict.
        whole = self._whole().to(self.device) if self.compressed else self.trainer.captioner
        captioner = self.shrinking.begun(whole, self.epoch)
        self.trainer.replace(captioner)
        self.compressed, self.measured, self.features = True, {}, None

    def _ask_teacher(self) -> None:
        if "distil" not in self.shrinking.methods or self.trainer.teacher is not None:
            return
        teacher = self._whole().to(self.device)
        features = self._features_of(teacher.encoder)
        compression = self.settings.compression
        if share := compression.teacher_captions:
            self.lessons = with_teacher_captions(self.data, teacher, features, self.device, share=share)
        self.trainer.teacher = teacher_outputs(
            self.lessons, teacher, features, self.device, temperature=compression.temperature
        )
        if compression.attention_weight and not teacher.encoder.frozen:
            self.trainer.attention = teacher_attention(self.data, teacher, self.device)

    def _features(self) -> Features:
        """Those of the encoder in training, opened once."""
        if self.features is None:
            self.features = self._features_of(self.trainer.captioner.encoder)
        return self.features

    def _features_of(self, encoder: Encoder) -> Features:
        """Of a frozen encoder as it is; None where it is trained and sees the images."""
        if not check.caches_features(self.settings):
            return None
        return cached_features(self.data, encoder, device=self.device)

    def _shipped(self) -> Captioner:
        return fast(self.shrinking.shipped(self.trainer.captioner, begun=self.compressed))

    def _cost(self, shipped: Captioner) -> Metrics:
        size: Metrics = {}
        if self.context.rank == 0:
            in_file = size_bytes(shipped)
            size = {"size_mb": in_file / 1e6, "compression_ratio": 1 - in_file / self.whole_bytes}
        size = collective.agree(size, _SIZE, self.device)
        if not self.measured:
            cost: Metrics = {}
            if self.context.rank == 0:
                longest = self.data.tokens.shape[1] - 1
                cost = {**measure(shipped, image_size=self.data.images.shape[1], max_tokens=longest)}  # type: ignore[dict-item]
            self.measured = collective.agree(cost, COST, self.device)
            self.measured_on = {"hardware": processor(), "torch": torch.__version__}
        self.measured |= size
        return dict(self.measured)
