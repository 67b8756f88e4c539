"""How rows of `trials` and `epochs` compare: losses, violations, the best epoch of a trial.

Knows an experiment's objectives and constraints and the names of columns. Who is compared with whom is for
`tuning/tables/ledger.py`; whole tables are compared in `tuning/tables/results.py`, by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tuning.tables.schema import COST_NAMES, EPOCH_STRUCTURE, figure_column

if TYPE_CHECKING:
    from tuning.experiment import Experiment

Row = dict[str, Any]

#: Trials in these states are never recommended, however good their figures were before.
WENT_WRONG = frozenset({"diverged", "failed", "out_of_memory"})


class Comparison:
    """What the objectives and constraints of an experiment make of a row."""

    def __init__(self, experiment: Experiment):
        self._objectives = [(figure_column(each.metric), each.loss) for each in experiment.objectives]
        self._constraints = [(figure_column(each.metric), each.excess) for each in experiment.constraints]
        wanted = [name for name, _ in self._objectives] + [name for name, _ in self._constraints]
        self.columns = list(dict.fromkeys(wanted))
        """Columns that are compared: objectives, then constraints."""
        self.references = [
            None if each.reference is None else each.loss(each.reference) for each in experiment.objectives
        ]
        """For each objective the loss from which the hypervolume is measured; None where it is not given."""

    def losses(self, row: Row) -> tuple[float, ...] | None:
        """One per objective, smaller is better; None where one is missing or not finite."""
        if not all(_is_number(row.get(name)) for name, _ in self._objectives):
            return None
        return tuple(loss(row[name]) for name, loss in self._objectives)

    def violation(self, row: Row) -> float:
        """By how much a row misses the constraints, 0 if it meets them all; inf where a figure is missing."""
        return sum(
            max(0.0, excess(row[name])) if _is_number(row.get(name)) else math.inf
            for name, excess in self._constraints
        )

    def best_epoch(self, epochs: Iterable[Row]) -> Row | None:
        """The fully evaluated epoch with the best first objective; None if there is none.

        Among equals the later objectives decide, then the earlier epoch. Fully evaluated means: every
        objective is there, and no other such epoch carries more figures (between rungs a trainable may
        leave out those that cost much, like generated captions).
        """
        candidates = [
            (-_figure_count(row), losses, row["epoch"], row)
            for row in epochs
            if (losses := self.losses(row)) is not None
        ]
        return min(candidates, key=lambda candidate: candidate[:3])[3] if candidates else None


def _figure_count(row: Row) -> int:
    """How many figures an evaluation has brought; an epoch that only compresses has none of training."""
    evaluated = row.keys() - EPOCH_STRUCTURE - COST_NAMES - {"train_loss"}
    return sum(_is_number(row[name]) for name in evaluated)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
