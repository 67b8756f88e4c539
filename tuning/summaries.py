"""What the commands tell about an experiment as a whole: the plan, the best trial, the list of experiments.

Tables for the terminal; how a figure looks is `tuning/render.py`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from rich import box
from rich.table import Table
from rich.text import Text

from tuning.events import FINAL_STATES
from tuning.ledger import WENT_WRONG
from tuning.render import STATE_STYLE, cell_text, missing, number
from tuning.results import Results, load
from tuning.schema import figure_column

if TYPE_CHECKING:
    import pandas as pd

    from tuning.experiment import Experiment, Scheduler
    from tuning.resources import GangPlan

#: Figures worth a column on screen beside those that the experiment names.
_KEY_FIGURES = ("bleu4", "val_loss", "size_mb", "latency_ms")
#: Numbers in `trials` that count what happened and say nothing about the model.
_COUNTS = frozenset({"epochs", "rung", "best_epoch", "restarts"})


def telling(experiment: Experiment, frame: pd.DataFrame) -> list[str]:
    """Columns of a results table that tell most, the most telling first: what is shown unless asked for."""
    config = [str(name) for name in frame.columns if str(name).startswith("config/")]
    figures = list(dict.fromkeys([*_wanted(experiment), *_KEY_FIGURES]))
    names = ["trial_id", "epoch", *figures[:1], "state", "epochs", *config, *figures[1:], "worker_s"]
    return [name for name in names if name in frame.columns]


def best_table(found: Results, row: pd.Series) -> Table:
    """The best trial: where it stands, its figures, its configuration."""
    table = Table.grid(padding=(0, 2))
    epoch = f"epoch {row['best_epoch']} of {row['epochs']}"
    table.add_row("best", Text(f"trial {row['trial_id']} ({row['state']}, {epoch})", style="bold green"))
    wanted = _wanted(found.experiment)
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


def plan_table(experiment: Experiment, plan: GangPlan, machine: Mapping[str, float]) -> Table:
    """What a run of `experiment` would be, on a machine with these resources."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_row("experiment", f"{experiment.name}, results in {experiment.folder}")
    table.add_row("trainable", experiment.trainable)
    for label, section in (("data", experiment.data), ("fixed", experiment.model)):
        if section:
            table.add_row(label, ", ".join(f"{name} {number(value)}" for name, value in section.items()))
    for index, (name, domain) in enumerate(experiment.space.to_dict().items()):
        table.add_row("" if index else "searched", Text.assemble((name, "cyan"), "  ", _domain_text(domain)))
    for objective in experiment.objectives:
        table.add_row("objective", f"{objective.metric}, {objective.mode}imal")
    for constraint in experiment.constraints:
        bounds = [f"<= {constraint.max:g}" if constraint.max is not None else ""]
        bounds += [f">= {constraint.min:g}" if constraint.min is not None else ""]
        table.add_row("constraint", f"{constraint.metric} {' and '.join(filter(None, bounds))}")
    table.add_row("search", f"{experiment.search.algorithm}, seed {experiment.search.seed}")
    has = f"{machine['CPU']:g} CPU" + (f", {machine['GPU']:g} GPU" if machine.get("GPU") else "")
    each = f"{plan.cpus_per_worker} CPU" + (f", {plan.gpus_per_worker:g} GPU" if plan.gpus_per_worker else "")
    table.add_row("gangs", f"{plan.gangs} of {_count(plan.workers, 'worker')} with {each} each (here: {has})")
    table.add_row("rungs", _rungs_text(experiment.scheduler))
    table.add_row("budget", _budget_text(experiment))
    return table


def expected_epochs(scheduler: Scheduler, trials: int) -> float:
    """Epochs that `trials` trials run in all, where each rung lets one in `reduction_factor` pass."""
    total, below, share = 0.0, 0, 1.0
    for epoch in (*scheduler.rungs(), scheduler.max_epochs):
        total += share * (epoch - below)
        below, share = epoch, share / scheduler.reduction_factor
    return total * trials


def experiments_table(names: list[str], storage: str | Path) -> Table:
    """One line per experiment: state, trials done, best figure, start."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in ("name", "state", "trials", "best", "started (UTC)"):
        table.add_column(heading, no_wrap=True)
    for name in names:
        try:
            found = load(name, storage)
            table.add_row(name, *_experiment_cells(found))
        except ValueError as error:  # one that cannot be read must not hide the others
            table.add_row(name, Text("unreadable", style="red"), "-", str(error).splitlines()[0], "-")
    return table


def _experiment_cells(found: Results) -> list[str | Text]:
    budget, states = found.experiment.budget, found.trials["state"]
    done = int(states.isin(FINAL_STATES).sum())
    state = experiment_state(found)
    style = {"running": "running", "finished": "completed", "unfinished": "stopped"}[state]
    try:
        best, column = found.best(), _wanted(found.experiment)[0]
        figure = f"{column} {number(best[column])} (trial {best['trial_id']})"
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
    lock = found.folder / ".lock"
    if lock.exists():
        try:
            with filelock.FileLock(lock, timeout=0):
                pass
        except filelock.Timeout:
            return "running"
        except OSError:
            pass  # somebody else's folder: nothing can be said about who runs it
    budget, states = found.experiment.budget, found.trials["state"]
    done = states.isin(FINAL_STATES)
    enough = budget.time is not None or len(states) >= (budget.trials or 1)
    return "finished" if enough and len(states) and done.all() else "unfinished"


def _wanted(experiment: Experiment) -> list[str]:
    return [
        *(figure_column(each.metric) for each in experiment.objectives),
        *(figure_column(each.metric) for each in experiment.constraints),
    ]


def _domain_text(domain: Mapping[str, Any]) -> str:
    if "choice" in domain:
        text = ", ".join(map(number, domain["choice"]))
    else:
        low, high = domain.get("float") or domain["int"]
        text = f"{number(low)} … {number(high)}"
        text += ", log" if domain.get("log") else ""
        text += f", step {number(domain['step'])}" if "step" in domain else ""
    for parent, values in domain.get("when", {}).items():
        text += f"; only where {parent} is {' or '.join(map(number, values))}"
    return text


def _rungs_text(scheduler: Scheduler) -> str:
    rungs = ", ".join(map(str, scheduler.rungs()))
    if not rungs:
        return f"none: every trial runs its {_count(scheduler.max_epochs, 'epoch')}"
    return (
        f"after epoch {rungs}; one in {scheduler.reduction_factor} goes on, at most to {scheduler.max_epochs}"
    )


def _budget_text(experiment: Experiment) -> str:
    budget, scheduler = experiment.budget, experiment.scheduler
    parts = []
    if budget.trials is not None:
        most = budget.trials * scheduler.max_epochs
        about = expected_epochs(scheduler, budget.trials)
        epochs = f"about {about:.0f} epochs, {most} at most" if scheduler.rungs() else f"{most} epochs"
        parts.append(f"{_count(budget.trials, 'trial')} ({epochs})")
    if budget.time is not None:
        parts.append(f"no longer than {budget.time}" + ("" if isinstance(budget.time, str) else " s"))
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
