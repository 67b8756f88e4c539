"""The sections of an experiment file, each a frozen pydantic model that refuses what it does not know.

A value that is wrong by itself, or beside another of its section, is refused here; what sections may not say
together is in `contradictions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainables.store import is_url
from tuning.contradictions import Contradictions
from tuning.values import AutoCount, Count, flatten, seconds_of

#: Workers that wait for work speak to their owner every 5 s (`trainables.gang.POLL_S`).
SHORTEST_HANG_S = 10.0


class Strict(BaseModel):
    """Frozen; unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Objective(Strict):
    """One figure of the trials that is to be as large or as small as possible."""

    metric: Annotated[str, Field(min_length=1)]
    """A metric that the trainable reports."""
    mode: Literal["max", "min"]
    reference: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Worst value worth having; the hypervolume is measured from here."""

    def loss(self, value: float) -> float:
        """`value` with its sign turned where larger is better: smaller always is."""
        return -value if self.mode == "max" else value


class Constraint(Strict):
    """A bound that the best trial must keep."""

    metric: Annotated[str, Field(min_length=1)]
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    min: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Constraint:
        if self.max is None and self.min is None:
            raise ValueError("needs `max` or `min`")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"`min <= max` must hold, but got min={self.min:g}, max={self.max:g}")
        return self

    def excess(self, value: float) -> float:
        """How far `value` is beyond the bound, as a share of the bound; 0 or less where it is kept."""
        above = [] if self.max is None else [(value - self.max) / (abs(self.max) or 1.0)]
        below = [] if self.min is None else [(self.min - value) / (abs(self.min) or 1.0)]
        return max(above + below)


class Search(Strict):
    """Which configuration is tried next."""

    algorithm: Literal["auto", "random", "grid", "sobol", "tpe", "gp", "cmaes", "nsga2", "pbt"] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides every random choice of the run: suggestions, initial weights, order of the data."""
    startup_trials: Count = 10
    """`tpe`, `gp`: trials drawn at random before the first is modelled. `auto` begins with eight."""
    population: Annotated[int, Field(ge=2)] | None = None
    """`pbt`: trials that are trained side by side; `null`: 8."""
    interval: Count | None = None
    """`pbt`: epochs between two rungs, at which the last quarter of the population is replaced; `null`: a
    ninth of `scheduler.max_epochs`."""
    start: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    """Configurations that run first, by hyperparameter name; names left out are drawn by the searcher."""
    from_: Annotated[tuple[str, ...], Field(strict=False, alias="from")] = ()
    """Earlier experiments whose trials the searcher (`auto`, `tpe` or `gp`) learns from, or whose best come
    first: a name in `storage`, a folder, or a table of trials that ends in `.parquet`."""

    def places(self) -> int:
        """Size of the population of `pbt`."""
        return self.population or 8

    def replaced(self) -> int:
        """How many trials of the population a rung replaces, and of how many of the best by forks."""
        return min(math.ceil(self.places() / 4), self.places() // 2)

    @field_validator("start", mode="before")
    @classmethod
    def _flat_start(cls, start: object) -> object:
        if isinstance(start, (list, tuple)):
            return tuple(flatten(config) if isinstance(config, Mapping) else config for config in start)
        return start

    @field_validator("from_")
    @classmethod
    def _sources(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for index, source in enumerate(sources):
            if not source.strip():
                raise ValueError("names an experiment, a folder or a .parquet table, but one is empty")
            if is_url(source):
                raise ValueError(f"only folders and files are supported so far, but got {source!r}")
            if source in sources[:index]:
                raise ValueError(f"{source!r} is there twice; keep one")
        return sources


#: Of fewer trials too few are seen for the model of `auto` to choose who goes on.
FEWEST_MODELLED = 16


class Scheduler(Strict):
    """Which trials go on, and how far."""

    algorithm: Literal["auto", "asha", "asha_stopping", "front", "none"] = "auto"
    """`auto`: the model of `search.algorithm: auto` promotes, too; beside another searcher, and where
    `budget.trials` is below 16, it is `asha`."""
    min_epochs: AutoCount = "auto"
    """No trial is paused or stopped by the scheduler before it; `auto`: a ninth of `max_epochs`."""
    max_epochs: Count = 9
    """Epochs of a trial that passes every rung."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """One trial in this many goes on at each rung; rungs are at `min_epochs` times its powers."""

    @model_validator(mode="after")
    def _ordered(self) -> Scheduler:
        if self.min_epochs != "auto" and self.min_epochs > self.max_epochs:
            raise ValueError(
                f"`min_epochs <= max_epochs` must hold, "
                f"but got min_epochs={self.min_epochs}, max_epochs={self.max_epochs}"
            )
        return self

    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are compared: `min_epochs * reduction_factor**k` below `max_epochs`."""
        rungs = []
        epoch = max(1, self.max_epochs // 9)
        if self.min_epochs != "auto":
            epoch = self.min_epochs
        while self.algorithm != "none" and epoch < self.max_epochs:
            rungs.append(epoch)
            epoch *= self.reduction_factor
        return tuple(rungs[:1] if self.algorithm == "front" else rungs)


class Budget(Strict):
    """What a run may cost: it ends at whichever limit comes first."""

    trials: Count | None = None
    """Most trials that start, all runs together. Their epochs then follow from the scheduler; where that is
    `auto`, they are as many as `asha` would spend on so many trials, and those of one training more."""
    epochs: Count | None = None
    """Most epochs of all trials, all runs together."""
    time: str | float | None = None
    """Seconds, or text such as `90s`, `30m`, `2h`, `1h30m`; anew with every run."""
    worker_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Hours that workers train, summed over workers and all runs; GPU-hours where a worker has one GPU. What
    came to no epoch, as its trial failed, lost its workers or was interrupted, counts, too; only what was
    under way when the driver itself was killed is not known."""
    money: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Most that the worker-hours may cost, all runs together; needs `price_per_hour`."""
    price_per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Price of one worker for an hour, in any currency; without `money` the cost is only shown."""
    plateau: Count | None = None
    """No other trial begins or goes on once this many in a row were paused or over without a better best
    (several objectives: without a larger hypervolume); the best is trained to its end."""

    @field_validator("time", mode="plain")
    @classmethod
    def _duration(cls, time: object) -> object:
        if time is not None:
            seconds_of(time)
        return time

    @model_validator(mode="after")
    def _limited(self) -> Budget:
        limits = (self.trials, self.epochs, self.time, self.worker_hours, self.money)
        if all(limit is None for limit in limits):
            raise ValueError(
                "needs one of `trials`, `epochs`, `time`, `worker_hours`, `money`, else the run may never end"
            )
        if self.money is not None and self.price_per_hour is None:
            raise ValueError("`money` needs `price_per_hour`, the price of one worker for an hour")
        return self

    @property
    def time_s(self) -> float | None:
        """`time` in seconds."""
        return None if self.time is None else seconds_of(self.time)


class Training(Strict):
    """What one trial runs on."""

    workers: Count = 1
    """Processes that train one trial together (DDP)."""
    cpus_per_worker: Count = 1
    """Cores, and so threads, of each worker."""
    gpus_per_worker: float | Literal["auto"] = "auto"
    """`auto`: one where the cluster has GPUs, else none."""
    gangs: AutoCount = "auto"
    """Trials at the same time; `auto`: as many as fit on the cluster, also while it grows and shrinks."""
    max_gangs: Count | None = None
    """`gangs: auto`: never more trials at the same time than this; so many are asked of an autoscaler."""
    priority: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Experiments that run on one cluster share it; one of priority 2 gets twice as much as one of 1."""
    wait_for_resources: str | float | None = None
    """How long to wait for a cluster that is too small to grow: seconds, or text such as `10m`. `null`: an
    experiment that is too large is refused."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    on_out_of_memory: Literal["fail", "accumulate"] = "fail"
    """What becomes of a trial for which memory does not suffice: it is over, as `out_of_memory`, or goes on
    from its last checkpoint with each batch in parts half as large, whose gradients are accumulated."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Times that a trial is taken up again after one of its workers died."""
    hang_timeout: str | float = "auto"
    """Workers from which nothing was heard for so long, in the middle of an epoch, are replaced as dead ones
    are: seconds, or text such as `90s`, `30m`. `auto`: ten times the trial's slowest epoch so far and at
    least 5 minutes; 6 hours before its first one is done."""

    @field_validator("gpus_per_worker", mode="plain")
    @classmethod
    def _gpus(cls, value: object) -> object:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value == "auto" or (number and (0 <= value <= 1 or value in range(10_000))):  # type: ignore
            return value if value == "auto" else float(value)  # type: ignore[arg-type]
        raise ValueError("must be 'auto', a share of a GPU from 0 to 1, or a whole number")

    @field_validator("hang_timeout", mode="plain")
    @classmethod
    def _hang_timeout(cls, value: object) -> object:
        if value != "auto" and seconds_of(value) < SHORTEST_HANG_S:
            raise ValueError(f"must be 'auto' or at least {SHORTEST_HANG_S:g}s: what waits speaks every 5 s")
        return value

    @property
    def hang_timeout_s(self) -> float | None:
        """`hang_timeout` in seconds; None where it is `auto`."""
        return None if self.hang_timeout == "auto" else seconds_of(self.hang_timeout)

    @field_validator("wait_for_resources", mode="plain")
    @classmethod
    def _wait(cls, value: object) -> object:
        if value is not None:
            seconds_of(value)
        return value

    @property
    def wait_s(self) -> float:
        """`wait_for_resources` in seconds; 0.0 where it is not given."""
        return 0.0 if self.wait_for_resources is None else seconds_of(self.wait_for_resources)

    @model_validator(mode="after")
    def _one_limit(self) -> Training:
        if self.max_gangs is not None and self.gangs != "auto":
            raise Contradictions([(("max_gangs",), f"is for `gangs: auto`, but `gangs` is {self.gangs}")])
        return self


class Checkpoints(Strict):
    """Which checkpoints of the trials stay on storage, beside those that a trial may go on from."""

    keep: Literal["all", "needed"] = "all"
    """`all`: the best epoch's of every trial that did not go wrong, so that each can be exported. `needed`:
    only those of the best trial, and while that may fail of the next (several objectives: of the front;
    `search: children`: of the parents)."""
    max_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Most that all of them may take, 10^9 bytes: beyond it those that are not needed go, the worst trials'
    first. `null`: no limit. Variants (`compression`) keep all of theirs: each is yet to be measured."""

    @property
    def max_mb(self) -> float:
        """What all of them may take, 10^6 bytes; 0.0: only those that are needed."""
        if self.keep == "needed":
            return 0.0
        return math.inf if self.max_gb is None else 1e3 * self.max_gb


#: The hyperparameter that says in which ways a trial's model is compressed; `none` leaves it whole.
METHOD = "compression.method"


class Compression(Strict):
    """How trained models are made smaller: within the search, or after it."""

    search: Literal["joint", "children"] = "joint"
    """`joint`: `compression.*` are hyperparameters like any other. `children`: when the search is over, its
    best trials, all of them whole, are compressed in many ways, and fine-tuned where that pays. The other
    keys are for it."""
    parents: Count = 2
    """The best so many finished trials are compressed."""
    methods: Annotated[tuple[str, ...], Field(strict=False)] = (
        "none",
        "fp16",
        "int8",
        "int4",
        "prune+int8",
        "low_rank+int8",
        "distil+int8",
    )
    """Ways to compress each of them; `none` is the parent as it is, for comparison."""
    ratios: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)] = (
        0.5,
        0.75,
        0.9,
    )
    """Shares of the bytes to remove, each with every method that can choose."""
    epochs: Annotated[int, Field(ge=0)] = 3
    """Fine-tuning epochs of a variant that no other beats once all are compressed and evaluated."""

    @field_validator("methods", "ratios")
    @classmethod
    def _different(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values:
            raise ValueError("needs at least one")
        for index, value in enumerate(values):
            if value in values[:index]:
                raise ValueError(f"{value!r} is there twice; keep one")
        return values

    @model_validator(mode="after")
    def _of_children(self) -> Compression:
        if self.search == "joint":
            given = {
                name for name, key in type(self).model_fields.items() if getattr(self, name) != key.default
            }
            if given:
                rule = "is for `search: children`, but `search` is 'joint'"
                raise Contradictions([((name,), rule) for name in sorted(given)])
        return self
