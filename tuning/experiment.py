"""The experiment file: one tree of frozen pydantic models that refuses what it does not know.

What its sections may hold is in `sections.py`, how a refusal is told in `explanations.py`. Reading YAML and
naming lines is `experiment_file.py`, sizing gangs on a cluster `resources.py`. What the `data` and `model`
sections mean is for the trainable, which is asked (`acceptance.py`) before anything starts.

    experiment = Experiment.load("examples/shapes.yaml", overrides=["budget.trials=4"])
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

import search_spaces
from search_spaces.nearest import nearest
from search_spaces.space import Space, SpaceError
from trainables.store import is_url, local, refuse_url, under, without_secrets
from trainables.trial import SettingsError
from tuning.acceptance import ask_trainable
from tuning.contradictions import refuse_contradictions
from tuning.experiment_file import ExperimentError, Source, read_experiment_file
from tuning.explanations import explained
from tuning.gangs.resources import DoesNotFit, GangPlan, NodeResources, plan_gangs
from tuning.sections import (
    FEWEST_MODELLED,
    METHOD,
    Budget,
    Checkpoints,
    Compression,
    Constraint,
    Objective,
    Scheduler,
    Search,
    Strict,
    Training,
)
from tuning.tables.copies import copy_folder
from tuning.values import flatten

__all__ = ["Constraint", "Experiment", "ExperimentError", "GangPlan", "Objective", "TooLarge"]


class TooLarge(ExperimentError):
    """The cluster cannot hold it as it is; a larger one could."""


class Experiment(Strict):
    """Everything that a run depends on. Build it with `load` (a file) or `from_dict`."""

    name: str
    """Names the results; a folder of this name holds them."""
    trainable: str = "captioning"
    """A shipped trainable, or `package.module:Class`."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Handed to the trainable. In a file, a relative `path` starts at the file's own folder; in an
    override (`--set data.path=…`) at the folder where the command runs."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Fixed settings by dotted name; nested mappings are flattened."""
    compression: Compression = Compression()
    search_space: dict[str, dict[str, Any]]
    """The space in its YAML form. Given as the name of a shipped space, it is that space without the
    names that `model` fixes, and with `compression.search: children` without `compression.method`: only
    what is whole can be compressed."""
    objectives: Annotated[tuple[Objective, ...], Field(strict=False)]
    constraints: Annotated[tuple[Constraint, ...], Field(strict=False)] = ()
    search: Search = Search()
    scheduler: Scheduler = Scheduler()
    budget: Budget
    training: Training = Training()
    checkpoints: Checkpoints = Checkpoints()
    storage: str = "captune-results"
    """Folder under which the experiment's own folder lies, relative to where the command runs; or URL of an
    object store, as in `s3://bucket/results`."""

    _source: Source = PrivateAttr(default_factory=Source)

    @classmethod
    def load(
        cls, path: str | Path, overrides: Sequence[str] = (), *, data_is_here: bool = True
    ) -> Experiment:
        """Read an experiment file, put `overrides` (`a.b=c`) in, and validate all of it.

        Imports the trainable and asks it about `data`, `model` and the searched names.

        Args:
            path: the file.
            overrides: as `--set` takes them.
            data_is_here: whether what lies under `data.path` can be looked at on this machine.

        Raises:
            ExperimentError: listing every problem with its line.
        """
        tree, source = read_experiment_file(Path(path), overrides)
        data = tree.get("data")
        if isinstance(data, dict) and isinstance(data.get("path"), str):
            overridden = source.place(("data", "path")).startswith("--set")
            base = Path.cwd() if overridden else Path(path).parent
            data["path"] = str((base / os.path.expanduser(data["path"])).absolute())
        experiment = cls._build(tree, source)
        if experiment.compression.search == "children":
            experiment._refuse_compressed_parents()
        experiment.check_trainable(data_is_here=data_is_here)
        return experiment

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Experiment:
        """The experiment that a plain tree describes, as `to_dict` returns it. Imports no trainable.

        Raises:
            ExperimentError: listing every problem.
        """
        return cls._build(tree, Source())

    @classmethod
    def read_back(cls, path: Path) -> Experiment:
        """The experiment that a run has written down at `path`. Imports no trainable.

        Raises:
            ExperimentError: listing every problem with its line.
        """
        return cls._build(*read_experiment_file(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain, resolved tree, fit for YAML; `Experiment.from_dict(e.to_dict()) == e`."""
        return self.model_dump(mode="json", exclude_none=True, by_alias=True)

    @property
    def folder(self) -> Path:
        """Where this machine has the results of this experiment; a copy where `storage` is a URL."""
        if is_url(self.storage):
            return copy_folder(self.storage, self.name, "working")
        return Path(self.storage) / self.name

    @property
    def place(self) -> str:
        """Where everybody finds the results: the absolute folder, or the URL."""
        return under(self.storage, self.name) if is_url(self.storage) else str(self.folder.absolute())

    @cached_property
    def space(self) -> Space:
        """What is searched."""
        return Space.from_dict(self.search_space)

    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are compared, ascending, all before the last."""
        last = self.scheduler.max_epochs
        if self.search.algorithm == "pbt":
            interval = self.search.interval or max(1, last // 9)
            return tuple(range(interval, last, interval))
        return self.scheduler.rungs()

    @property
    def model_promotes(self) -> bool:
        """Whether the model of `search.algorithm: auto` decides about promotions, too."""
        counted = self.budget.trials
        few = counted is not None and counted < FEWEST_MODELLED
        return self.search.algorithm == self.scheduler.algorithm == "auto" and not few

    def full_epochs(self) -> frozenset[int]:
        """Epochs after which a trial is evaluated in full: at every rung and at its end."""
        return frozenset({*self.rungs(), self.scheduler.max_epochs})

    def problem(self, path: Sequence[str | int], message: str) -> str:
        """One line of an `ExperimentError` about the value at `path`: its place in the file, key, message."""
        return self._source.problem(path, message)

    def check_trainable(self, *, data_is_here: bool = True) -> None:
        """Ask the trainable whether it can work with `data`, `model` and the searched names.

        Args:
            data_is_here: False: what it says about `data.path` means nothing.

        Raises:
            ExperimentError: it does not exist or refuses something.
        """
        try:
            ask_trainable(self, data_is_here=data_is_here)
        except SettingsError as error:
            raise ExperimentError([self.problem(error.path, error.message)]) from error

    def plan_resources(self, nodes: Sequence[NodeResources]) -> GangPlan:
        """The gangs that run this experiment on a cluster whose nodes have these resources.

        Raises:
            TooLarge: it does not fit; names the line and the largest possible value.
            ExperimentError: it would fit on no cluster.
        """
        try:
            return plan_gangs(self.training, self.budget.trials, nodes)
        except SettingsError as error:
            kind = TooLarge if isinstance(error, DoesNotFit) else ExperimentError
            raise kind([self.problem(error.path, error.message)]) from error

    def _refuse_compressed_parents(self) -> None:
        # Not where results are read: of an experiment that was run, what is whole may be compressed.
        whole = "with `compression.search: children` trials are trained whole and compressed afterwards; "
        problems = [
            self.problem(("search_space", name), f"{whole}do not search it, or use `joint`")
            for name in self.space
            if name.startswith("compression.")
        ]
        if (fixed := self.model.get(METHOD, "none")) != "none":
            problems.append(self.problem(("model", METHOD), f"got {fixed!r}: {whole}leave it out"))
        if problems:
            raise ExperimentError(problems)

    @classmethod
    def _build(cls, tree: Mapping[str, Any], source: Source) -> Experiment:
        try:
            experiment = cls.model_validate(tree)
        except ValidationError as error:
            problems = dict.fromkeys(
                line for details in error.errors() for line in explained(details, source, cls)
            )
            raise ExperimentError(list(map(without_secrets, problems))) from error
        experiment._source = source
        return experiment

    @field_validator("name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100]
            hint = f"; did you mean {safe!r}?" if safe else ""
            raise ValueError(f"names a folder: letters, digits, '.', '_', '-', at most 100{hint}")
        return name

    @field_validator("model", mode="before")
    @classmethod
    def _flat(cls, model: object) -> object:
        return flatten(model) if isinstance(model, Mapping) else model

    @field_validator("search_space", mode="before")
    @classmethod
    def _resolve_space(cls, given: object, info: Any) -> object:
        model = info.data.get("model", {})  # absent where it was itself refused, as the next
        compression = info.data.get("compression", Compression())
        if isinstance(given, str):
            if given not in search_spaces.SHIPPED:
                raise ValueError(f"no shipped space has this name{nearest(given, search_spaces.SHIPPED)}")
            whole = {METHOD: "none"} if compression.search == "children" else {}
            space = search_spaces.SHIPPED[given]().fix(whole | model)
        elif isinstance(given, Mapping):
            twice = [((n,), f"is fixed to {model[n]!r} in `model`; keep one") for n in given if n in model]
            try:
                space = given if isinstance(given, Space) else Space.from_dict(given)
            except SpaceError as error:
                raise SpaceError([*error.problems, *twice]) from error
            if twice:
                raise SpaceError(twice)
        else:
            raise ValueError("must be the name of a shipped space or hyperparameters with their domains")
        if not space:
            raise ValueError("leaves nothing to search")
        return space.to_dict()

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if not objectives:
            raise ValueError("needs an objective, as in [{metric: cider, mode: max}]")
        metrics = [objective.metric for objective in objectives]
        for index, metric in enumerate(metrics):
            if metric in metrics[:index]:
                raise ValueError(f"{metric!r} is there twice; keep one")
        return objectives

    @field_validator("storage")
    @classmethod
    def _place(cls, storage: str) -> str:
        if not storage.strip():
            raise ValueError("names a folder or a URL, but is empty")
        if is_url(storage := local(storage)):
            refuse_url(storage)
            return storage
        return os.path.expanduser(storage)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        refuse_contradictions(self)
        return self
