"""How figures, configurations, trials and tables look in a terminal.

Pure functions from values to text and rich renderables; when to show them is for progress and the CLI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

STATE_STYLE = {
    "running": "cyan",
    "paused": "blue",
    "completed": "green",
    "stopped": "yellow",
    "diverged": "magenta",
    "failed": "red",
    "out_of_memory": "red",
}


def number(value: Any) -> str:
    """A figure or setting, short: 4 significant digits, thousands kept whole."""
    if missing(value):
        return "-"
    value = value.item() if hasattr(value, "item") else value  # of numpy
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e7):
        return f"{value:.0f}" if abs(value) < 10_000 else f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:.4g}"


def missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, NA or NaT."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


def duration(seconds: float) -> str:
    """8 s, 3:05, 1:02:09."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """An estimate, as exact as it deserves: `40 s`, `5 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def config_text(row: Mapping[str, Any]) -> str:
    """The searched hyperparameters of a row: `learning_rate=0.002 batch_size=32`."""
    config = {name.removeprefix("config/"): row[name] for name in row if str(name).startswith("config/")}
    return " ".join(f"{name}={number(value)}" for name, value in config.items() if not missing(value))


def frame_table(frame: pd.DataFrame) -> Table:
    """A rich table of a results table; each cell on one line."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in map(str, frame.columns):
        right = str(frame[name].dtype) in ("Float64", "Int64")
        style = "bold cyan" if name.startswith("config/") else "bold"
        heading = Text(name.removeprefix("config/"), style=style)
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for row in frame.to_dict("records"):
        table.add_row(*(_cell(str(name), value) for name, value in row.items()))
    return table


def cell_text(name: str, value: Any) -> str:
    """How a cell of a results table is shown."""
    if missing(value):
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if name == "error":  # of a traceback, what it ends with
        return str(value).strip().splitlines()[-1]
    return number(value)


def _cell(name: str, value: Any) -> Text:
    return Text(cell_text(name, value), style=STATE_STYLE.get(str(value), "") if name == "state" else "")


def state_counts(states: Iterable[str]) -> Text:
    """`2 running · 3 completed · 7 stopped`, in colour, in the order of `STATE_STYLE`."""
    states = list(states)
    parts = [
        Text(f"{states.count(state)} {state.replace('_', ' ')}", style=style)
        for state, style in STATE_STYLE.items()
        if state in states
    ]
    return Text(" · ").join(parts) if parts else Text("no trials yet")
