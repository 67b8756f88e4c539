"""How the search runs: experiment files in, trials on warm gangs, pandas tables out.

    from tuning import Experiment, run, load

The names are imported on first use, so that `captune --help` does not wait for Ray and torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuning.experiment import Experiment
    from tuning.runner import run
    from tuning.tables.results import Results, load

__all__ = ["Experiment", "Results", "load", "run"]

_HOME = {
    "Experiment": "tuning.experiment",
    "Results": "tuning.tables.results",
    "load": "tuning.tables.results",
    "run": "tuning.runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tuning' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
