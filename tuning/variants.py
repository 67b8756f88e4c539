"""The table of variants: what became of every child of the best trials.

A row has the figures of the epoch whose checkpoint it names, those of `variants/trials.parquet`, and once
what ships was measured on its own, the costs of that measurement in their place. Measured figures stay for
as long as the checkpoint does.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from tuning.children import FOLDER, RATIO, parent_of
from tuning.sections import METHOD
from tuning.tables.comparison import WENT_WRONG, Row
from tuning.tables.configurations import PREFIX, configurations
from tuning.tables.results import Results
from tuning.tables.schema import (
    TRIAL_HEAD,
    TRIAL_TAIL,
    VARIANT_HEAD,
    VARIANT_TAIL,
    figure_column,
    searched_columns,
    to_frame,
    variants_dtypes,
)
from tuning.tables.storage import read_table, write_table

#: The metric by which a trainable tells how much a variant was compressed.
RATIO_METRIC = "compression_ratio"

_STRUCTURE = {column.name for column in (*TRIAL_HEAD, *TRIAL_TAIL)} - {c.name for c in VARIANT_TAIL}
_OWN = {column.name for column in VARIANT_HEAD} | {
    "checkpoint",
    "exported",
    "measured_at",
    "error",
    "worker_s",
}


class Variants:
    """The rows of `variants.parquet`; written whole with every change.

    Args:
        children: the inner experiment's tables.
        folder: the parents' experiment's.
    """

    def __init__(self, children: Results, folder: Path):
        self._path = folder / f"{FOLDER}.parquet"
        before = _rows(read_table(self._path, VARIANT_HEAD)) if self._path.exists() else []
        measured = {row["variant_id"]: row for row in before if "measured_at" in row}
        self._searched = searched_columns(children.experiment.space)
        asked = [each.metric for each in children.experiment.objectives]
        asked += [each.metric for each in children.experiment.constraints]
        self._named = [name for each in asked if (name := figure_column(each)) not in _OWN]
        configs = configurations(children.trials, children.experiment.space)
        self.rows: dict[str, Row] = {}
        for trial in _rows(children.trials):
            row = _variant(trial, configs[trial["trial_id"]])
            if RATIO_METRIC in self._named and RATIO_METRIC in trial:
                row[RATIO_METRIC] = trial[RATIO_METRIC]
            old = measured.get(row["variant_id"], {})
            if old.get("checkpoint") == row.get("checkpoint"):
                row |= {name: value for name, value in old.items() if name not in _OWN}
                row |= {name: old[name] for name in ("exported", "measured_at") if name in old}
            self.rows[row["variant_id"]] = row

    def unmeasured(self) -> list[Row]:
        """Rows of the variants that can ship and were not measured with this checkpoint yet."""
        return [
            row
            for row in self.rows.values()
            if row["state"] not in WENT_WRONG and "checkpoint" in row and "measured_at" not in row
        ]

    def measured(
        self, variant_id: str, costs: Mapping[str, float], exported: str | None, at: datetime
    ) -> None:
        """Take in what was measured, in which folder of the experiment if that was kept; write the table."""
        row = self.rows[variant_id]
        row |= {figure_column(name): value for name, value in costs.items()}
        row |= {"exported": exported, "measured_at": at, "error": None}
        self.write()

    def failed(self, variant_id: str, error: str) -> None:
        """Take in that a variant could not be exported or measured, and write the table."""
        self.rows[variant_id]["error"] = error
        self.write()

    def table(self) -> pd.DataFrame:
        """The table as of now, in the order in which the variants started."""
        names = dict.fromkeys(self._named)
        names |= dict.fromkeys(name for row in self.rows.values() for name in row if name not in _OWN)
        rest = {name: dtype for name, dtype in self._searched.items() if name in names}
        return to_frame(self.rows.values(), variants_dtypes(rest, (n for n in names if n not in rest)))

    def write(self) -> None:
        """Replace the table on disk."""
        write_table(self.table(), self._path)


def _variant(trial: Row, config: Mapping[str, Any]) -> Row:
    """The row of one child."""
    parent = parent_of(config)
    row = {
        "variant_id": f"v{trial['trial_id']}",
        "parent": parent.trial_id,
        "parent_epoch": parent.epoch,
        "methods": config[METHOD],
        "ratio_asked": config.get(RATIO),
        "ratio": trial.get(RATIO_METRIC),
        **{name: trial.get(name) for name in ("state", "reason", "worker_s", "error")},
    }
    if "checkpoint" in trial:
        row["checkpoint"] = f"{FOLDER}/{trial['checkpoint']}"
        row["fine_tune_epochs"] = trial["best_epoch"] - 1
    told = {METHOD, RATIO, *(name for name, value in config.items() if value == parent.checkpoint)}
    row |= {PREFIX + name: value for name, value in config.items() if name not in told}
    figures = trial.keys() - _STRUCTURE - _OWN - {RATIO_METRIC}
    return row | {name: trial[name] for name in trial if name in figures and not name.startswith(PREFIX)}


def _rows(frame: pd.DataFrame) -> list[Row]:
    """Rows of a table without what is NA."""
    return [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in frame.to_dict("records")
    ]
