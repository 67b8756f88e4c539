"""The columns of the results tables, defined once: name, pandas dtype, meaning.

Writer, reader and README all take them from here. What is in the rows is `tuning/tables/ledger.py`'s
business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from search_spaces.domains import Domain
from search_spaces.space import Space

STRING, INT, FLOAT, BOOL, TIME = "string", "Int64", "Float64", "boolean", "datetime64[us, UTC]"


@dataclass(frozen=True)
class Column:
    """One column. All dtypes are nullable: what does not apply or is not known yet is NA."""

    name: str
    dtype: str
    meaning: str
    better: Literal["min", "max"] | None = None
    """For a figure that trials can be ranked by: which direction is good."""


#: Left of the searched hyperparameters (`config/NAME`) and the figures.
TRIAL_HEAD = (
    Column("trial_id", STRING, "name of the trial, the same in every table"),
    Column("state", STRING, "running, paused, completed, stopped, diverged, failed or out_of_memory"),
    Column("reason", STRING, "one line on why the trial is in this state"),
    Column("epochs", INT, "epochs done; of a fork, those of its parent before it are among them"),
    Column("rung", INT, "highest rung at which the scheduler compared the trial; 0 is the lowest"),
)

#: Figures of the trainable. In `trials` they are those of the best fully evaluated epoch.
FIGURES = (
    Column("cider", FLOAT, "CIDEr-D of generated captions, 0 to 10", "max"),
    Column("bleu4", FLOAT, "BLEU-4 of generated captions, 0 to 1", "max"),
    Column("rouge_l", FLOAT, "ROUGE-L of generated captions, 0 to 1", "max"),
    Column("val_loss", FLOAT, "mean negative log-likelihood per validation token, nats", "min"),
    Column("token_accuracy", FLOAT, "share of validation tokens predicted right, 0 to 1", "max"),
    Column("train_loss", FLOAT, "mean loss per training token, nats", "min"),
)

#: What the model costs as it ships; reported like any other figure, with a place of their own in `trials`.
MODEL_COSTS = (
    Column("params", FLOAT, "parameters of the model as it ships", "min"),
    Column("size_mb", FLOAT, "size of the saved weights as they ship, 10^6 bytes", "min"),
    Column("macs", FLOAT, "multiply-accumulate operations to caption one image", "min"),
    Column(
        "inference_memory_mb",
        FLOAT,
        "most that weights and intermediate results occupy while one image is captioned, 10^6 bytes",
        "min",
    ),
    Column("latency_ms", FLOAT, "median time to caption one image, greedy, one thread, milliseconds", "min"),
    Column("latency_p90_ms", FLOAT, "time that 9 in 10 of these captions take at most, milliseconds", "min"),
    Column(
        "latency_ratio",
        FLOAT,
        "median CPU time to caption one image by that of a fixed network run by turns with it",
        "min",
    ),
    Column("latency_ratio_low", FLOAT, "lower end of the 95 % interval of `latency_ratio`"),
    Column("latency_ratio_high", FLOAT, "upper end of it"),
    Column("latency_noisy", BOOL, "whether other work on the machine disturbed the milliseconds"),
    Column(
        "captions_per_s", FLOAT, "captions per second of one core's time, greedy, in batches of 32", "max"
    ),
)

#: Right of the figures.
TRIAL_TAIL = (
    Column("best_epoch", INT, "fully evaluated epoch with the best first objective; the figures are its"),
    *MODEL_COSTS,
    Column("worker_s", FLOAT, "seconds that workers spent on the trial, summed over workers", "min"),
    Column(
        "parent", STRING, "trial from whose checkpoint it started (`pbt`); NA where it started from nothing"
    ),
    Column("parent_epoch", INT, "epochs of that checkpoint; its own are numbered on from there"),
    Column("chosen", STRING, "one line on why the search chose its configuration"),
    Column("started_at", TIME, "when the trial first started"),
    Column("finished_at", TIME, "when it reached its final state"),
    Column("gang", STRING, "gang that ran its last epoch"),
    Column("node", STRING, "machine that ran its last epoch"),
    Column("checkpoint", STRING, "folder of the best epoch's checkpoint, relative to the experiment's"),
    Column("error", STRING, "traceback of a trial that failed"),
    Column("restarts", INT, "times that a worker of the trial had to be replaced"),
    Column("halvings", INT, "times that its micro batch was halved because it ran out of memory"),
)

EPOCH_HEAD = (
    Column("trial_id", STRING, "the trial"),
    Column("epoch", INT, "epochs done, from 1"),
    Column("attempt", INT, "1, and one more for each worker replaced before this epoch"),
    Column("rung", INT, "rung at which the scheduler compared the trial here"),
    Column("gang", STRING, "gang that ran the epoch"),
)

#: Figures of how an epoch went; they say nothing about the model and so are not in `trials`.
COSTS = (
    Column("learning_rate", FLOAT, "learning rate at the end of the epoch"),
    Column("grad_norm", FLOAT, "mean global norm of the gradient before clipping"),
    Column("images_per_s", FLOAT, "training image-caption pairs per second over all workers"),
    Column("seconds", FLOAT, "duration of the epoch with its evaluation and checkpoint"),
    Column("worker_s", FLOAT, "seconds of work, summed over workers"),
    Column("data_wait_s", FLOAT, "seconds that training waited for data"),
    Column("checkpoint_mb", FLOAT, "size of the epoch's checkpoint, 10^6 bytes"),
    Column("peak_memory_mb", FLOAT, "largest memory of the first worker, 10^6 bytes"),
)

EPOCH_TAIL = (
    Column("hypervolume", FLOAT, "several objectives: of the front of all results up to this report", "max"),
    Column("checkpoint", STRING, "folder of the epoch's checkpoint, relative to the experiment's"),
    Column("at", TIME, "when the epoch was reported"),
)

VARIANT_HEAD = (
    Column("variant_id", STRING, "name of the variant; its trial in `variants/` has the same number"),
    Column("parent", STRING, "trial_id of the trained model that was compressed"),
    Column("parent_epoch", INT, "epoch of the parent's checkpoint"),
    Column(
        "state",
        STRING,
        "as of a trial; stopped: nothing to fine-tune, or another variant beats it",
    ),
    Column("reason", STRING, "one line on why the variant is in this state"),
    Column("methods", STRING, "how it was compressed, `none` for the parent as it is"),
    Column("ratio_asked", FLOAT, "share of the bytes to remove; NA where the method has no choice"),
    Column("ratio", FLOAT, "share of the bytes of the parent's weights file that was removed"),
    Column("fine_tune_epochs", INT, "epochs of fine-tuning that its figures and its checkpoint have"),
)

#: Right of the figures of a variant.
VARIANT_TAIL = (
    *MODEL_COSTS,
    Column("worker_s", FLOAT, "seconds that workers spent on the variant, summed over workers", "min"),
    Column("checkpoint", STRING, "folder of its checkpoint, relative to the experiment's"),
    Column("exported", STRING, "folder of what ships, relative to the experiment's; none at a URL"),
    Column("measured_at", TIME, "when that was measured, with nothing else at work; its costs are from then"),
    Column("error", STRING, "traceback of a variant that failed, or could not be exported or measured"),
)

_TABLES = (*TRIAL_HEAD, *TRIAL_TAIL, *EPOCH_HEAD, *EPOCH_TAIL, *VARIANT_HEAD, *VARIANT_TAIL)
_ALL = (*_TABLES, *FIGURES, *COSTS)

#: Which direction is good, by name, where it is known.
BETTER = {column.name: column.better for column in _ALL if column.better}

COST_NAMES = frozenset(column.name for column in COSTS)

#: Columns of `epochs` that are no figures.
EPOCH_STRUCTURE = frozenset(column.name for column in (*EPOCH_HEAD, *EPOCH_TAIL))
_TAKEN = {column.name for column in _TABLES}
_TAKEN -= {column.name for column in MODEL_COSTS} | {"worker_s"}  # reported like any other figure


def figure_column(metric: str) -> str:
    """Column of a reported figure: its own name, or `metric/NAME` where a column of that name exists."""
    return f"metric/{metric}" if metric in _TAKEN else metric


def searched_columns(space: Space) -> dict[str, str]:
    """Columns `config/NAME` of a space's hyperparameters and their dtypes."""
    return {f"config/{name}": _domain_dtype(domain) for name, domain in space.items()}


def _domain_dtype(domain: Domain) -> str:
    if domain.key != "choice":
        return INT if domain.key == "int" else FLOAT
    kinds = {type(value) for value in domain.examples() if value is not None}  # None is NA in any dtype
    if kinds == {bool}:
        return BOOL
    if kinds == {int}:
        return INT
    return FLOAT if kinds and kinds <= {int, float} else STRING


def trials_dtypes(searched: Mapping[str, str], figures: Iterable[str]) -> dict[str, str]:
    """dtype by column of `trials`, in order. `figures`: columns of reported figures, objectives first."""
    head = {column.name: column.dtype for column in TRIAL_HEAD}
    tail = {column.name: column.dtype for column in TRIAL_TAIL}
    middle = {name: FLOAT for name in figures if name not in tail}
    return {**head, **searched, **middle, **tail}


def epochs_dtypes(figures: Iterable[str]) -> dict[str, str]:
    """dtype by column of `epochs`, in order."""
    head = {column.name: column.dtype for column in EPOCH_HEAD}
    tail = {column.name: column.dtype for column in (*COSTS, *EPOCH_TAIL)}
    middle = {name: FLOAT for name in figures if name not in tail}
    return {**head, **middle, **tail}


def variants_dtypes(searched: Mapping[str, str], figures: Iterable[str]) -> dict[str, str]:
    """dtype by column of `variants`, in order. `searched`: what else tells children apart."""
    head = {column.name: column.dtype for column in VARIANT_HEAD}
    tail = {column.name: column.dtype for column in VARIANT_TAIL}
    middle = {name: FLOAT for name in figures if name not in head | tail}
    return {**head, **searched, **middle, **tail}


def to_frame(rows: Iterable[Mapping[str, Any]], dtypes: Mapping[str, str]) -> pd.DataFrame:
    """A table with exactly these columns and dtypes; what a row lacks is NA."""
    rows = list(rows)
    return pd.DataFrame(
        {
            name: pd.Series([_cell(row.get(name), dtype) for row in rows], dtype=dtype)
            for name, dtype in dtypes.items()
        }
    )


def _cell(value: Any, dtype: str) -> Any:
    if value is None or value is pd.NA or value is pd.NaT or value != value:  # NaN is no figure either
        return None
    if dtype == INT:
        return round(value)
    if dtype == BOOL:
        return bool(value)
    return str(value) if dtype == STRING else value
