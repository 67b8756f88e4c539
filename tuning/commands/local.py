"""What `captune status`, `logs` and `stop` say of a run that is no job: found by name, as its results are.

Only click is imported at the top, as in `tuning/cli.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from tuning.commands.parts import UserMistake, WorkFailed

#: Seconds between two looks at a log that is followed.
LOOK_S = 0.5


def show_status(name: str, storage: str) -> None:
    """Who runs the experiment, since when, how its trials stand, the best so far."""
    from tuning.driver import find_driver, is_running
    from tuning.render import number, state_counts
    from tuning.tables.results import load
    from tuning.tables.schema import figure_column
    from tuning.tables.storage import command
    from tuning.tables.summaries import experiment_state

    folder = _folder(name, storage)
    lines = {}
    if (folder / "experiment.yaml").exists():
        found = load(folder)
        lines["status"] = experiment_state(found)
        budget = found.experiment.budget.trials
        of = f" of {budget}" if budget is not None else ""
        lines["trials"] = f"{len(found.trials)}{of}"
        if states := state_counts(found.trials["state"]).plain:
            lines["trials"] += f" ({states})"
        try:
            best = found.best()
        except ValueError:
            pass
        else:
            figures = (figure_column(each.metric) for each in found.experiment.objectives)
            lines["best"] = ", ".join(f"{figure} {number(best[figure])}" for figure in figures)
            lines["best"] += f" (trial {best['trial_id']})"
    else:
        lines["status"] = "preparing" if is_running(folder) else "never came to a trial"
    if driver := find_driver(folder):
        lines["driver"] = f"process {driver.pid} on {driver.host}"
        lines["started"] = f"{driver.started_at} UTC"
    lines["results"] = command("results", str(folder))
    for key, value in lines.items():
        click.echo(f"{key:<10}  {value}")


def show_log(name: str, storage: str, *, follow: bool) -> None:
    """What the runs of the experiment printed; with `follow` on to the end of the one that goes on."""
    from tuning.driver import is_running
    from tuning.run_log import NAME

    folder = _folder(name, storage)
    try:
        file = (folder / NAME).open(encoding="utf-8", errors="replace")  # a full disk cuts where it likes
    except FileNotFoundError:
        raise WorkFailed(f"{folder} has no {NAME}: it was run by an earlier version, or never") from None
    with file:
        while True:
            running = follow and is_running(folder)  # looked at first: what it says at last is shown, too
            click.echo(file.read(), nl=False)
            if not running:
                return
            time.sleep(LOOK_S)


def stop_run(name: str, storage: str) -> None:
    """Ask the driver to end in good order; say what became of that."""
    from tuning.driver import NotOurs, find_driver, is_running

    folder = _folder(name, storage)
    driver = find_driver(folder)
    if driver is None and is_running(folder):
        raise WorkFailed(f"{name} is run by a process that does not say which it is")
    if driver is None:
        click.echo(f"{name} is not running")
        return
    try:
        driver.ask_to_end()
    except NotOurs as error:
        raise WorkFailed(f"{name}: {error}") from error
    click.echo(f"{name} is being stopped (process {driver.pid})")


def _folder(name: str, storage: str) -> Path:
    """The experiment's folder, also while its data are prepared and it is not described yet."""
    from tuning.driver import DRIVER
    from tuning.tables.storage import UnknownExperiment, find_folder

    for folder in (Path(storage) / name, Path(name)):
        if (folder / DRIVER).is_file():
            return folder
    try:
        return find_folder(name, storage)
    except UnknownExperiment as error:
        raise UserMistake(f"{error}; of a job, name the cluster with --address") from error
