"""From what was found to what ships: which trial or variant, where its checkpoint lies, its export.

A candidate is a row of `variants` or of `trials`. Which are compared, and by what, is for `results.py` and
`pareto.py`; what lies in an exported folder is the trainable's business (its class method `export`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from search_spaces.nearest import nearest
from trainables.trial import resolve_trainable
from tuning.choosing import pareto
from tuning.choosing.pareto import Limit
from tuning.render import missing
from tuning.tables.copies import checkpoint_in, checkpoints_in
from tuning.tables.query import QueryError
from tuning.tables.schema import figure_column

if TYPE_CHECKING:
    from tuning.tables.results import Results

#: Candidates named where the one that was asked for cannot be had.
SHOWN = 5


class CannotShip(RuntimeError):
    """The question was right, but there is nothing to ship. The message says what there is instead."""


def label(row: pd.Series) -> str:
    """`variant v00003` or `trial 00002`."""
    return f"{_kind(row)} {name_of(row)}"


def name_of(row: pd.Series) -> str:
    """The `variant_id` or `trial_id` of a candidate."""
    return str(row[f"{_kind(row)}_id"])


def named(found: Results, name: str, *, kinds: tuple[str, ...] = ("variant", "trial")) -> pd.Series:
    """The variant or, where none is called so, the trial of that name.

    Raises:
        QueryError: there is none; names the nearest.
    """
    known: list[str] = []
    for kind in kinds:
        table = found.variants if kind == "variant" else found.trials
        names = table[f"{kind}_id"] if len(table) else pd.Series(dtype="string")
        if (names == name).any():
            return table[names == name].iloc[0]
        known.extend(names)
    what = " and ".join(f"no {kind}" for kind in kinds)
    raise QueryError(f"{what} of {found.name!r} is called {name!r}{nearest(name, known)}")


def limits_of(found: Results, at_most: Mapping[str, float]) -> list[Limit]:
    """What has to be kept: `at_most`, by figure, and the experiment's constraints.

    Raises:
        QueryError: a figure that no candidate has, or bounds that leave nothing between them.
    """
    largest, smallest = dict(at_most), dict[str, float]()
    for each in found.experiment.constraints:
        column = figure_column(each.metric)
        if each.max is not None:
            largest[column] = min(each.max, largest.get(column, each.max))
        if each.min is not None:
            smallest[column] = each.min
    return pareto.limits(found.candidates(feasible=False), largest, smallest)


def best_within(found: Results, limits: list[Limit]) -> pd.Series:
    """The best candidate by the first objective among those that keep all `limits`.

    Raises:
        CannotShip: there is none; tells what comes nearest, and by how much it misses them.
    """
    rows = found.candidates(feasible=False)
    objectives = found.figures(rows, [each.metric for each in found.experiment.objectives])
    row = pareto.best_within(rows, objectives, limits)
    wanted = ", ".join(map(str, limits))
    if row is None:
        figures = ", ".join(dict.fromkeys([*objectives, *(limit.column for limit in limits)]))
        raise CannotShip(f"nothing in {found.name!r} has {figures}, so there is no best of it")
    if missed := pareto.shortfalls(row, limits):
        raise CannotShip(
            f"nothing in {found.name!r} keeps {wanted}; nearest is {label(row)}, {' and '.join(missed)}"
        )
    return row


def checkpoint_of(found: Results, row: pd.Series) -> Path:
    """Folder of a candidate's checkpoint: that of the epoch whose figures stand in its row.

    Raises:
        CannotShip: it has none, or it is not there any more; tells what is at hand.
    """
    if not missing(row["checkpoint"]):
        checkpoint = checkpoint_in(found.folder, row["checkpoint"])
        if checkpoint.is_dir():
            return checkpoint
    if missing(row["checkpoint"]):
        reason = f"{label(row)} of {found.name!r} has no checkpoint (it is {row['state']})"
    else:
        reason = f"the checkpoint of {label(row)} is gone: {found.folder / row['checkpoint']}"
    others = [
        other
        for table in (found.variants, found.ranked())
        for _, other in table.iterrows()
        if not missing(other["checkpoint"])
    ]
    at_hand = checkpoints_in(found.folder, [other["checkpoint"] for other in others])
    there = [label(other) for other, is_there in zip(others, at_hand, strict=True) if is_there]
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    raise CannotShip(f"{reason}; at hand: {', '.join(there[:SHOWN]) or 'none of the others'}{more}")


def ship(trainable: str, checkpoint: Path, folder: Path) -> None:
    """Put what ships of `checkpoint` into `folder`, whole or not at all; replaces what is there.

    An empty folder that is there is filled, file by file: it may be a mount, or where somebody stands.

    Args:
        trainable: as in the experiment file; one without `export` ships its checkpoint as it is.
        checkpoint: a folder that the trainable saved.
        folder: made with its parents.

    Raises:
        CannotShip: the trainable's `export` failed, or the folder cannot be written.
        SettingsError: there is no such trainable.
    """
    export = getattr(resolve_trainable(trainable), "export", shutil.copytree)
    folder = folder.resolve()  # `.` has no name, and what lies behind a link is meant
    try:
        empty = folder.is_dir() and not any(folder.iterdir())
        beside = folder if empty else folder.parent
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=beside, prefix=".captune-") as scratch:
            aside = Path(scratch) / folder.name
            export(checkpoint, aside)
            if empty:
                for path in aside.iterdir():
                    path.rename(folder / path.name)
                return
            if folder.is_dir():
                shutil.rmtree(folder)
            aside.rename(folder)
    except Exception as error:  # code of the trainable may raise anything
        raise CannotShip(f"{checkpoint} could not be exported: {type(error).__name__}: {error}") from error


def convert(trainable: str, folder: Path, data: Mapping[str, Any]) -> str:
    """Add what other programs can run to what was shipped into `folder`; says in lines what, if anything.

    Args:
        trainable: as in the experiment file.
        folder: into which `ship` put it.
        data: the experiment's `data` section.

    Raises:
        CannotShip: the trainable's `convert` failed; what was shipped stays.
    """
    converting = getattr(resolve_trainable(trainable), "convert", None)
    try:
        return "" if converting is None else converting(folder, data)
    except Exception as error:  # code of the trainable may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise CannotShip(f"{folder} is exported, but not for other programs: {reason}") from error


def _kind(row: pd.Series) -> str:
    return "variant" if "variant_id" in row else "trial"
