"""What a resumed run takes over from an earlier one: the experiment as it was, and what its tables say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuning.experiment import Experiment, ExperimentError
from tuning.experiment_file import read_experiment_file
from tuning.tables.ledger import Ledger
from tuning.tables.schema import figure_column
from tuning.tables.storage import command, recorded_data

#: What decides how long and on what a run works, not what its figures mean.
MAY_CHANGE = frozenset({"budget", "checkpoints", "compression", "storage", "training"})
#: The exception within these sections: its figures differ.
MUST_STAY = frozenset({"training.precision"})
#: What is searched only where trials may be compressed within the search.
COMPRESSED = "search_space.compression."


def refuse_changes(experiment: Experiment, folder: Path) -> None:
    """Refuse to go on in `folder` with another experiment than the one whose results lie there.

    Raises:
        ExperimentError: names every changed key with both values, or the file that tells what they were
            and cannot be read.
    """
    if not (folder / "trials.parquet").exists():
        return
    before = dict(_leaves(read_experiment_file(folder / "experiment.yaml")[0]))
    now = dict(_leaves(experiment.to_dict()))
    changed = [
        key
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and (key in MUST_STAY or key.split(".")[0] not in MAY_CHANGE)
    ]
    problems = []
    if now["compression.search"] == "children" and any(key.startswith(COMPRESSED) for key in changed):
        changed = [key for key in changed if not key.startswith(COMPRESSED)]
        rule = "compression.search: the trials of these results were not all to be trained whole"
        remedy = f"`{command('compress', experiment.place)}` compresses the best of those that were"
        problems.append(f"{rule}; {remedy}, once their run is done")
    problems += [
        f"{key}: is {_text(now, key)}, but the results in {folder} are of {_text(before, key)}; "
        "put it back, or give the experiment another name"
        for key in changed
    ]
    if problems:
        raise ExperimentError(problems)


def refuse_other_data(folder: Path, identity: str | None) -> None:
    """Refuse to go on in `folder` with other data than those that its results are of.

    Args:
        identity: what the trainable says of the data as they are now; None: nothing.

    Raises:
        ExperimentError: it was another.
    """
    before = recorded_data(folder)
    if (folder / "trials.parquet").exists() and None not in (before, identity) and before != identity:
        remedy = "put it back, or give the experiment another name"
        raise ExperimentError([f"data: has changed since the results in {folder}; {remedy}"])


def history(experiment: Experiment, ledger: Ledger) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Trials and epochs as `Search.replay` wants them: in the order in which things happened."""
    trials = [
        {
            name: row.get(name)
            for name in ("trial_id", "state", "reason", "finished_at", "halvings", "worker_s")
        }
        for row in ledger.trials.values()
    ]
    metrics = [each.metric for each in experiment.objectives]
    metrics += [each.metric for each in experiment.constraints]
    by_column = {figure_column(metric): metric for metric in (*metrics, "worker_s", "seconds")}
    epochs = [
        {
            "trial_id": row["trial_id"],
            "epoch": row["epoch"],
            "attempt": row["attempt"],
            "at": row["at"],
            "metrics": {metric: row[column] for column, metric in by_column.items() if column in row},
        }
        for row in sorted(
            (row for done in ledger.epochs.values() for row in done.values()), key=lambda row: row["at"]
        )
    ]
    return trials, epochs


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`a.b` and its value for everything in nested mappings; a list is one value."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _text(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not there"
