"""The `captune` command: arguments in, exit codes out (0 fine, 1 the work failed, 2 the user's mistake).

Only click is imported at the top, so that `--help` answers at once. What is shown is built in
`tuning/tables/summaries.py`, `render.py` and `query.py`; nothing is decided here.
"""

from __future__ import annotations

import errno
import io
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from trainables.patience import StorageFailed
from tuning.commands.choosing import compare, export, pareto
from tuning.commands.parts import UserMistake, WorkFailed
from tuning.commands.reading import best, caption, list_command, results
from tuning.commands.running import check, compress, run
from tuning.commands.simulating import simulate


class _Commands(click.Group):
    """Turns the exceptions that users cause into messages, wherever they come from."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:  # of `| head`: click ends without a word
            raise
        except (ValueError, LookupError, OSError, StorageFailed) as error:
            if _is_users_mistake(error):
                raise UserMistake(str(error)) from error
            if isinstance(error, OSError):  # a full disk, a cluster out of reach
                raise WorkFailed(f"{type(error).__name__}: {error}") from error
            if isinstance(error, StorageFailed):
                raise WorkFailed(str(error)) from error
            raise


def _is_users_mistake(error: Exception) -> bool:
    from trainables.trial import SettingsError
    from tuning.experiment_file import ExperimentError
    from tuning.tables.query import QueryError
    from tuning.tables.storage import UnknownExperiment, UnreadableResults

    mistakes = (ExperimentError, SettingsError, QueryError, UnknownExperiment, UnreadableResults)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return True
    return isinstance(error, (*mistakes, PermissionError, NotADirectoryError, FileExistsError))


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="captune", prog_name="captune")
def main() -> None:
    """Tune image captioners: one experiment file in, a table of trials and the best captioner out.

    \b
    captune check examples/shapes.yaml            what would run
    captune run examples/shapes.yaml              run it
    captune results shapes --sort cider           its trials, the best first
    captune best shapes                           the best one
    captune pareto shapes                         what no other beats in quality and cost
    captune export shapes --max-size-mb 5         the best of at most 5 MB, into a folder
    captune caption shapes photo.jpg              what it says about a picture
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal without ★ and ✓ shows something in their place
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # A trainable of one's own lies beside the experiment, where the command is typed.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


_RUNNING = (run, check, compress)
_READING = (results, best, list_command, caption, simulate)
_CHOOSING = (pareto, compare, export)
for command in (*_RUNNING, *_READING, *_CHOOSING):
    main.add_command(command)
for found_command in entry_points(group="captune.commands"):  # of jobs: this package never imports cluster
    main.add_command(found_command.load())


if __name__ == "__main__":
    main()
