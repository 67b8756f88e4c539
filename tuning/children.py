"""Children of a finished experiment: its best trials, compressed in many ways, as an experiment inside it.

The trainable says which ways there are (`variants`), and the configurations that it names are the inner
experiment's trials: each is compressed and evaluated in its first epoch. If no other beats it by then, or if
it is a new model that is yet to be trained, it is fine-tuned in those that follow (`front_scheduler.py`).
This file knows what the inner experiment is; running it is for `runner.py`, its table for `variants.py`.

A child is known by its configuration, which names its parent as `checkpoints/TRIAL/EPOCH`: none runs twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.checkpoint_files import CheckpointUrl, checkpoint_at, has_checkpoint
from trainables.store import is_url, under
from trainables.trial import SettingsError, resolve_trainable
from tuning.experiment import Experiment, ExperimentError
from tuning.gangs.watchdog import FIRST_EPOCH_S
from tuning.search.front_scheduler import FrontScheduler
from tuning.search.proposers import Replayed
from tuning.search.searcher import Searcher
from tuning.sections import METHOD
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.configurations import configurations
from tuning.tables.copies import copy_folder, origin_of, split_url
from tuning.tables.results import Results

Config = Mapping[str, Any]

#: Folder of the inner experiment inside its parents'.
FOLDER = "variants"
RATIO = "compression.ratio"
#: What children are compared by beside the experiment's own objectives. Not time: beside other trials it is
#: a matter of luck.
COSTS = ("size_mb", "macs")


@dataclass(frozen=True)
class Parent:
    """A trained model that is compressed."""

    trial_id: str
    epoch: int

    @property
    def checkpoint(self) -> str:
        """Its folder, relative to the experiment's."""
        return f"checkpoints/{self.trial_id}/{self.epoch:04d}"


def asked(found: Results, given: Config) -> Experiment:
    """The experiment of `found`, where it lies now, with keys of its section `compression` put over.

    Raises:
        ExperimentError: a key or a method that cannot be.
    """
    tree = found.experiment.to_dict()
    section = {**tree["compression"], "search": "children", **given}
    url = origin_of(found.folder)
    storage, name = split_url(url) if url else (str(found.folder.parent), found.folder.name)
    place = {"name": name, "storage": storage}
    experiment = Experiment.from_dict(tree | place | {"compression": section})
    experiment.check_trainable()
    return experiment


def home(experiment: Experiment) -> tuple[Path, str]:
    """Where the inner experiment of `experiment` is: its folder on this machine, and its folder or URL."""
    if is_url(experiment.place):
        return copy_folder(experiment.place, FOLDER, "working"), under(experiment.place, FOLDER)
    folder = experiment.folder.absolute() / FOLDER
    return folder, str(folder)


def parent_of(config: Config) -> Parent:
    """The parent that the configuration of a child names."""
    for value in config.values():
        if isinstance(value, str) and (found := re.fullmatch(r"checkpoints/([^/]+)/(\d+)", value)):
            return Parent(found[1], int(found[2]))
    raise ValueError(f"{dict(config)} names no parent")


def parents(found: Results) -> list[Parent]:
    """The trials that ran all their epochs, the best first; the best one of all where none did.

    Each with the checkpoint of its best epoch, which the table's row is about and which is always kept.
    """
    rows = found.ranked()
    rows = rows[~rows["state"].isin(WENT_WRONG) & rows["checkpoint"].notna()]
    completed = rows[rows["state"] == "completed"]
    chosen = completed if len(completed) else rows.head(1)
    return [Parent(row["trial_id"], int(row["best_epoch"])) for row in chosen.to_dict("records")]


def points(found: Results, experiment: Experiment) -> tuple[list[Config], list[str]]:
    """The children that `experiment.compression` asks for, and lines for a person on what cannot be.

    Parents are named relative to the experiment's folder: it may be moved. A trial that the trainable refuses
    as a parent makes room for the next best.
    """
    asked, configs, lines, accepted = experiment.compression, dict[Any, Config](), list[str](), 0
    trainable: Any = resolve_trainable(experiment.trainable)
    for parent in parents(found):
        if not has_checkpoint(under(experiment.place, parent.checkpoint)):
            lines.append(f"{parent.trial_id}: its checkpoint is gone, see `checkpoints`")
            continue
        with checkpoint_at(under(experiment.place, parent.checkpoint)) as folder:
            try:
                possible, said = trainable.variants(folder, list(asked.methods), list(asked.ratios))
            except SettingsError as error:
                lines.append(f"{parent.trial_id}: {error}")
                continue
        lines += [f"{parent.trial_id}: {line}" for line in said]
        for given in possible:
            config = {n: parent.checkpoint if value == str(folder) else value for n, value in given.items()}
            if METHOD not in config or parent.checkpoint not in config.values():
                rule = f"a variant needs {METHOD} and the checkpoint among its values, but there is {given}"
                raise ExperimentError([f"trainable: {experiment.trainable!r}: {rule}"])
            configs.setdefault(frozenset(config.items()), config)
        accepted += 1
        if accepted == asked.parents:
            break
    return list(configs.values()), lines


def inner_experiment(experiment: Experiment, wanted: Iterable[Config]) -> Experiment:
    """The experiment of all children: those that were there before, then what is `wanted` beside them.

    Raises:
        ExperimentError: there are none.
    """
    folder, _ = home(experiment)
    children = {frozenset(config.items()): config for config in [*_known(folder), *wanted]}
    if not children:
        raise ExperimentError(["compression: there is nothing to do: no trial of use, or no possible method"])
    values: dict[str, dict[Any, Any]] = {}
    for config in children.values():
        for name, value in config.items():
            values.setdefault(name, {})[value] = value
    objectives = [objective.model_dump(exclude_none=True) for objective in experiment.objectives]
    known = {objective.metric for objective in experiment.objectives}
    objectives += [{"metric": name, "mode": "min"} for name in COSTS if name not in known]
    tree = experiment.to_dict()
    # A child's first epoch only compresses: how long the next may take does not follow from it.
    auto = experiment.training.hang_timeout == "auto"
    hang_timeout = {"hang_timeout": FIRST_EPOCH_S} if auto else {}
    tree |= {
        "name": FOLDER,
        "storage": experiment.place,
        "model": {name: value for name, value in experiment.model.items() if name not in values},
        "search_space": {name: {"choice": list(each)} for name, each in values.items()},
        "objectives": objectives,
        "search": {"algorithm": "random", "seed": experiment.search.seed, "start": list(children.values())},
        "scheduler": {
            "algorithm": "front",
            "min_epochs": 1,
            "max_epochs": 1 + experiment.compression.epochs,
        },
        "budget": {"trials": len(children)},
        "compression": {},
        "checkpoints": {"keep": "all"},  # each is yet to be exported and measured
        "training": tree["training"] | hang_timeout,
    }
    return Experiment.from_dict(tree)


def open_children(inner: Experiment) -> tuple[Searcher, FrontScheduler]:
    """Searcher and scheduler of the inner experiment."""
    children = inner.search.start
    starts_untrained = getattr(resolve_trainable(inner.trainable), "starts_untrained", lambda method: False)
    searcher = Searcher(
        path=inner.folder / "study.journal",
        name=inner.name,
        space=inner.space,
        modes=[objective.mode for objective in inner.objectives],
        proposer=Replayed(children),  # not as `start`: what a configuration leaves out is not to be drawn
    )
    scheduler = FrontScheduler(
        rung=min(inner.scheduler.rungs(), default=None),
        expected=len(children),
        complete={f"{n:05d}" for n, config in enumerate(children) if config[METHOD] == "none"},
        untrained={f"{n:05d}" for n, config in enumerate(children) if starts_untrained(config[METHOD])},
    )
    return searcher, scheduler


class Inheritance:
    """What a child is run with: its parent's hyperparameters and, over them, its own.

    Args:
        found: the parents' experiment.
        place: where it is, a folder or a URL.
    """

    def __init__(self, found: Results, place: str):
        self._place = place
        self._configs = configurations(found.trials, found.experiment.space)

    def __call__(self, config: Config) -> dict[str, Any]:
        """The child's whole configuration, its parent's checkpoint as an absolute path, or a URL."""
        parent = parent_of(config)
        inherited = self._configs[parent.trial_id].items()
        own = {
            name: self._checkpoint(value) if value == parent.checkpoint else value
            for name, value in config.items()
        }
        return {name: value for name, value in inherited if not name.startswith("compression.")} | own

    def _checkpoint(self, name: str) -> str:
        place = under(self._place, name)
        return CheckpointUrl(place) if is_url(place) else place


def _known(folder: Path) -> Sequence[Config]:
    """The children of earlier runs, in their order."""
    path = folder / "experiment.yaml"
    if not path.exists():
        return []
    return Experiment.read_back(path).search.start
