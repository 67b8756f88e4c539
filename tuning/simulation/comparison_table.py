"""How a comparison of schedulers looks in a terminal, and its progress.

What is compared is `tuning/simulation/scheduler_comparison.py`'s business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pandas as pd
from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table

from tuning.render import duration, missing, number
from tuning.simulation.scheduler_comparison import averaged
from tuning.tables.configurations import differing_settings

if TYPE_CHECKING:
    from tuning.experiment import Experiment
    from tuning.tables.results import Results

#: Epochs between two updates of the display.
SPACING = 50


def comparison_table(frame: pd.DataFrame, experiment: Experiment) -> Table:
    """A row per scheduler and number of gangs: means over the seeds, `±` their standard deviation."""
    means = averaged(frame)
    several, volume = frame["seed"].nunique() > 1, frame["hypervolume"].notna().any()
    priced = frame["cost"].notna().any()
    best = f"best {experiment.objectives[0].metric}"
    heads = ["scheduler", "gangs", "trials", "epochs", "of none", "work", *(["cost"] if priced else [])]
    heads += ["time", best]
    heads += [*(["±"] if several else []), *(["hypervolume"] if volume else []), "found after", "at epoch"]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for head in heads:
        table.add_column(head, justify="left" if head == "scheduler" else "right", no_wrap=True)
    for row in means.to_dict("records"):
        cells = [row["scheduler"], number(row["gangs"]), _whole(row["trials"]), _whole(row["epochs"])]
        cells += ["-" if missing(row["of_none"]) else f"{100 * row['of_none']:.0f} %"]
        cells += [duration(row["worker_s"]), *([number(row["cost"])] if priced else [])]
        cells += [duration(row["time_s"]), number(row["best"])]
        cells += [number(row["best_sd"])] if several else []
        cells += [number(row["hypervolume"])] if volume else []
        cells += [
            "-" if missing(row["best_at_s"]) else duration(row["best_at_s"]),
            _whole(row["best_at_epochs"]),
        ]
        table.add_row(*cells)
    return table


def made_up(frame: pd.DataFrame, experiment: Experiment, earlier: Results) -> list[str]:
    """Lines on how far the curves are those of `earlier` and not what `experiment` would have shown."""
    estimated, borrowed = ((frame[name] * frame["epochs"]).sum() for name in ("estimated", "borrowed"))
    total = frame["epochs"].sum() or 1
    lines = [
        f"{100 * estimated / total:.0f} % of the simulated epochs were not measured in {earlier.name} and "
        f"are extrapolated; {100 * borrowed / total:.0f} % are of configurations that it does not have and "
        "are those of the nearest"
    ]
    differs = differing_settings(earlier.experiment, experiment)
    if differs:
        lines.append(f"{', '.join(differs)} not the same in {earlier.name}: its curves may be other ones")
    return lines


@contextlib.contextmanager
def simulating() -> Iterator[Callable[[int, int, int], None]]:
    """A line on the terminal that tells how far a comparison is; yields its `tell`."""
    console = Console(stderr=True)
    with Status("simulating", console=console) if console.is_terminal else contextlib.nullcontext() as status:

        def tell(run: int, runs: int, epochs: int) -> None:
            if status is not None and (epochs == 1 or epochs % SPACING == 0):
                status.update(f"simulating run {run} of {runs}, {number(epochs)} epochs")

        yield tell


def _whole(value: float) -> str:
    return "-" if missing(value) else number(round(value))
