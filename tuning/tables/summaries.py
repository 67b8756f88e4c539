"""What the commands tell about an experiment as a whole: its best trial, its place in the list of them all.

Tables for the terminal; how a figure looks is `tuning/render.py`'s business, what a run would be `plan.py`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from tuning.driver import is_running
from tuning.events import FINAL_STATES
from tuning.render import STATE_STYLE, cell_text, count, missing, number
from tuning.search.budget import BudgetGuard
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.lease import is_driven
from tuning.tables.results import Results, load
from tuning.tables.schema import figure_column
from tuning.tables.storage import noted

if TYPE_CHECKING:
    import pandas as pd

from tuning.experiment import Experiment

#: Figures worth a column on screen beside those that the experiment names.
_KEY_FIGURES = ("bleu4", "val_loss", "size_mb", "latency_ms")
#: Numbers in `trials` that count what happened and say nothing about the model.
_COUNTS = frozenset({"epochs", "rung", "best_epoch", "parent_epoch", "restarts"})


def telling(experiment: Experiment, frame: pd.DataFrame) -> list[str]:
    """Columns of a results table that tell most, the most telling first: what is shown unless asked for."""
    config = [str(name) for name in frame.columns if str(name).startswith("config/")]
    figures = list(dict.fromkeys([*_wanted(experiment), "hypervolume", *_KEY_FIGURES]))
    heads = ["trial_id", "variant_id", "methods", "ratio_asked", "fine_tune_epochs", "epoch"]
    names = [*heads, *figures[:1], "state", "epochs", *config, *figures[1:], "worker_s", "parent"]
    return [name for name in names if name in frame.columns]


def best_table(found: Results, row: pd.Series) -> Table:
    """The best trial: where it stands, its figures, its configuration; how large the front is, if any."""
    table = Table.grid(padding=(0, 2))
    epoch = f"epoch {row['best_epoch']} of {row['epochs']}"
    table.add_row("best", Text(f"trial {row['trial_id']} ({row['state']}, {epoch})", style="bold green"))
    wanted = _wanted(found.experiment)
    if len(found.experiment.objectives) > 1:
        table.add_row("by", f"{wanted[0]}, the first objective")
        volume = f", hypervolume {number(found.epochs['hypervolume'].max())}"
        table.add_row("front", f"{count(len(found.front()), 'trial')}{volume}")
    figures = [str(name) for name in found.trials.select_dtypes("number") if name not in _COUNTS]
    for name in dict.fromkeys([*wanted, *(name for name in figures if not name.startswith("config/"))]):
        if not missing(row.get(name)):
            table.add_row(name, Text(number(row[name]), style="bold" if name in wanted else ""))
    for name in (str(name) for name in row.index):
        if name.startswith("config/") and not missing(row[name]):
            table.add_row(Text(name.removeprefix("config/"), style="cyan"), number(row[name]))
    if not found.feasible()[found.trials["trial_id"] == row["trial_id"]].all():
        table.add_row("", Text("no trial meets the constraints; this one misses them least", style="yellow"))
    return table


def experiments_table(names: list[str], storage: str | Path) -> tuple[Table, list[str]]:
    """One line per experiment: state, trials done, best figure, start; and why some cannot be read."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in ("name", "state", "trials", "best", "started (UTC)"):
        table.add_column(heading, no_wrap=heading in ("name", "state"))  # where it is narrow, others wrap
    problems = []
    for name in names:
        try:
            found = load(name, storage)
            table.add_row(name, *_experiment_cells(found))
        except (ValueError, OSError) as error:  # one that cannot be read must not hide the others
            table.add_row(name, Text("unreadable", style="red"), "-", "-", "-")
            problems.append(f"unreadable: {name}: {str(error).splitlines()[0]}")
    return table, problems


def _experiment_cells(found: Results) -> list[str | Text]:
    budget, states = found.experiment.budget, found.trials["state"]
    done = int(states.isin(FINAL_STATES | {"paused"}).sum())
    state = experiment_state(found)
    style = {"running": "running", "finished": "completed", "unfinished": "stopped"}[state]
    try:
        best, column = found.best(), _wanted(found.experiment)[0]
        figure = f"{column} {number(best[column])} (trial {best['trial_id']})"
        figure += f", front of {len(found.front())}" if len(found.experiment.objectives) > 1 else ""
    except ValueError:
        figure = "-"
    wrong = int(states.isin(WENT_WRONG).sum())
    trials = f"{done}/{budget.trials}" if budget.trials is not None else str(done)
    trials += f", {wrong} went wrong" if wrong else ""
    return [
        Text(state, style=STATE_STYLE[style]),
        trials,
        figure,
        cell_text("", found.trials["started_at"].min()),
    ]


def experiment_state(found: Results) -> str:
    """running (a process holds its lock), finished, or unfinished (`--resume` goes on with it)."""
    if is_running(found.folder) or is_driven(found.folder):
        return "running"
    return "finished" if _used_up(found) and not _uncompressed(found) else "unfinished"


def _uncompressed(found: Results) -> bool:
    """Whether children are asked for, and some of them are still to be trained or measured."""
    if found.experiment.compression.search != "children":
        return False
    if found.variants.empty:
        from tuning.children import parents

        return bool(parents(found))
    able = ~found.variants["state"].isin(WENT_WRONG)
    return bool((able & found.variants["measured_at"].isna()).any())


def _used_up(found: Results) -> bool:
    """Whether a resumed run would have nothing to do: as the last one noted, or as far as the tables tell.

    At the end of a run, trials that were not promoted wait at their rungs; one that was interrupted is
    paused as well, and only its reason tells the two apart.
    """
    budget, trials = found.experiment.budget, found.trials
    if noted(found.folder, "finished"):
        return True
    spent = BudgetGuard(budget, clock=lambda: 0.0)
    for worker_s in found.epochs["worker_s"].astype(float).fillna(0.0):
        spent.count_epoch(worker_s, seconds=0.0)  # durations matter for estimates alone
    spent.count_total(float(trials["worker_s"].fillna(0.0).sum()))
    if spent.exhausted:
        return not (trials["state"] == "running").any()
    at_rung = (trials["state"] == "paused") & trials["reason"].str.startswith("rung ").fillna(False)
    if not len(trials) or not (trials["state"].isin(FINAL_STATES) | at_rung).all():
        return False
    # How much of its time a run had is not in the tables.
    return budget.time is not None or (budget.trials is not None and len(trials) >= budget.trials)


def _wanted(experiment: Experiment) -> list[str]:
    return [
        *(figure_column(each.metric) for each in experiment.objectives),
        *(figure_column(each.metric) for each in experiment.constraints),
    ]
