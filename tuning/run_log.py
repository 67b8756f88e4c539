"""`run.log` in an experiment's folder: what a run says, as it is printed where there is no terminal.

One file for all runs of the experiment, so that `captune logs` shows how it came to be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tuning.progress import Progress

if TYPE_CHECKING:
    from tuning.experiment import Experiment

NAME = "run.log"


@contextlib.contextmanager
def written_down(
    experiment: Experiment, folder: Path, say: Callable[[str], None]
) -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """Write down what goes on in the block.

    Yields:
        A listener of the events, and a `say` that writes down what it is told and passes it on.
    """
    notes = Notes(folder / NAME)

    def tell(line: str) -> None:
        notes.write(f"{line}\n")
        with contextlib.suppress(OSError):  # nobody can see it any more
            say(line)

    def dated(what: str) -> None:
        notes.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  {what}\n")

    console = Console(markup=False, file=notes, force_terminal=False, color_system=None)  # type: ignore[arg-type]
    dated(f"{experiment.name} starts")
    try:
        yield Progress(experiment, console=console), tell
    except KeyboardInterrupt:
        dated("interrupted; --resume goes on")
        raise
    except Exception as error:
        dated(f"{type(error).__name__}: {error}")
        raise
    dated("done")


class Notes:
    """A file that is added to as long as that works: no run ends because its log cannot be written."""

    def __init__(self, path: Path):
        self._path = path

    def write(self, text: str) -> None:
        """Add `text`, or lose it."""
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def flush(self) -> None:
        """Nothing: what was written is in the file."""
