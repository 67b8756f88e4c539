"""How well early epochs tell which trials are good in the end: rank correlations, and the words for them.

Pure: rows of the `epochs` table in. Acting on what is found is left to the reader: no scheduler looks here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tuning.tables.schema import FLOAT, INT, STRING, figure_column, to_frame

if TYPE_CHECKING:
    from tuning.experiment import Objective

#: Trials below which a rank correlation says nothing: of three, one in six random orders is perfect.
MIN_TRIALS = 4
#: A true correlation below this one is worth a warning. It is given where even the upper end of the 95 %
#: interval of the one that was found is below: at a true `LOW` once in fifty times, however few the trials.
#: Where only the best third of a rung went on and all its trials correlate at 0.7, once in a hundred with 8.
LOW = 0.3
#: Trials below which the interval is not worth its name.
WARNING_TRIALS = 5

_DTYPES = {"epoch": INT, "objective": STRING, "correlation": FLOAT, "trials": INT}


def agreement(
    rows: Iterable[Mapping[str, Any]], objectives: Sequence[Objective], levels: Sequence[int]
) -> pd.DataFrame:
    """Spearman's rank correlation between the figures at each rung and those at the last epoch.

    1: the rung ranks trials as the end does; 0: it says nothing; below: it prefers the worse. Only trials
    with finite figures at both count. Those are the ones that were promoted, mostly good ones, whose order
    is harder to tell than that of all: with its range so restricted (Thorndike 1949, "Personnel Selection"),
    the correlation tends to be a lower bound of what one over all trials would be.

    Args:
        rows: of the `epochs` table, in any order; with `trial_id`, `epoch` and the objectives' columns.
        objectives: what the trials are ranked by, each for itself.
        levels: epochs of the rungs and, at the end, the last epoch of a trial.

    Returns:
        One row per rung and objective: `epoch` of the rung, `objective` (its metric), `correlation` (NA with
        fewer than `MIN_TRIALS` trials, or where all have the same figure), `trials` that were compared.
    """
    *rungs, last = levels
    figures: dict[tuple[int, str], dict[str, float]] = {}
    columns = {objective.metric: figure_column(objective.metric) for objective in objectives}
    for row in rows:
        for metric, column in columns.items():
            value = row.get(column)
            if isinstance(value, (int, float)) and math.isfinite(value):
                figures.setdefault((row["epoch"], metric), {})[row["trial_id"]] = value
    found = []
    for rung in rungs:
        for metric in columns:
            early, late = figures.get((rung, metric), {}), figures.get((last, metric), {})
            both = [trial_id for trial_id in late if trial_id in early]
            # `max` or `min` makes no difference: both sides would be turned round.
            correlation = _correlation([early[each] for each in both], [late[each] for each in both])
            found.append(
                {"epoch": rung, "objective": metric, "correlation": correlation, "trials": len(both)}
            )
    return to_frame(found, _DTYPES)


def in_short(table: pd.DataFrame) -> str:
    """What `agreement` found as part of a line: `epoch 3 ranks the end at 0.62`; empty if nothing."""
    parts: list[str] = []
    for row, by in _known(table):
        verb = "" if parts else " ranks the end"
        parts.append(f"epoch {row.epoch}{verb} at {row.correlation:z.2f}{by}")
    return ", ".join(parts)


def in_full(table: pd.DataFrame, *, key: str = "scheduler.min_epochs") -> list[str]:
    """What `agreement` found as lines, with an advice where a correlation is surely low; none if nothing.

    `key`: of the experiment file, which says when trials are first compared.
    """
    lines, misleading = [], 0
    for row, by in _known(table):
        told = f"trials rank as at the end at {row.correlation:z.2f}{by}"
        lines.append(f"after epoch {row.epoch}, {told} ({row.trials} trials)")
        if row.trials >= WARNING_TRIALS and upper_end(row.correlation, row.trials) < LOW:
            misleading = max(misleading, row.epoch)
    if misleading:
        lines.append(f"early epochs may mislead here: raise {key} above {misleading}")
    return lines


def upper_end(correlation: float, trials: int) -> float:
    """Upper end of the 95 % interval of Spearman's correlation of so many trials, by Fisher's z.

    Its variance is 1.06 / (trials - 3) (Fieller, Hartley & Pearson 1957, "Tests for rank correlation
    coefficients. I"); `trials` is at least 4.
    """
    if abs(correlation) >= 1:  # z is infinite there
        return correlation
    return math.tanh(math.atanh(correlation) + 1.96 * math.sqrt(1.06 / (trials - 3)))


def _correlation(early: Sequence[float], late: Sequence[float]) -> float | None:
    if len(early) < MIN_TRIALS or len(set(early)) == 1 or len(set(late)) == 1:
        return None
    from scipy.stats import spearmanr  # half a second, and most tables are read for something else

    return float(spearmanr(early, late).statistic)


def _known(table: pd.DataFrame) -> list[tuple[Any, str]]:
    """Rows that have a correlation, and by which objective it is where there are several."""
    several = table["objective"].nunique() > 1
    rows = table.dropna(subset="correlation").itertuples(index=False)
    return [(row, f" by {row.objective}" if several else "") for row in rows]
