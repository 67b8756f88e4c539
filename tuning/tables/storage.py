"""The files of an experiment's folder: where they are, how they are replaced, how they are read.

What the tables mean is `tuning/tables/results.py`'s business. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import json
import os
import shlex
from collections.abc import Callable, Sequence
from os.path import expanduser  # Path's own raises where there is no such user
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
import pyarrow

from search_spaces.nearest import nearest
from trainables.store import Store, is_url, local, refuse_url, without_secrets
from tuning.environment import describe_environment
from tuning.experiment_file import ExperimentError, experiment_text
from tuning.tables.copies import fetch_for_reading, split_url
from tuning.tables.schema import Column

if TYPE_CHECKING:
    from tuning.experiment import Experiment

#: What a run notes of itself: a resumed one would have nothing to do; `best/` is what its best trial ships.
Note = Literal["finished", "exported"]


class UnknownExperiment(LookupError):
    """There is no experiment of that name. The message names the nearest ones."""


class UnreadableResults(ValueError):
    """A table on disk is not what this program wrote."""


def find_folder(name_or_folder: str | Path, storage: str | Path = "captune-results") -> Path:
    """Folder of an experiment: the one of that name in `storage`, else `name_or_folder` as a path.

    Of one at a URL, a fresh copy is made.

    Raises:
        UnknownExperiment: neither is an experiment.
        OSError: the URL cannot be reached, or refuses.
    """
    name, place = local(str(name_or_folder)), local(str(storage))
    if is_url(name):
        place, name = split_url(_usable(name))
    found = [fetch_for_reading(_usable(place), name) if is_url(place) else Path(expanduser(place), name)]
    if not is_url(str(name_or_folder)):
        found.append(Path(expanduser(name)).resolve())  # `.` has no name of its own
    for folder in found:
        if folder is not None and (folder / "experiment.yaml").is_file():
            return folder
    hint = nearest(name, list_experiments(place))
    raise UnknownExperiment(f"no experiment {name!r} in storage {place!r}{hint}")


def list_experiments(storage: str | Path = "captune-results") -> list[str]:
    """Names of the experiments in `storage`."""
    if is_url(place := local(str(storage))):
        store = Store(_usable(place))
        return [name for name in store.folders() if store.has(f"{name}/experiment.yaml")]
    return sorted(found.parent.name for found in Path(expanduser(place)).glob("*/experiment.yaml"))


def command(verb: str, place: str, *options: str) -> str:
    """`captune VERB` about the experiment in the folder or at the URL `place`, as it can be typed here."""
    folder = Path(place)
    is_default = not is_url(place) and folder.parent.resolve() == Path("captune-results").resolve()
    return shlex.join(["captune", verb, folder.name if is_default else place, *options])


def _usable(url: str) -> str:
    """The URL itself.

    Raises:
        ExperimentError: it cannot hold results, or holds a secret.
    """
    try:
        refuse_url(url)
    except ValueError as error:
        raise ExperimentError([f"storage: got {without_secrets(url)!r}: {error}"]) from error
    return url


def read_table(path: Path, head: Sequence[Column] = ()) -> pd.DataFrame:
    """A table as it was written, dtypes included.

    Args:
        head: columns that it has, whichever version wrote it.

    Raises:
        UnreadableResults: not a Parquet file, or one without these columns.
    """
    try:
        # Read in one piece: pandas opens a file more than once, and a run may replace it in between.
        frame = pd.read_parquet(io.BytesIO(path.read_bytes()))
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableResults(f"{path} is not a readable Parquet table: {error}") from error
    if missing := [column.name for column in head if column.name not in frame]:
        raise UnreadableResults(f"{path} is not a table that Captune wrote: it has no {', '.join(missing)}")
    return frame


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Replace the table at `path` in one step: a reader sees the old one or the new one."""
    _replace(path, lambda file: frame.to_parquet(file, index=False))


def write_description(experiment: Experiment, *, command: Sequence[str], data: str | None = None) -> None:
    """Write `experiment.yaml` (resolved) and `environment.json`, where the run starts or is resumed.

    The first start stays at the top level of `environment.json`; each later one is added to `resumed`. What
    was noted of earlier runs goes.

    Args:
        command: how it was started.
        data: the identity of its data, where its trainable says one.
    """
    folder = experiment.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "experiment.yaml", experiment_text(experiment.to_dict()))
    now = describe_environment(command=command, seed=experiment.search.seed)
    now |= {} if data is None else {"data": data}
    path = folder / "environment.json"
    try:
        record = json.loads(path.read_text())
        record.setdefault("resumed", []).append(now)
        for name in get_args(Note):
            record.pop(name, None)
    except (OSError, ValueError):
        record = now
    write_text(path, json.dumps(record, indent=2))


def note(folder: Path, what: Note) -> None:
    """Add to `environment.json` what became of the run; it is so until the next one begins."""
    path = folder / "environment.json"
    record = json.loads(path.read_text()) | {what: True}
    write_text(path, json.dumps(record, indent=2))


def noted(folder: Path, what: Note) -> bool:
    """Whether that was noted; False where nothing can be read."""
    return _environment(folder).get(what, False)


def recorded_data(folder: Path) -> str | None:
    """Identity of the data of the last start that recorded one; None where none did."""
    record = _environment(folder)
    known = [start["data"] for start in (record, *record.get("resumed", ())) if "data" in start]
    return known[-1] if known else None


def _environment(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "environment.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it: a reader never sees half of it."""
    _replace(path, lambda file: file.write(text.encode()))


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    # One process at a time writes here (`lock_of`), so the name may always be the same: what one that was
    # killed meanwhile left behind is overwritten by the next.
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
