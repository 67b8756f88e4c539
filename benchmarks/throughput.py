"""Images per second of a one-worker trial on a gang against a plain PyTorch loop, and how busy gangs are.

**Images per second.** The loop below is what one would write without any of this: the same captioner, the
same batches in the same order, AdamW, clipping, and after each epoch the validation loss and a checkpoint. A
gang runs an epoch only when the run's driver asks for it, so the two take turns on an otherwise idle machine:
the driver's listener has an epoch of the loop run, in a process of its own, between two of the gang's. Both
use one thread. `training` compares the steps alone; `epoch` the wall clock of whole epochs, for the gang as
the driver sees them, from asking to having the report. Medians over the epochs after the first; the ratio is
that of neighbouring epochs.

**Busy fraction.** Seconds that workers spent in epochs (training, evaluation, checkpoint) over seconds that
they were held, in a search of captioners on two gangs, from when both had begun their first epoch. `whole`
looks to the end of the last trial: starting trials and waiting for decisions count as idle, and so does the
end, where one gang has nothing left to do while the other finishes. `while trials last` leaves that end out,
which weighs more the fewer the trials are.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from cluster.connect import connect
from trainables.captioning.check import read_data_settings, read_settings
from trainables.captioning.data.cache import prepare
from trainables.captioning.data.loader import eval_batches, train_steps
from trainables.captioning.data.tokenizer import PAD
from trainables.captioning.model.captioner import Captioner
from tuning import Experiment, run
from tuning.events import EpochReported, Event, TrialEnded

EPOCHS = 7
SCENES = 400
TRIALS = 12
GANGS = 2
MODEL = {"encoder": "cnn", "encoder_width": 16, "decoder": "gru_attention", "decoder_width": 128}
BATCH_SIZE = 32


class PlainLoop:
    """The captioner of `MODEL`, trained by hand."""

    def __init__(self, data: dict[str, Any], folder: Path):
        torch.set_num_threads(1)
        self.data = prepare(read_data_settings(data))
        self.folder = folder
        self.model = Captioner(
            read_settings(MODEL), self.data.tokenizer.vocabulary_size, self.data.images.shape[1]
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.loss = nn.CrossEntropyLoss(ignore_index=PAD)
        self.epoch = 0

    def run_epoch(self) -> tuple[float, float]:
        """One epoch; (training captions per second of training, seconds of everything)."""
        begin = time.perf_counter()
        self.model.train()
        seen = 0
        for step in train_steps(self.data, epoch=self.epoch, seed=0, batch_size=BATCH_SIZE):
            (batch,) = step.micro_batches
            logits = self.model(batch.inputs, batch.tokens[:, :-1])  # [B, T, V]
            loss = self.loss(logits.flatten(0, 1), batch.tokens[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            seen += len(batch.tokens)
        training = time.perf_counter() - begin
        self._validate()
        torch.save([self.model.state_dict(), self.optimizer.state_dict()], self.folder / "plain.pt")
        self.epoch += 1
        return seen / training, time.perf_counter() - begin

    @torch.no_grad()
    def _validate(self) -> float:
        self.model.eval()
        total, count = 0.0, 0
        for batch in eval_batches(self.data, batch_size=64):
            logits = self.model(batch.inputs, batch.tokens[:, :-1])
            total += self.loss(logits.flatten(0, 1), batch.tokens[:, 1:].flatten()).item() * len(batch.tokens)
            count += len(batch.tokens)
        return total / count


_LOOP: list[PlainLoop] = []  # in the process that runs it


def _start_loop(data: dict[str, Any], folder: str) -> None:
    _LOOP.append(PlainLoop(data, Path(folder)))


def _loop_epoch() -> tuple[float, float]:
    return _LOOP[0].run_epoch()


class TakingTurns:
    """A listener that runs an epoch of the plain loop after each of the gang's, while that one waits."""

    def __init__(self, run_plain_epoch: Callable[[], tuple[float, float]]):
        self._run_plain_epoch = run_plain_epoch
        self.gang: list[tuple[float, float]] = []  # captions per second of training, seconds of everything
        self.loop: list[tuple[float, float]] = []
        self._asked = 0.0

    def handle(self, event: Event) -> None:
        """Note the gang's epoch, run one of the loop, let the gang go on."""
        if isinstance(event, EpochReported):
            self.gang.append((event.metrics["images_per_s"], time.perf_counter() - self._asked))
            self.loop.append(self._run_plain_epoch())
        if isinstance(event, TrialEnded):
            assert event.state == "completed", event
        self._asked = time.perf_counter()

    def tick(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def experiment(data: dict[str, Any], name: str, storage: str, **changes: Any) -> Experiment:
    """A search on `data` with `MODEL`, whose learning rate is searched; `changes` are whole sections."""
    sections: dict[str, Any] = {
        "name": name,
        "trainable": "captioning",
        "data": data,
        "model": {**MODEL, "batch_size": BATCH_SIZE},
        "search_space": {"learning_rate": {"float": [5e-4, 5e-3], "log": True}},
        "objectives": [{"metric": "cider", "mode": "max"}],
        "storage": storage,
    }
    return Experiment.from_dict(sections | changes)


def speeds(data: dict[str, Any], epochs: int, storage: str) -> pd.DataFrame:
    """Captions per second of gang and loop and their ratio (columns), by what is compared (rows)."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_start_loop, initargs=(data, storage)) as process:
        turns = TakingTurns(lambda: process.submit(_loop_epoch).result())
        run(
            experiment(
                data,
                "throughput",
                storage,
                # One more than is compared: the last epoch is followed by generating captions.
                scheduler={"algorithm": "none", "max_epochs": epochs + 2},
                budget={"trials": 1},
                training={"workers": 1, "gangs": 1, "precision": "fp32", "gpus_per_worker": 0},
            ),
            listeners=[turns],
        )
    captions = len(prepare(read_data_settings(data)).captions_of("train"))
    figures = pd.DataFrame(
        {
            (side, row): speed
            for side, epochs_of in (("gang", turns.gang), ("plain loop", turns.loop))
            for row, speed in (
                ("training", [speed for speed, _ in epochs_of[1:-1]]),
                ("epoch", [captions / seconds for _, seconds in epochs_of[1:-1]]),
            )
        }
    )
    table = figures.median().unstack(0)
    # Of neighbours, for a machine's speed drifts.
    table["ratio"] = (figures["gang"] / figures["plain loop"]).median()
    return table.loc[["training", "epoch"]]


def busy_fractions(data: dict[str, Any], trials: int, storage: str) -> dict[str, tuple[float, float]]:
    """(Share of their time that the workers of a search work, seconds looked at), by where looking ends."""
    results = run(
        experiment(
            data,
            "busy",
            storage,
            scheduler={"algorithm": "asha", "min_epochs": 1, "max_epochs": 3, "reduction_factor": 3},
            budget={"trials": trials},
            training={"workers": 1, "gangs": GANGS, "precision": "fp32", "gpus_per_worker": 0},
        )
    )
    gang, ends = results.epochs["gang"], results.epochs["at"]
    starts = ends - pd.to_timedelta(results.epochs["seconds"], unit="s")
    begin = starts.groupby(gang).min().max()
    fractions = {}
    for name, end in (
        ("whole", results.trials["finished_at"].max()),
        ("while trials last", ends.groupby(gang).max().min()),
    ):
        worked = (ends.clip(upper=end) - starts.clip(lower=begin)).dt.total_seconds().clip(lower=0).sum()
        held = (end - begin).total_seconds()
        fractions[name] = (worked / (GANGS * held), held)
    return fractions


def main(epochs: int = EPOCHS, scenes: int = SCENES, trials: int = TRIALS) -> None:
    """Print the tables and the ratio, that of training."""
    # Ray runs its workers at low priority: whatever else runs would slow the gang and not the loop.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, it is spelt so
    with tempfile.TemporaryDirectory() as storage, connect("local", cpus=GANGS):
        data = {"format": "shapes", "size": scenes, "image_size": 64, "cache": f"{storage}/cache"}
        table = speeds(data, epochs, storage)
        busy = busy_fractions(data, trials, storage)
    print(f"{'images per second':20}{'gang':>10}{'plain loop':>14}{'ratio':>8}")
    for row in table.itertuples():
        print(f"{row.Index:20}{row[1]:10.1f}{row[2]:14.1f}{row.ratio:8.3f}")
    print(f"\n{f'{trials} trials, {GANGS} gangs':20}{'busy':>10}{'of s':>14}")
    for name, (fraction, held) in busy.items():
        print(f"{name:20}{fraction:10.3f}{held:14.0f}")
    print(f"throughput ratio={table['ratio']['training']:.3f}")
