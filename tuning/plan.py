"""What a run of an experiment would be: gangs, rungs, budget, and how many epochs to expect.

A table for `captune check`, and the estimate that it shares with the progress display. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from search_spaces.domains import Domain, Int
from search_spaces.space import Space
from trainables.store import is_url
from tuning.gangs.resources import needs_text, nodes_text
from tuning.render import count, number
from tuning.sections import FEWEST_MODELLED

if TYPE_CHECKING:
    from tuning.experiment import Experiment
    from tuning.gangs.resources import GangPlan, NodeResources


def plan_table(experiment: Experiment, plan: GangPlan, nodes: Sequence[NodeResources]) -> Table:
    """What a run of `experiment` would be, on a cluster whose nodes have these resources."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    where = experiment.place if is_url(experiment.storage) else experiment.folder
    table.add_row("experiment", f"{experiment.name}, results in {where}")
    table.add_row("trainable", experiment.trainable)
    for label, section in (("data", experiment.data), ("fixed", experiment.model)):
        if section:
            table.add_row(label, ", ".join(f"{name} {number(value)}" for name, value in section.items()))
    for index, (name, domain) in enumerate(experiment.space.to_dict().items()):
        table.add_row("" if index else "searched", Text.assemble((name, "cyan"), "  ", _domain_text(domain)))
    for objective in experiment.objectives:
        reference = f", reference {objective.reference:g}" if objective.reference is not None else ""
        table.add_row("objective", f"{objective.metric}, {objective.mode}imal{reference}")
    for constraint in experiment.constraints:
        bounds = [f"<= {constraint.max:g}" if constraint.max is not None else ""]
        bounds += [f">= {constraint.min:g}" if constraint.min is not None else ""]
        table.add_row("constraint", f"{constraint.metric} {' and '.join(filter(None, bounds))}")
    search = experiment.search
    grid = f" of {count(grid_size(experiment.space), 'configuration')}" if search.algorithm == "grid" else ""
    auto = ""
    if search.algorithm == "auto":
        auto = ", a model of configuration and epoch"
        if experiment.model_promotes:
            auto += " that promotes, too"
        elif experiment.scheduler.algorithm == "auto":
            auto += f"; of fewer than {FEWEST_MODELLED} trials, asha promotes"
    together = f", a population of {search.places()}" if search.algorithm == "pbt" else ""
    table.add_row("search", f"{search.algorithm}{grid}{auto}{together}, seed {search.seed}")
    if search.start:
        table.add_row("starts with", f"{count(len(search.start), 'configuration')} of the file")
    if search.from_:
        table.add_row("learns from", ", ".join(search.from_))
    more = f", asks for up to {plan.asked_gangs}" if plan.asked_gangs > plan.gangs else ""
    table.add_row("gangs", f"{plan.gangs} of {needs_text(plan)} (here: {nodes_text(nodes)}){more}")
    table.add_row("rungs", _rungs_text(experiment))
    table.add_row("budget", _budget_text(experiment))
    compression = experiment.compression
    if compression.search == "children":
        ways = f"{', '.join(compression.methods)}, ratios {', '.join(map(number, compression.ratios))}"
        tuned = f"the front fine-tuned for {count(compression.epochs, 'epoch')}"
        parents = f"the best {compression.parents} trials" if compression.parents > 1 else "the best trial"
        table.add_row("afterwards", f"{parents} compressed: {ways}; {tuned}")
    return table


def expected_epochs(experiment: Experiment, trials: int) -> float:
    """Epochs that `trials` trials run in all, where each rung lets one in `reduction_factor` pass.

    In `pbt`, forks take the places of those that a rung stops: a population trains as one trial per place.
    """
    scheduler, total, below, share = experiment.scheduler, 0.0, 0, 1.0
    if experiment.search.algorithm == "pbt":
        places = experiment.search.places()
        forks = experiment.search.replaced() * len(experiment.rungs())
        return scheduler.max_epochs * trials * places / (places + forks)
    for epoch in (*experiment.rungs(), scheduler.max_epochs):
        total += share * (epoch - below)
        below, share = epoch, share / scheduler.reduction_factor
    return total * trials


def grid_size(space: Space) -> int:
    """Number of different configurations of a space in which every float has a `step`.

    Only the values of hyperparameters on which others depend are gone through; the rest is multiplied.
    """
    parents = {parent for domain in space.values() for parent in domain.when or {}}
    absent = object()  # the value of one that does not apply: in no condition

    def applies(domain: Domain, known: Mapping[str, Any]) -> bool:
        return all(known[parent] in values for parent, values in (domain.when or {}).items())

    def values(domain: Domain) -> Sequence[Any]:
        return range(domain.low, domain.top + 1, domain.step) if isinstance(domain, Int) else domain.grid()

    def size(known: dict[str, Any]) -> int:
        for name in parents - known.keys():
            if set(space[name].when or {}) <= known.keys():
                options = values(space[name]) if applies(space[name], known) else [absent]
                return sum(size({**known, name: value}) for value in options)
        rest = (space[name] for name in space.keys() - parents)
        return prod(len(values(domain)) for domain in rest if applies(domain, known))

    return size({})


def _domain_text(domain: Mapping[str, Any]) -> str:
    if "choice" in domain:
        text = ", ".join(map(number, domain["choice"]))
    else:
        low, high = domain.get("float") or domain["int"]
        text = f"{number(low)} … {number(high)}"
        text += ", log" if domain.get("log") else ""
        text += f", step {number(domain['step'])}" if "step" in domain else ""
    for parent, values in domain.get("when", {}).items():
        text += f"; only where {parent} is {' or '.join(map(number, values))}"
    return text


def _rungs_text(experiment: Experiment) -> str:
    scheduler, rungs = experiment.scheduler, ", ".join(map(str, experiment.rungs()))
    if experiment.search.algorithm == "pbt":
        worst = count(experiment.search.replaced(), "trial")
        return f"after epoch {rungs}: the last {worst} of the population end, forks of the best take over"
    if not rungs:
        return f"none: every trial runs its {count(scheduler.max_epochs, 'epoch')}"
    if scheduler.algorithm == "front":
        return (
            f"after epoch {rungs}; once all came, those that no other beats go on to {scheduler.max_epochs}"
        )
    others = "end there" if scheduler.algorithm == "asha_stopping" else "pause and may go on later"
    passing = f"the best go on, at most to {scheduler.max_epochs}; the others {others}"
    return f"after epoch {rungs}; {passing} ({scheduler.algorithm})"


def _budget_text(experiment: Experiment) -> str:
    budget, scheduler = experiment.budget, experiment.scheduler
    parts = []
    if budget.trials is not None:
        most = budget.trials * scheduler.max_epochs
        about = expected_epochs(experiment, budget.trials)
        epochs = f"about {about:.0f} epochs, {most} at most" if experiment.rungs() else f"{most} epochs"
        parts.append(f"{count(budget.trials, 'trial')} ({epochs})")
    if budget.epochs is not None:
        parts.append(f"{count(budget.epochs, 'epoch')} in all")
    if budget.time is not None:
        parts.append(f"no longer than {budget.time}" + ("" if isinstance(budget.time, str) else " s"))
    if budget.worker_hours is not None:
        parts.append(f"{budget.worker_hours:g} worker-hours")
    if budget.price_per_hour is not None:
        money = "" if budget.money is None else f"{budget.money:g} in money, "
        parts.append(f"{money}at {budget.price_per_hour:g} per worker-hour")
    if budget.plateau is not None:
        parts.append(f"until {count(budget.plateau, 'trial')} in a row bring nothing better")
    return ", ".join(parts)
