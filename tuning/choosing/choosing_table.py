"""How choosing looks in a terminal: the front and what there is to say about it, what was exported and why.

What is on the front, and how it is measured, is `tuning/choosing/pareto.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from tuning.choosing import pareto
from tuning.choosing.pareto import Figures, Limit
from tuning.choosing.shipping import label
from tuning.render import cell_text, count, missing, number
from tuning.tables.query import fitting
from tuning.tables.schema import figure_column

if TYPE_CHECKING:
    from tuning.tables.results import Results

#: What what ships costs.
_COSTS = ("size_mb", "latency_ms", "latency_ratio", "params", "macs")
#: How a variant was made.
_MAKING = ("parent", "methods", "ratio", "fine_tune_epochs")


def front_frame(
    front: pd.DataFrame, figures: Figures, limits: Sequence[Limit], *, width: int
) -> pd.DataFrame:
    """The columns of a front that tell most, as many as `width` characters have room for."""
    words = {"knee": "knee", "within_limits": "yes"}
    marks = {name: front[name].map({True: word, False: ""}) for name, word in words.items() if name in front}
    marked = front.assign(**marks)
    config = [str(name) for name in front if str(name).startswith("config/")]
    limited = [limit.column for limit in limits]
    names = ["variant_id" if "variant_id" in front else "trial_id", *figures, *limited, *marks]
    names += [name for name in (*_MAKING, "state", *config) if name in front]
    return fitting(marked, names=list(dict.fromkeys(names)), width=width, text=cell_text)


def front_lines(
    candidates: pd.DataFrame, front: pd.DataFrame, figures: Figures, limits: Sequence[Limit]
) -> list[str]:
    """Size of the front, hypervolume, knee and, where there are limits, the best that keeps them."""
    by = ", ".join(f"{_short(name)} ({mode})" for name, mode in figures.items())
    compared = len(pareto.comparable(candidates, figures))
    told = [f"front        {len(front)} of {count(compared, 'candidate')} that no other beats in {by}"]
    share = pareto.hypervolume_share(candidates, figures)
    told.append(f"hypervolume  {number(share)} of the box from the candidates' worst to their best figures")
    knee = front[front["knee"]]
    told.append(
        "knee         none: the front has no bulge between its ends"
        if knee.empty
        else f"knee         {label(knee.iloc[0])}: {_values(knee.iloc[0], figures)}"
    )
    told += [_best(candidates, front, figures, limits)] if limits else []
    return told + _disturbed(front, [*figures, *(limit.column for limit in limits)])


def shipped_table(found: Results, row: pd.Series, limits: Sequence[Limit] | None, folder: Path) -> Table:
    """What was exported, why, its figures, and where it is.

    Args:
        found: the experiment.
        row: the candidate.
        limits: what it had to keep; None where it was asked for by name.
        folder: that it was exported into.
    """
    table = Table.grid(padding=(0, 2))
    table.add_row("exported", Text(f"{label(row)} ({row['state']})", style="bold green"))
    objectives = [figure_column(each.metric) for each in found.experiment.objectives]
    if limits is not None:
        rows = pareto.comparable(found.candidates(feasible=False), objectives)
        kept = int((pareto.violation(rows, limits) == 0).sum())
        among = f"{count(len(rows), 'candidate')}"
        among = f"the {kept} of {among} with {', '.join(map(str, limits))}" if limits else among
        table.add_row("why", f"best {_short(objectives[0])} of {among}")
    limited = [limit.column for limit in limits or []]
    for name in dict.fromkeys([*_MAKING, *objectives, *limited, *_COSTS]):
        if name in row and not missing(row[name]):
            table.add_row(_short(name), number(row[name]))
    table.add_row("folder", Text(str(folder)))
    return table


def _best(candidates: pd.DataFrame, front: pd.DataFrame, figures: Figures, limits: Sequence[Limit]) -> str:
    wanted = ", ".join(map(str, limits))
    row = pareto.best_within(candidates, figures, limits)
    if row is None:
        return f"best         none with {wanted}: no candidate has all these figures"
    values = _values(row, [*figures, *(limit.column for limit in limits)])
    if missed := pareto.shortfalls(row, limits):
        return f"best         none with {wanted}; nearest is {label(row)}, {' and '.join(missed)}: {values}"
    elsewhere = "" if row.name in front.index else " (not on this front)"
    return f"best         {label(row)} with {wanted}: {values}{elsewhere}"


def _disturbed(front: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """A word of caution where milliseconds were measured while the machine did other work, too."""
    if "latency_noisy" not in front or not {"latency_ms", "latency_p90_ms"} & set(names):
        return []
    noisy = int(front["latency_noisy"].fillna(False).sum())
    if not noisy:
        return []
    return [
        f"note         other work disturbed the milliseconds of {noisy} of these; latency_ratio is steadier"
    ]


def _values(row: pd.Series, names: Any) -> str:
    return ", ".join(f"{_short(name)} {number(row[name])}" for name in dict.fromkeys(names))


def _short(column: str) -> str:
    return column.removeprefix("config/").removeprefix("metric/")


def nothing_to_choose(found: Results, figures: Figures) -> str:
    """Why there is no front."""
    rows, kind = (found.trials, "trial") if found.variants.empty else (found.variants, "variant")
    states = ", ".join(f"{times} {state}" for state, times in rows["state"].value_counts().items())
    constraints = ", ".join(
        f"{_short(each.metric)} {sign} {bound:g}"
        for each in found.experiment.constraints
        for sign, bound in (("<=", each.max), (">=", each.min))
        if bound is not None
    )
    kept = f" and keeps {constraints}" if constraints else ""
    return f"no {kind} of {found.name!r} has {', '.join(figures)}{kept} ({kind}s: {states or 'none'})"
