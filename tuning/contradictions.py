"""What the keys of an experiment may not say together, though each of them is right by itself.

Single keys are checked where they are defined, in `tuning/sections.py` and `experiment.py`. Pure: nothing is
looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.domains import Float
from search_spaces.nearest import nearest
from search_spaces.space import Space

if TYPE_CHECKING:
    from tuning.experiment import Experiment

Problem = tuple[tuple[str | int, ...], str]

#: Algorithms that model exactly one objective, and those that need several.
_ONE_OBJECTIVE = frozenset({"gp", "cmaes"})
_SEVERAL_OBJECTIVES = frozenset({"nsga2"})
#: Algorithms that `tuning/search/strategies.py` shows the trials of earlier experiments.
_LEARNS_FROM_EARLIER = ("auto", "tpe", "gp")
#: Keys of `scheduler` that mean nothing to `pbt`, and the value that says nothing.
_NOT_OF_PBT = {"algorithm": "auto", "min_epochs": "auto", "reduction_factor": 3}


class Contradictions(ValueError):
    """Keys that exclude each other. `problems` holds every place and the rule that is broken there."""

    def __init__(self, problems: Sequence[Problem]):
        super().__init__(tuple(problems))  # in args: survives pickling between processes
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(f"{'.'.join(map(str, path))}: {message}" for path, message in self.problems)


def refuse_contradictions(experiment: Experiment) -> None:
    """Refuse an experiment whose keys do not fit together.

    Raises:
        Contradictions: all of them at once.
    """
    problems = [
        *_algorithm_and_objectives(experiment),
        *_grid(experiment),
        *_front(experiment),
        *_population(experiment),
        *(
            problem
            for index, config in enumerate(experiment.search.start)
            for problem in _start(config, experiment.space, ("search", "start", index))
        ),
        *_sources(experiment),
    ]
    if problems:
        raise Contradictions(problems)


def _algorithm_and_objectives(experiment: Experiment) -> Iterator[Problem]:
    algorithm, metrics = experiment.search.algorithm, [each.metric for each in experiment.objectives]
    if algorithm in _ONE_OBJECTIVE and len(metrics) > 1:
        rule = f"needs exactly one objective, but there are {len(metrics)} ({', '.join(metrics)})"
        others = "auto, tpe, nsga2, pbt, random, grid and sobol take several"
    elif algorithm in _SEVERAL_OBJECTIVES and len(metrics) == 1:
        rule = f"needs at least two objectives, but there is one ({metrics[0]})"
        others = "auto, tpe, gp, cmaes, pbt, random, grid and sobol take one"
    else:
        return
    yield ("search", "algorithm"), f"got {algorithm!r}: {rule}; {others}"


def _grid(experiment: Experiment) -> Iterator[Problem]:
    if experiment.search.algorithm != "grid":
        return
    for name, domain in experiment.space.items():
        if not isinstance(domain, Float) or domain.step is not None:
            continue
        if domain.log:
            remedy = (
                f"`log` excludes one: list the values, as in {{choice: [{domain.low:g}, {domain.high:g}]}}"
            )
        else:
            step = f"{(domain.high - domain.low) / 4:g}"
            remedy = f"add one, as in {{float: [{domain.low:g}, {domain.high:g}], step: {step}}}"
        yield ("search_space", name), f"`search.algorithm: grid` needs a `step` for every float; {remedy}"


def _front(experiment: Experiment) -> Iterator[Problem]:
    if experiment.scheduler.algorithm == "front" and experiment.budget.trials is None:
        yield ("scheduler", "algorithm"), "got 'front': needs `budget.trials`, the trials that it waits for"


def _population(experiment: Experiment) -> Iterator[Problem]:
    """`pbt` has rungs of its own; the others have no population."""
    search, scheduler = experiment.search, experiment.scheduler
    if search.algorithm != "pbt":
        for key in ("population", "interval"):
            if (value := getattr(search, key)) is not None:
                rule = f"got {value}: belongs to `search.algorithm: pbt`, but that is {search.algorithm!r}"
                yield ("search", key), f"{rule}; leave it out"
        return
    for key, unsaid in _NOT_OF_PBT.items():
        if (value := getattr(scheduler, key)) != unsaid:
            rule = "`search.algorithm: pbt` itself decides which trials go on"
            yield ("scheduler", key), f"got {value!r}: {rule}, every `search.interval` epochs; leave it out"
    if not experiment.rungs():
        needed = (search.interval or 1) + 1
        rule = f"`search.algorithm: pbt` compares trials before their last epoch; needs at least {needed}"
        yield ("scheduler", "max_epochs"), f"got {scheduler.max_epochs}: {rule}"
    if len(search.start) > search.places():
        rule = f"only the population begins with given configurations, and has {search.places()} trials"
        yield ("search", "start"), f"got {len(search.start)} of them: {rule}"


def _start(config: Mapping[str, Any], space: Space, place: tuple[str | int, ...]) -> Iterator[Problem]:
    """What is wrong with one configuration that is to run first."""
    if not config:
        yield place, f"names no hyperparameter{nearest('', space)}"
    for name, value in config.items():
        if name not in space:
            yield (*place, name), f"is not searched{nearest(name, space)}"
            continue
        domain = space[name]
        if not domain.contains(value):
            yield (*place, name), f"got {value!r}: must be in {space.to_dict()[name]}"
        for parent, values in (domain.when or {}).items():
            if config.get(parent) not in values:
                wanted = " or ".join(map(repr, values))
                found = f"is {config[parent]!r}" if parent in config else "is left out"
                yield (*place, name), f"applies only where {parent!r} is {wanted}, which {found} here"


def _sources(experiment: Experiment) -> Iterator[Problem]:
    search = experiment.search
    if search.from_ and search.algorithm not in _LEARNS_FROM_EARLIER:
        rule = f"`search.algorithm: {search.algorithm}` learns nothing from earlier experiments"
        yield ("search", "from"), f"{rule}; leave it out, or take {', '.join(_LEARNS_FROM_EARLIER)}"
    for index, source in enumerate(search.from_):
        if source in (experiment.name, str(experiment.folder)):
            rule = f"got {source!r}: is this experiment itself; --resume goes on with it, `from` takes others"
            yield ("search", "from", index), rule
