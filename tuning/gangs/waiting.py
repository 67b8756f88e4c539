"""Wait until a cluster that is too small for an experiment has grown, for as long as the experiment says."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from tuning.gangs.neighbours import alive_nodes
from tuning.gangs.resources import GangPlan, NoRoom, least_plan, needs_text, nodes_text
from tuning.render import count, duration

if TYPE_CHECKING:
    from tuning.experiment import Experiment

LOOK_S = 2.0  # how often the cluster is looked at
SAY_S = 30.0  # how often it is said that the wait goes on


def plan_in_time(experiment: Experiment, say: Callable[[str], None]) -> GangPlan:
    """The gangs of `experiment` on the cluster, once it is large enough for them.

    Raises:
        tuning.experiment.ExperimentError: it is too large, and is not to wait; or fits on no cluster.
        NoRoom: it was still too large after `training.wait_for_resources`.
    """
    from tuning.experiment import TooLarge
    from tuning.gangs.demand import Demand

    training = experiment.training
    try:
        return experiment.plan_resources(alive_nodes())
    except TooLarge as error:
        if not training.wait_s:
            raise
        refusal = error
    wanted = least_plan(training, experiment.budget.trials, alive_nodes())
    what = f"{count(wanted.gangs, 'gang')} of {needs_text(wanted)}"
    began, said = time.monotonic(), -SAY_S
    with closing(Demand(experiment.name, wanted)) as demand:
        demand.ask(wanted.gangs)
        while (waited := time.monotonic() - began) < training.wait_s:
            if waited - said >= SAY_S:
                said = waited
                say(
                    f"waiting for room for {what}: {duration(waited)} of {duration(training.wait_s)}, "
                    f"the cluster has {nodes_text(alive_nodes())}"
                )
            time.sleep(min(LOOK_S, training.wait_s - waited))
            try:
                return experiment.plan_resources(alive_nodes())
            except TooLarge as error:
                refusal = error
    raise NoRoom(f"{refusal}; waited {duration(training.wait_s)} for it to grow")
