"""What one trial is: the protocol a trainable implements and the context it is given.

This file knows neither Ray nor torch, so that a trainable of one's own needs to import nothing heavier
than itself. `trainables/gang.py` drives the protocol; `trainables/captioning/trial.py` and
`trainables/curves.py` implement it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trainables.refusal import nearest

Metrics = dict[str, float]
#: Tables by name, the most telling first: rows of text and numbers, all with the same keys.
Tables = dict[str, list[dict[str, Any]]]

#: Trainables that an experiment file may name without their full path.
SHIPPED = {
    "captioning": "trainables.captioning.trial:Captioning",
    "curves": "trainables.curves:Curves",
}


class TrialDiverged(Exception):
    """Training left the region where it can recover (NaN loss, exploding loss). The message says why.

    A trial that raises it ends in the state `diverged`; its gang goes on with the next trial.
    """


class LeftEarly(Exception):
    """`train_epoch` broke off its epoch, on every worker alike, for `context.leaving()` said so on one.

    `save` then writes how far it has come; `load` and `train_epoch` go on there, on another gang.
    """


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """Where and under which conditions one worker runs one trial."""

    trial_id: str
    """Stable name of the trial, the same in every table."""
    rank: int = 0
    """This worker's position in the gang, 0 to world_size - 1."""
    world_size: int = 1
    """How many workers train this trial together (DDP)."""
    device: str = "cpu"
    """torch device of this worker: "cpu" or "cuda:0"."""
    precision: str = "fp32"
    """fp32, bf16 or fp16, already resolved from `auto`."""
    seed: int = 0
    """Seed of this trial; depends on the experiment's seed and the trial, never on the gang."""
    cpus: int = 1
    """Cores this worker may use: threads of torch, of loaders, of the tokenizer."""
    max_epochs: int = 1
    """Epochs the trial runs when nothing stops it; learning-rate schedules are laid out over these."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The experiment file's `data` section, resolved."""
    leaving: Callable[[], bool] = bool
    """Whether this worker's node is about to be taken away. A trainable that asks again and again, and raises
    `LeftEarly`, keeps what it has trained; another finishes its epoch first, and loses it where the time is
    too short. Of an epoch in two parts `seconds` and what is counted by them are those of the second."""


class Trainable(Protocol):
    """One instance per worker and trial. All methods are called on every worker unless said otherwise.

    A trainable may also offer class methods that the driver calls:

    * `check(data, settings, searched)` raises `SettingsError` where the experiment's `data` section, its
      fixed settings or the searched names cannot work; called before Ray starts.
    * `prepare(data, settings, *, progress) -> list[str]` does what every trial needs once per machine
      (decoding, caching) and returns lines for a person: what there is, what had to be skipped. Idempotent
      and safe to call from several processes at once; shows a progress bar where `progress` is true.
    * `identity(data) -> str` says in a few characters, of prepared data, what trials learn from and are
      judged on. It is kept with the experiment, which is not gone on with where it has changed since.
    * `export(checkpoint, folder)` turns a checkpoint into what would ship; without it, a copy ships.
    * `convert(folder, data) -> str` adds what other programs can run to what was exported, and says in lines
      what, and what it is worth on the experiment's `data` section: `captune export` calls it.
    * `caption(folder, images) -> list[str]` uses what was exported: `captune caption` calls it.
    * `variants(checkpoint, methods, ratios) -> (configurations, lines)` names the ways to make a trial
      smaller: a configuration for each, by dotted name, with `compression.method`, perhaps
      `compression.ratio`, and the checkpoint's folder (as text) under a name of the trainable's choice; and
      lines for a person on what is asked for and cannot be. Each is run as a trial with the hyperparameters
      of the one that saved the checkpoint, and these over them. Its first epoch only compresses; its figures
      have `size_mb` and `macs`, and `compression_ratio` for the table. `none` is the trial as it is.
    * `starts_untrained(method) -> bool` says whether such a variant is a new model, of which its first epoch
      says nothing: it is trained whatever its figures are then.
    * `check_variants(methods, ratios)` raises `SettingsError` where one of them does not exist, before
      anything is trained; its path begins with `compression`.
    * `with_less_memory(settings, workers) -> settings | None` gives settings that train the same in about
      half the memory, by smaller parts of the same batch; None where that is not possible any more.
      Needed for `training.on_out_of_memory: accumulate`.
    * `measure(folder) -> Metrics` measures what was exported, on a machine that does nothing else.
    * `compare(a, b, data, *, progress) -> Tables` uses two exported folders on the validation split of the
      experiment's `data` section and tells how they differ, above all what `b` does worse than `a`:
      `captune compare` shows its tables.

    And a class attribute `mutable`, a set of names: hyperparameters that may change in mid-training. With
    others of these, `setup` and then `load` of a trial's checkpoint go on from its weights, and what is new
    acts from the next epoch on. `search.algorithm: pbt` searches no others.

    And a class attribute `reported_metrics`, a set of names: all figures that `train_epoch` and `evaluate`
    return. With it an objective or constraint of another name is refused before anything starts; a subclass,
    which may report others, has to say so itself.
    """

    def setup(self, config: Mapping[str, Any], context: TrialContext) -> None:
        """Build everything for `config`: fixed settings and searched hyperparameters, by dotted name."""

    def train_epoch(self) -> Metrics:
        """Train one epoch and return its figures, equal on every worker.

        The random numbers of Python, numpy and torch are seeded before every epoch, by trial, epoch and
        worker: whoever draws from these goes on from a checkpoint as if there had been no stop.

        Raises:
            TrialDiverged: where going on is pointless.
            LeftEarly: see there; only if it asks `context.leaving`.
        """

    def evaluate(self, full: bool) -> Metrics:
        """Figures on validation data, already reduced over the gang; `full` at rungs and at the end."""

    def save(self, folder: Path) -> None:
        """Write a checkpoint into the empty `folder`. Called on rank 0 only; the gang renames it after."""

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint that `save` wrote, after `setup`."""

    def close(self) -> None:
        """Let go of memory and files; the process lives on and runs the next trial."""


#: Figures of every epoch that the gang adds to the trainable's.
GANG_METRICS = frozenset({"seconds", "worker_s", "checkpoint_mb", "peak_memory_mb"})
#: What every trainable must have.
METHODS = ("setup", "train_epoch", "evaluate", "save", "load", "close")


class SettingsError(ValueError):
    """A value in the experiment file that a trainable cannot accept.

    `path` is where it stands (`("data", "format")`), so that whoever has the file can name the line.
    """

    def __init__(self, path: tuple[str, ...], message: str):
        super().__init__(path, message)  # both in args: survives pickling between processes
        self.path = path
        self.message = message

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.message}"


def refuse_immutable(searched: Iterable[str], mutable: Collection[str], trainable: str) -> None:
    """Refuse to search what may not change in mid-training.

    Args:
        searched: names of the hyperparameters.
        mutable: those that may change, as the class attribute of the trainable says.
        trainable: its name.

    Raises:
        SettingsError: names the first that may not.
    """
    for name in searched:
        if name not in mutable:
            valid = f"of {trainable!r} these may: {', '.join(sorted(mutable))}"
            if not mutable:
                valid = f"{trainable!r} names none that may (class attribute `mutable`)"
            raise SettingsError(
                ("search_space", name),
                f"may not change in mid-training, as `search.algorithm: pbt` would have it; {valid}",
            )


def resolve_trainable(name: str) -> Callable[[], Trainable]:
    """The class that an experiment's `trainable` key names: a shipped one or `package.module:Class`.

    Raises:
        SettingsError: where the module or the class does not exist or is no trainable.
    """
    target = SHIPPED.get(name, name)
    module_name, colon, class_name = target.partition(":")
    if not colon:
        raise SettingsError(
            ("trainable",),
            f"{name!r} is neither shipped ({', '.join(SHIPPED)}) nor of the form package.module:Class",
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's file does when it is imported
        reason = f"cannot import {module_name!r}: {type(error).__name__}: {error}"
        raise SettingsError(("trainable",), reason) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        reason = f"module {module_name!r} has no class {class_name!r}{nearest(class_name, classes)}"
        raise SettingsError(("trainable",), reason)
    missing = [name for name in METHODS if not callable(getattr(found, name, None))]
    if missing:
        reason = f"{class_name} lacks {', '.join(missing)}; a trainable has {', '.join(METHODS)}"
        raise SettingsError(("trainable",), reason)
    return found
