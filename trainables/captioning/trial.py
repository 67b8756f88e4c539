"""The trainable `captioning`: one captioner, trained, evaluated, saved and shipped.

Implements `trainables.trial.Trainable` by putting the parts together: data, model, `train.py`, `evaluate.py`,
`checkpoint.py`, `compress`. Knows torch, and DDP through its parts; knows nothing of gangs, of Ray, or of the
search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainables.captioning import check, checkpoint, collective
from trainables.captioning.compress import as_shipped
from trainables.captioning.compress.artefact import load_artefact, save_artefact
from trainables.captioning.compress.low_rank import factorise
from trainables.captioning.compress.measure import measure
from trainables.captioning.data import cache
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.data.features import cached_features
from trainables.captioning.data.loader import (
    Features,
    eval_batches,
    eval_images,
    steps_per_epoch,
    train_steps,
)
from trainables.captioning.evaluate import caption_quality, held_out_loss
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.encoders import build_encoder
from trainables.captioning.settings import DataSettings, Settings
from trainables.captioning.side_by_side import side_by_side
from trainables.captioning.train import Trainer
from trainables.trial import Metrics, Tables, TrialContext

_COST = ("params", "macs", "size_mb", "latency_ms")
_EVALUATION_BATCH = 64


class Captioning:
    """One trial, on one worker; see `trainables.trial.Trainable` for when each method is called."""

    mutable = checkpoint.MUTABLE

    @classmethod
    def check(
        cls, data: Mapping[str, Any], settings: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]
    ) -> None:
        """Refuse an experiment that cannot work; see `check.check_experiment`."""
        check.check_experiment(data, settings, searched)

    @classmethod
    def prepare(
        cls, data: Mapping[str, Any], settings: Mapping[str, Any], *, progress: bool = False
    ) -> list[str]:
        """Decode images, train the tokenizer, compute a frozen encoder's features: what is not there yet.

        Returns:
            Lines for a person: how much there is, and every image that was skipped, with the reason.

        Raises:
            SettingsError: data that cannot be used.
        """
        prepared = cache.prepare(check.read_data_settings(data), progress=progress)
        chosen = check.read_settings(settings)
        if check.caches_features(chosen):
            encoder = build_encoder(chosen, prepared.images.shape[1])
            cached_features(prepared, encoder, progress=progress)
        return _data_report(prepared)

    @classmethod
    def export(cls, checkpoint_folder: Path, folder: Path) -> None:
        """Turn a checkpoint into what ships, compressed as its settings say; `load_artefact` reads it."""
        state = checkpoint.load_state(checkpoint_folder)
        captioner = Captioner(state.settings, state.vocabulary_size, state.image_size)
        if state.factorised:
            captioner = factorise(captioner, state.settings.compression.ratio)
        checkpoint.load_weights(checkpoint_folder, captioner)
        save_artefact(
            as_shipped(captioner, state.settings.compression),
            checkpoint.load_tokenizer(checkpoint_folder),
            folder,
            max_tokens=state.max_caption_tokens,
            facts={"epoch": state.epoch, **state.measured},
        )

    @classmethod
    def caption(cls, folder: Path, images: Sequence[Path]) -> list[str]:
        """Captions of image files by what `export` wrote into `folder`.

        Raises:
            ValueError, OSError: an image that cannot be read, or no artefact.
        """
        return load_artefact(folder).caption(list(images))

    @classmethod
    def compare(cls, a: Path, b: Path, data: Mapping[str, Any], *, progress: bool = False) -> Tables:
        """What exported captioner `b` stops saying that `a` says; see `side_by_side.py`."""
        return side_by_side(a, b, check.read_data_settings(data), progress=progress)

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
        self.data = _open_data(data_settings, context.cpus)
        self.features: Features = None
        if check.caches_features(self.settings):
            self.features = _open_features(data_settings, self.settings.encoder, context.cpus, self.device)
        self._seed(0)
        captioner = Captioner(self.settings, self.data.tokenizer.vocabulary_size, self.data.images.shape[1])
        self.trainer = Trainer(
            captioner.to(self.device),
            self.settings,
            precision=context.precision,
            steps_per_epoch=steps_per_epoch(self.data, self.settings.batch_size),
            max_epochs=context.max_epochs,
            device=self.device,
        )
        self.epoch = 0
        self.factorised = False
        self.measured: Metrics = {}

    def train_epoch(self) -> Metrics:
        """One epoch; before it, where its time has come, the matrices are factorised (`low_rank`)."""
        compression = self.settings.compression
        if compression.method == "low_rank" and self.epoch >= compression.warmup_epochs:
            self._factorise()
        # Per epoch and worker: a resumed trial draws what it would have drawn, without any stored state.
        self._seed(1 + self.epoch, self.context.rank)
        steps = train_steps(
            self.data,
            rank=self.context.rank,
            world_size=self.context.world_size,
            epoch=self.epoch,
            seed=self.context.seed,
            batch_size=self.settings.batch_size,
            micro_batch_size=self.settings.micro_batch_size,
            features=self.features,
            augment=self.settings.augment,
        )
        metrics = self.trainer.train_epoch(self.epoch, steps)
        self.epoch += 1
        return metrics

    def evaluate(self, full: bool) -> Metrics:
        """Figures on the validation split, equal on every worker.

        Always `val_loss` and `token_accuracy` of the model in training. With `full` also `bleu4`, `rouge_l`
        and `cider` of the captions that the model *as it would ship* writes, and what that costs: `params`,
        `macs`, `size_mb`, `latency_ms`. The cost depends on the settings alone and is measured once.
        """
        shard: dict[str, Any] = {
            "rank": self.context.rank,
            "world_size": self.context.world_size,
            "batch_size": _EVALUATION_BATCH,
            "features": self.features,
        }
        with self.trainer.autocast():
            metrics = held_out_loss(self.trainer.captioner, eval_batches(self.data, **shard), self.device)
        if not full:
            return metrics
        shipped = self._shipped()
        with self.trainer.autocast():
            images = eval_images(self.data, **shard)
            metrics |= caption_quality(shipped, self.data, "val", images, self.settings, self.device)
        return metrics | self._cost(shipped)

    def save(self, folder: Path) -> None:
        """Write a checkpoint; see `checkpoint.py`."""
        state = checkpoint.TrialState(
            settings=self.settings,
            epoch=self.epoch,
            image_size=self.data.images.shape[1],
            vocabulary_size=self.data.tokenizer.vocabulary_size,
            max_caption_tokens=self.data.tokens.shape[1] - 1,
            factorised=self.factorised,
            measured=self.measured,
        )
        checkpoint.save_checkpoint(
            folder,
            state=state,
            captioner=self.trainer.captioner,
            tokenizer=self.data.tokenizer,
            training=self.trainer.state_dicts(),
        )

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of a trial with the same data and settings, the `mutable` ones aside."""
        state = checkpoint.load_state(folder)
        if state.factorised:
            self._factorise()
        checkpoint.load_weights(folder, self.trainer.captioner)
        self.trainer.load_state_dicts(checkpoint.load_training(folder, self.device))
        self.epoch, self.measured = state.epoch, state.measured

    def close(self) -> None:
        """Let go of the model and the optimizer; prepared data stays open for the next trial."""
        self.__dict__.clear()

    def _seed(self, *parts: int) -> None:
        seed = np.random.SeedSequence((self.context.seed, *parts)).generate_state(1)[0]
        torch.manual_seed(int(seed))

    def _factorise(self) -> None:
        if not self.factorised:
            self.trainer.replace(factorise(self.trainer.captioner, self.settings.compression.ratio))
            self.factorised = True

    def _shipped(self) -> Captioner:
        captioner, compression = self.trainer.captioner, self.settings.compression
        if compression.method == "none" or self.factorised:
            return captioner.eval()  # as it is: no need for a copy
        return as_shipped(captioner, compression)

    def _cost(self, shipped: Captioner) -> Metrics:
        if not self.measured:
            cost: Metrics = {}
            if self.context.rank == 0:
                longest = self.data.tokens.shape[1] - 1
                cost = {**measure(shipped, image_size=self.data.images.shape[1], max_tokens=longest)}  # type: ignore[dict-item]
            self.measured = collective.agree(cost, _COST, self.device)
        return self.measured


def _data_report(data: CaptionData) -> list[str]:
    sizes = ", ".join(f"{len(images):,} {split}" for split, images in data.splits.items())
    report = [
        f"{len(data.names):,} images ({sizes}), {len(data.tokens):,} captions, "
        f"vocabulary of {data.tokenizer.vocabulary_size:,}"
    ]
    for what, items in (("skipped as bad", data.bad), ("left out", data.left_out)):
        if items:
            report += [f"{len(items):,} {what}:", *(f"  {name}: {reason}" for name, reason in items)]
    return report


@lru_cache(maxsize=1)
def _open_data(settings: DataSettings, cores: int) -> CaptionData:
    """Prepared data, opened once per process: checking what lies on disk takes longer than a short trial."""
    return cache.prepare(settings, cores=cores)


@lru_cache(maxsize=2)
def _open_features(data: DataSettings, encoder: str, cores: int, device: torch.device) -> Features:
    prepared = _open_data(data, cores)
    settings = Settings.model_validate({"encoder": encoder, "encoder_trainable": False})
    module = build_encoder(settings, prepared.images.shape[1]).to(device)
    return cached_features(prepared, module, device=device)
