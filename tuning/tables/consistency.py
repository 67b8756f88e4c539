"""Whether what a run has left fits together: tables, checkpoints on disk, the study's journal.

`python -m tuning.tables.consistency FOLDER…` says it of experiments' folders; exit code 1 where something is
wrong, 2 where a folder holds no results. Runs must be over: one that is at work is between two states most of
the time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tuning.events import FINAL_STATES, TrialState
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.lineage import starts_after
from tuning.tables.results import Results, load
from tuning.tables.storage import UnknownExperiment, UnreadableResults


def check_folder(folder: Path) -> list[str]:
    """What is wrong in the folder of an experiment whose run is over, one line each.

    Raises:
        UnknownExperiment, UnreadableResults: there is nothing to check, or it cannot be read.
    """
    found = load(folder)
    return [
        *check_tables(found.trials, found.epochs),
        *_unfit_checkpoints(found),
        *_disagreements_with_study(found),
        *_left_aside(found.folder),
    ]


def check_tables(trials: pd.DataFrame, epochs: pd.DataFrame) -> list[str]:
    """What is wrong with the tables, one line each: the invariants that every run must leave intact."""
    problems = [
        f"trial {name} is there twice" for name in trials["trial_id"][trials["trial_id"].duplicated()]
    ]
    known = set(get_args(TrialState))
    strange = trials[~trials["state"].isin(known)]
    problems += [f"trial {row.trial_id} has state {row.state!r}" for row in strange.itertuples()]
    done: dict[str, list[int]] = {}
    attempts: dict[str, list[int]] = {}
    for name, epoch, attempt in zip(epochs["trial_id"], epochs["epoch"], epochs["attempt"], strict=True):
        done.setdefault(name, []).append(int(epoch))
        attempts.setdefault(name, []).append(int(attempt))
    problems += [
        f"epochs of a trial {name} that is not in trials" for name in set(done) - set(trials["trial_id"])
    ]
    for row in trials.to_dict("records"):
        found = done.get(row["trial_id"], [])
        if found != list(range(starts_after(row) + 1, row["epochs"] + 1)):
            problems.append(f"trial {row['trial_id']} says {row['epochs']} epochs, its epochs are {found}")
        if not pd.isna(row["best_epoch"]) and row["best_epoch"] not in found:
            problems.append(f"trial {row['trial_id']} has best epoch {row['best_epoch']}, which it never ran")
        if pd.isna(row["finished_at"]) == (row["state"] in FINAL_STATES):
            problems.append(f"trial {row['trial_id']} is {row['state']}, finished at {row['finished_at']}")
        tried = attempts.get(row["trial_id"], [])
        if tried != sorted(tried):
            problems.append(f"trial {row['trial_id']} went back to an earlier attempt: {tried}")
        if row["restarts"] + 1 < max(tried, default=1):
            problems.append(
                f"trial {row['trial_id']} says {row['restarts']} restarts, its epochs are of attempts {tried}"
            )
    return problems


def _unfit_checkpoints(found: Results) -> list[str]:
    """Checkpoints that are named and not there: the best, and what a trial that may go on needs.

    Where `checkpoints` lets some go, the best trial's must be there, and those to go on from.
    """
    rule = found.experiment.checkpoints
    all_kept = rule.keep == "all" and rule.max_gb is None
    last = {row["trial_id"]: row["checkpoint"] for row in found.epochs.to_dict("records")}
    needed = set()
    for row in found.trials[~found.trials["state"].isin(WENT_WRONG)].to_dict("records"):
        if all_kept or row["trial_id"] == found.best()["trial_id"]:
            needed.add((row["trial_id"], row["checkpoint"]))
        if row["state"] not in FINAL_STATES:
            needed.add((row["trial_id"], last.get(row["trial_id"])))
    return [
        f"trial {trial_id} needs {checkpoint}, which is not there"
        for trial_id, checkpoint in sorted(each for each in needed if isinstance(each[1], str))
        if not (found.folder / checkpoint).is_dir()
    ]


def _disagreements_with_study(found: Results) -> list[str]:
    """Trials that the journal and the table do not have alike.

    Those that are paused stay open in the journal until a run comes to its end: an interrupted one did not.
    """
    path = found.folder / "study.journal"
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.load_study(study_name=found.experiment.name, storage=storage)
    known = {f"{trial.number:05d}": trial for trial in study.get_trials(deepcopy=False)}
    rows = {row["trial_id"]: row for row in found.trials.to_dict("records")}
    problems = [f"trial {name} is in the study only" for name in sorted(set(known) - set(rows))]
    problems += [f"trial {name} is not in the study" for name in sorted(set(rows) - set(known))]
    for name in sorted(set(known) & set(rows)):
        trial, row = known[name], rows[name]
        said = trial.user_attrs.get("state", "open")
        if said != row["state"] and (said, row["state"]) != ("open", "paused"):
            problems.append(f"trial {name} is {row['state']}, the study says {said}")
        problems += [
            f"trial {name} has {key} {row.get(f'config/{key}')!r}, the study says {value!r}"
            for key, value in trial.params.items()
            if row.get(f"config/{key}") != value
        ]
    return problems


def _left_aside(folder: Path) -> list[str]:
    """Files and folders that were written aside and never got their name, and Ray's own records."""
    found = [path for path in folder.rglob(".*") if path.name != ".lock"]
    return [f"{path.relative_to(folder)} was left behind" for path in sorted(found)]


def main(folders: Sequence[str]) -> int:
    """Print what is wrong in `folders`; the exit code, 2 where there is nothing to check."""
    if not folders:
        print("usage: python -m tuning.tables.consistency FOLDER…", file=sys.stderr)
        return 2
    try:
        problems = [f"{folder}: {problem}" for folder in folders for problem in check_folder(Path(folder))]
    except (UnknownExperiment, UnreadableResults) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(problems) or f"{len(folders)} checked, nothing wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
