"""Which rows and columns of a results table are wanted: `--where`, `--sort`, `--columns` as text.

Conditions are parsed, never evaluated as code. Every mistake is a `QueryError` that names the remedy.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from search_spaces.nearest import nearest
from tuning.tables.schema import BETTER

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_COMPARISON = re.compile(
    r"""\s*(?P<column>[^\s<>=!]+)\s*(?P<operator>==|!=|<=|>=|<|>|=)\s*(?P<value>"[^"]*"|'[^']*'|[^\s<>=!'"]+)\s*"""
)
_AND = re.compile(r"and\s+", re.IGNORECASE)


class QueryError(ValueError):
    """A question that the table cannot answer."""


def column_named(frame: pd.DataFrame, name: str) -> str:
    """The column of that name; `config/` may be left out.

    Raises:
        QueryError: there is none; names the nearest.
    """
    for candidate in (name, f"config/{name}"):
        if candidate in frame.columns:
            return candidate
    names = [str(column) for column in frame.columns]
    short = [column.removeprefix("config/") for column in names]
    raise QueryError(f"there is no column {name!r}{nearest(name, dict.fromkeys([*short, *names]))}")


def where(frame: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Rows that meet `COLUMN OP VALUE [and COLUMN OP VALUE …]`; an empty cell meets nothing.

    OP is one of == != < <= > >=. Text with spaces goes in quotes, times are ISO 8601 (UTC if not said).

    Raises:
        QueryError: not of that form, an unknown column, or a value that does not fit the column.
    """
    position = 0
    while True:
        found = _COMPARISON.match(condition, position)
        if not found:
            raise QueryError(
                f"cannot read {condition[position:].strip() or condition!r}: conditions are like "
                '"state == completed and cider >= 0.2"'
            )
        column = column_named(frame, found["column"])
        text = found["value"]
        text = text[1:-1] if text[0] in "\"'" else text
        value = _value(text, column, frame[column].dtype)
        if value != value:
            raise QueryError(f"{column}: nothing compares to {text!r}; an empty cell meets no condition")
        if found["operator"] in ("<", "<=", ">", ">=") and isinstance(value, bool):
            raise QueryError(f"{column} is true or false: compare it by == or !=")
        meets = _OPERATORS[found["operator"]](frame[column], value)
        # In dtypes of numpy an empty cell is unequal to everything; here it is unknown.
        frame = frame[meets.fillna(False).astype(bool) & frame[column].notna()]
        position = found.end()
        if position == len(condition):
            return frame
        link = _AND.match(condition, position)
        if not link:
            raise QueryError(f"expected `and` before {condition[position:]!r}; there is no `or`")
        position = link.end()


def _value(text: str, column: str, dtype: Any) -> Any:
    try:
        if pd.api.types.is_bool_dtype(dtype):
            return {"true": True, "false": False}[text.lower()]
        if pd.api.types.is_numeric_dtype(dtype):
            return float(text)
        if isinstance(dtype, pd.DatetimeTZDtype):
            return pd.to_datetime(text, utc=True)
    except (KeyError, ValueError):
        kind = "true or false" if pd.api.types.is_bool_dtype(dtype) else "numbers"
        kind = "times" if isinstance(dtype, pd.DatetimeTZDtype) else kind
        raise QueryError(f"{column} holds {kind}, but got {text!r}") from None
    return text


def sort(frame: pd.DataFrame, name: str, *, reverse: bool = False, better: str | None = None) -> pd.DataFrame:
    """Rows by a column: the best first where it is known what is good, else ascending; empty cells last."""
    column = column_named(frame, name)
    descending = (better or BETTER.get(column)) == "max"
    return frame.sort_values(column, ascending=descending == reverse, kind="stable", na_position="last")


def select(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """These columns, in this order."""
    return frame[list(dict.fromkeys(column_named(frame, name) for name in names))]


def fitting(
    frame: pd.DataFrame, *, names: Sequence[str], width: int, text: Callable[[str, Any], str]
) -> pd.DataFrame:
    """Those columns that hold anything and fit into `width` characters, in the table's own order.

    Args:
        frame: the table.
        names: the columns to show, the most telling first.
        width: characters of a line.
        text: how a cell of a column is shown.
    """
    chosen, room = [], width
    for name in names:
        if len(frame) and frame[name].isna().all():
            continue
        cells = [len(text(name, value)) for value in frame[name]]
        needed = max([len(name.removeprefix("config/")), *cells]) + 2
        if needed <= room:
            chosen.append(name)
            room -= needed
    return frame[[name for name in frame.columns if name in chosen]]
