"""Which trials or variants are worth choosing from: the front, its knee, its size, the best under limits.

Pure functions over a table with a row per candidate; any of its columns of numbers may be a figure. Which
rows are candidates is for `tuning/tables/results.py`, dominance itself and hypervolumes for
`tuning/search/ranking.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from tuning.render import number
from tuning.search import ranking
from tuning.tables.query import QueryError, column_named
from tuning.tables.schema import BETTER, figure_column

Mode = Literal["min", "max"]
#: Which direction is good, by column; the first figure is the most important.
Figures = dict[str, Mode]


def directions(frame: pd.DataFrame, names: Iterable[str], known: Mapping[str, str]) -> Figures:
    """The figures that `names` ask for, and which direction of each is good.

    Args:
        frame: the table that they are columns of.
        names: `NAME`, or `NAME:min` or `NAME:max`, which goes before all that is known.
        known: directions by column, those of the experiment's objectives; else the schema's are taken.

    Raises:
        QueryError: no name, no such column, not a column of numbers, named twice, direction not known.
    """
    found: Figures = {}
    for name in names:
        stem, colon, said = name.rpartition(":")
        if not colon or name in frame:
            stem, said = name, ""
        column = _numbers(frame, stem)
        mode = said if colon and stem != name else known.get(column) or BETTER.get(column)
        if mode is None:
            raise QueryError(f"is a small or a large {stem!r} better? Say {stem}:min or {stem}:max")
        if mode not in get_args(Mode):
            raise QueryError(f"what is good is `min` or `max`, as in {stem}:min, but got {name!r}")
        if column in found:
            raise QueryError(f"{stem!r} is named twice")
        found[column] = mode  # type: ignore[assignment]
    if not found:
        raise QueryError("at least one figure is needed, as in cider,size_mb")
    return found


def comparable(frame: pd.DataFrame, figures: Iterable[str]) -> pd.DataFrame:
    """The rows of `frame` in which every figure is there and finite."""
    values = frame[list(figures)].astype(float)
    return frame[values.map(math.isfinite).all(axis=1)]


def losses(frame: pd.DataFrame, figures: Figures) -> pd.DataFrame:
    """A float64 column per figure in which smaller is better; the index is that of `frame`."""
    return pd.DataFrame(
        {name: frame[name].astype(float) * (-1 if mode == "max" else 1) for name, mode in figures.items()},
        index=frame.index,
    )


def front(frame: pd.DataFrame, figures: Figures) -> pd.DataFrame:
    """The rows that no other beats: none is as good in all `figures` and better in one.

    Rows that lack a figure are left out; of several with equal figures the first stands for all.

    Returns:
        Rows of `frame`, by the first figure, the best first, and at their right a boolean column `knee`:
        true for one row at most, see `knee`.
    """
    found = losses(comparable(frame, figures), figures)
    found = found[ranking.front(found.to_numpy())].sort_values([*figures], kind="stable")
    return frame.loc[found.index].assign(knee=found.index == knee(found))


def knee(front: pd.DataFrame) -> Any:
    """Index of the row beyond which a gain in one figure costs most in the others; None if there is none.

    Of all rows the one whose losses, each scaled to the front's range, have the smallest sum: the minimum
    Manhattan distance from the ideal point (Chiu, Yen & Juan 2016). With two figures it is the point
    farthest below the line through the front's ends (Das 1999); with more, that plane is often not defined,
    for the smallest model tends to be the fastest, too, and the distance always is. Figures that rise
    together each count. An end of the front, a row that is its worst by some figure, is no knee, and where
    one comes as near there is none: the front is straight, or bulges the other way.

    Args:
        front: losses (smaller is better) of rows that do not dominate each other.
    """
    spans = front.max() - front.min()
    telling = [str(name) for name in front if spans[str(name)] > 0]
    scaled = (front[telling] - front[telling].min()) / spans[telling]
    distance, end = scaled.sum(axis=1), (scaled == 1).any(axis=1)
    if end.all() or not end.any():
        return None
    nearest: Any = distance[~end].idxmin()
    return nearest if distance[nearest] < distance[end].min() - 1e-9 else None


def hypervolume_share(frame: pd.DataFrame, figures: Figures) -> float:
    """Share, 0 to 1, of the box spanned by all rows of `frame` that its front dominates; NaN for no box.

    The box reaches from the best to the worst value of every figure among the rows that have all figures:
    its worst corner is the reference point of the hypervolume. So no figure's unit decides, and the share
    says how far the front bulges towards the best of everything; it compares fronts out of the same
    candidates only, and one very bad candidate makes the box, and the share, large. Figures that are equal
    in all rows are left out.
    """
    points = losses(comparable(frame, figures), figures).to_numpy()
    if not len(points):
        return math.nan
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    if not span.any():
        return math.nan
    scaled = (points[:, span > 0] - low[span > 0]) / span[span > 0]
    return ranking.hypervolume(scaled, np.ones(scaled.shape[1]).tolist())


@dataclass(frozen=True)
class Limit:
    """A bound that what is chosen has to keep."""

    column: str
    bound: float
    kind: Mode
    """`max`: the largest value allowed; `min`: the smallest."""

    def excess(self, value: float) -> float:
        """How far `value` is beyond the bound, as a share of it; 0 where it is kept, inf where NaN."""
        if math.isnan(value):
            return math.inf
        beyond = value - self.bound if self.kind == "max" else self.bound - value
        return max(0.0, beyond / (abs(self.bound) or 1.0))

    def __str__(self) -> str:
        return f"{self.column} {'<=' if self.kind == 'max' else '>='} {self.bound:g}"


def limits(
    frame: pd.DataFrame, at_most: Mapping[str, float] | None, at_least: Mapping[str, float] | None
) -> list[Limit]:
    """Largest and smallest values allowed, by column.

    Raises:
        QueryError: no such column, not a column of numbers, a bound that is not finite, or bounds that leave
            nothing between them.
    """
    largest = {_numbers(frame, name): float(bound) for name, bound in (at_most or {}).items()}
    smallest = {_numbers(frame, name): float(bound) for name, bound in (at_least or {}).items()}
    for name, bound in [*largest.items(), *smallest.items()]:
        if not math.isfinite(bound):
            raise QueryError(f"a limit of {name} must be a finite number, but got {bound:g}")
        if name in largest and name in smallest and smallest[name] > largest[name]:
            raise QueryError(
                f"no {name} is both at least {smallest[name]:g} and at most {largest[name]:g}: "
                "the first must not be above the second"
            )
    return [Limit(name, bound, "max") for name, bound in largest.items()] + [
        Limit(name, bound, "min") for name, bound in smallest.items()
    ]


def violation(frame: pd.DataFrame, limits: Sequence[Limit]) -> pd.Series:
    """For each row the sum of the relative excesses over `limits`: 0 where all are kept, inf if unknown."""
    total = pd.Series(0.0, index=frame.index)
    for limit in limits:
        values = frame[limit.column].astype(float)
        total += values.map(limit.excess)
    return total


def shortfalls(row: pd.Series, limits: Sequence[Limit]) -> list[str]:
    """By how much a row misses each limit that it does not keep: `size_mb 6 is 20 % above 5`."""
    missed = []
    for limit in limits:
        value = float(row[limit.column])
        if excess := limit.excess(value):
            side = "above" if limit.kind == "max" else "below"
            share = f"{float(f'{100 * excess:.2g}'):g} %"
            missed.append(f"{limit.column} {number(value)} is {share} {side} {limit.bound:g}")
    return missed


def best_within(frame: pd.DataFrame, figures: Figures, limits: Sequence[Limit]) -> pd.Series | None:
    """The best row by the first figure among those that keep all `limits`; the others decide among equals.

    If none keeps them, the row that comes nearest: with the smallest `violation`. `Limit.excess` of its
    figures tells by how much. None where no row has all figures and limited columns.
    """
    found = losses(comparable(frame, figures), figures)
    beyond = violation(frame.loc[found.index], limits)
    found, beyond = found[beyond < math.inf], beyond[beyond < math.inf]
    if found.empty:
        return None
    order = found.assign(**{"": beyond}).sort_values(["", *figures], kind="stable")
    return frame.loc[order.index[0]]


def _numbers(frame: pd.DataFrame, name: str) -> str:
    """The column of that name, `config/` or `metric/` left out or not, that holds numbers."""
    column = figure_column(name) if figure_column(name) in frame else column_named(frame, name)
    if not pd.api.types.is_numeric_dtype(frame[column]) or pd.api.types.is_bool_dtype(frame[column]):
        raise QueryError(f"{column} holds no numbers, so it is no figure to compare by")
    return column
