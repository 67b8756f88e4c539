"""Two models of an experiment side by side, as tables.

Each is exported as it would ship. What differs between them is the trainable's to tell (its optional class
method `compare`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd

from trainables.scratch import scratch_folder
from trainables.trial import resolve_trainable
from tuning.choosing.shipping import checkpoint_of, named, ship
from tuning.tables.query import QueryError
from tuning.tables.results import Results
from tuning.tables.schema import BOOL, FLOAT, INT, STRING, to_frame


def compare(found: Results, a: str, b: str, *, progress: bool = False) -> dict[str, pd.DataFrame]:
    """What the trainable tells about two models of its own; the most telling table first.

    Args:
        found: the experiment.
        a, b: `variant_id` or `trial_id`; a smaller model is best the second.
        progress: show a bar while data is prepared that is not there any more.

    Raises:
        QueryError: no such model, or a trainable that cannot compare.
        CannotShip: a checkpoint is gone.
        SettingsError: the data is not there any more.
    """
    name = found.experiment.trainable
    trainable: Any = resolve_trainable(name)
    if not hasattr(trainable, "compare"):
        raise QueryError(
            f"{found.name!r} tunes {name!r}, which does not tell how two of its models differ: "
            "it has no class method `compare`"
        )
    checkpoints = [checkpoint_of(found, named(found, each)) for each in (a, b)]
    with scratch_folder() as scratch:
        exported = [Path(scratch) / side for side in ("a", "b")]
        for checkpoint, folder in zip(checkpoints, exported, strict=True):
            ship(name, checkpoint, folder)
        tables = trainable.compare(*exported, found.experiment.data, progress=progress)
    return {table: _frame(rows) for table, rows in tables.items()}


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)
    return to_frame(rows, {name: _dtype(row.get(name) for row in rows) for name in names})


def _dtype(values: Iterable[Any]) -> str:
    known = [value for value in values if value is not None]
    for kind, dtype in ((bool, BOOL), (Integral, INT), (Real, FLOAT)):
        if known and all(isinstance(value, kind) for value in known):
            return dtype
    return STRING
