"""What a search knows of earlier experiments before its first trial, kept with the experiment.

Whoever resumes goes on with what was taken when it began, whatever has become of the others since. Where it
comes from is for `tuning/search/warm_start.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuning.experiment import Experiment
from tuning.search.proposers import Observed, Proposal
from tuning.search.ranking import Standing
from tuning.tables.storage import write_text

#: In the experiment's folder.
NAME = "earlier.json"


@dataclass(frozen=True)
class Earlier:
    """Of all sources in `search.from`."""

    trials: Sequence[Observed] = ()
    """To learn from as if they were this experiment's."""
    first: Sequence[Proposal] = ()
    """To begin with."""
    lines: Sequence[str] = ()
    """What was taken, a line for each source."""


def keep(earlier: Earlier, experiment: Experiment) -> None:
    """Write down what the experiment took, if it takes anything."""
    if not experiment.search.from_:
        return
    taken = {
        "from": list(experiment.search.from_),
        "lines": list(earlier.lines),
        "first": [{"config": each.config, "why": each.why} for each in earlier.first],
        "trials": [_described(trial) for trial in earlier.trials],
    }
    write_text(experiment.folder / NAME, json.dumps(taken, indent=1))


def kept(experiment: Experiment) -> Earlier | None:
    """What it took when it began; None: nothing, or from other sources than it has now."""
    try:
        taken = json.loads((experiment.folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if taken["from"] != list(experiment.search.from_):
        return None
    trials = [
        Observed(
            trial["config"],
            {int(epoch): Standing(tuple(losses), violation) for epoch, losses, violation in trial["results"]},
            over=True,
            failed=trial["failed"],
        )
        for trial in taken["trials"]
    ]
    return Earlier(trials, [Proposal(**each) for each in taken["first"]], taken["lines"])


def _described(trial: Observed) -> dict[str, Any]:
    results = [(epoch, standing.losses, standing.violation) for epoch, standing in trial.results.items()]
    return {"config": dict(trial.config), "results": results, "failed": trial.failed}
