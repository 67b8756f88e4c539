"""What Ray's dashboard tells of an experiment beside its job, whether it was submitted or run on a laptop."""

from __future__ import annotations

import getpass
import os
import shlex
from typing import TYPE_CHECKING

from trainables.store import is_url

if TYPE_CHECKING:
    from tuning.experiment import Experiment


def job_metadata(experiment: Experiment) -> dict[str, str]:
    """Texts by name: `experiment`, `owner`, `objectives`, `storage`, and `results`, a command."""
    storage = experiment.storage if is_url(experiment.storage) else os.path.abspath(experiment.storage)
    return {
        "experiment": experiment.name,
        "owner": _owner(),
        "objectives": ", ".join(f"{each.metric} {each.mode}" for each in experiment.objectives),
        "storage": storage,
        "results": shlex.join(["captune", "results", experiment.name, "--storage", storage]),
    }


def _owner() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that no account has
        return str(os.getuid())
