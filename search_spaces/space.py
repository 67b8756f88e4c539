"""What may be searched: domains by name, and the conditions under which they apply.

A space is data. It knows Optuna's distributions and nothing else: neither Ray nor torch, nor which
hyperparameters a trainable has (`tuning/experiment.py` asks the trainable).

    Space({
        "learning_rate": Float(1e-4, 1e-2, log=True),
        "compression.method": Choice(["none", "low_rank"]),
        "compression.ratio": Float(0.1, 0.9, when={"compression.method": ["low_rank"]}),
    })
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import Trial

from search_spaces.domains import Choice, Domain
from search_spaces.nearest import nearest
from search_spaces.yaml_form import parsed, written

#: One thing wrong with a space: where (`("compression.ratio", "when")`) and what.
Problem = tuple[tuple[str, ...], str]


class SpaceError(ValueError):
    """A search space that cannot be. `problems` holds every place and the law that is broken there."""

    def __init__(self, problems: Sequence[Problem]):
        super().__init__(tuple(problems))  # in args: survives pickling between processes
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(f"{': '.join(path)}: {message}" for path, message in self.problems)


class Space(Mapping[str, Domain]):
    """Domains by hyperparameter name. Immutable.

    Raises:
        SpaceError: a condition names an unknown hyperparameter, a value that it never takes, or
            conditions run in a circle. All problems at once.
    """

    def __init__(self, domains: Mapping[str, Domain]):
        self._domains = {name: _freeze_condition(domain) for name, domain in domains.items()}
        problems = list(_condition_problems(self._domains))
        if problems:
            raise SpaceError(problems)
        self._order = self._parents_first()

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Space:
        """Read the YAML form, `{name: {float: [low, high], log: true}, …}` (`search_spaces/yaml_form.py`).

        Raises:
            SpaceError: with every problem and its place.
        """
        domains: dict[str, Domain] = {}
        problems: list[Problem] = []
        for name, entry in spec.items():
            try:
                domains[str(name)] = parsed(entry)
            except ValueError as error:
                problems.append(((str(name),), str(error)))
        if problems:
            broken = [str(name) for name in spec if name not in domains]
            raise SpaceError(problems + list(_condition_problems(domains, broken)))
        return cls(domains)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The YAML form; `Space.from_dict(space.to_dict()) == space`."""
        return {name: written(domain) for name, domain in self._domains.items()}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """A configuration, drawn by the sampler of the trial's study; inactive names are absent."""
        config: dict[str, Any] = {}
        for name in self._order:
            domain = self._domains[name]
            if _active(domain, config):
                config[name] = domain.suggest(name, trial)
        return config

    def at(self, units: Mapping[str, float]) -> dict[str, Any]:
        """The configuration at `units`, a number from 0 to 1 for each name; inactive names are absent."""
        config: dict[str, Any] = {}
        for name in self._order:
            domain = self._domains[name]
            if _active(domain, config):
                config[name] = domain.at(units[name])
        return config

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every configuration once; only for spaces whose float domains have a `step`."""
        configs: list[dict[str, Any]] = [{}]
        for name in self._order:
            domain = self._domains[name]
            configs = [
                {**config, name: value} if active else config
                for config in configs
                for active in [_active(domain, config)]
                for value in (domain.grid() if active else [None])
            ]
        yield from configs

    def complete(self, given: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with what it leaves out taken from `drawn`; names that are not active with it are absent.

        Where `drawn` lacks a name that is active only with what is given, its value is the domain's middle.
        """
        config: dict[str, Any] = {}
        for name in self._order:
            domain = self._domains[name]
            if _active(domain, config):
                config[name] = given[name] if name in given else drawn.get(name, domain.at(0.5))
        return config

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every domain in Optuna's terms, conditions left out."""
        return {name: domain.distribution() for name, domain in self._domains.items()}

    def contains(self, config: Mapping[str, Any]) -> bool:
        """Whether `suggest` could return `config`: active names only, all of them, each in its domain."""
        expected = [name for name in self._order if _active(self._domains[name], config)]
        return set(expected) == set(config) and all(self._domains[n].contains(config[n]) for n in expected)

    def fix(self, fixed: Mapping[str, Any]) -> Space:
        """This space without the names in `fixed`; conditions on them are decided by their values."""
        domains: dict[str, Domain] = {}
        gone = dict(fixed)
        for name in self._order:
            domain = self._domains[name]
            if name in fixed:
                continue
            settled = {p: values for p, values in (domain.when or {}).items() if p in gone}
            if any(gone[parent] not in values for parent, values in settled.items()):
                gone[name] = _NEVER  # its own dependants go with it
                continue
            when = {p: values for p, values in (domain.when or {}).items() if p not in gone}
            domains[name] = replace(domain, when=when)
        return Space({name: domains[name] for name in self._domains if name in domains})

    def __getitem__(self, name: str) -> Domain:
        return self._domains[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __len__(self) -> int:
        return len(self._domains)

    def __repr__(self) -> str:
        return f"Space({self._domains!r})"

    def _parents_first(self) -> list[str]:
        """Names in the order of drawing. Alphabetical otherwise, so that a seeded search does not depend on
        the order in which a file lists them."""
        order: list[str] = []
        waiting = sorted(self._domains)
        while waiting:
            ready = [n for n in waiting if all(p in order for p in self._domains[n].when or {})]
            if not ready:
                raise SpaceError(
                    [((n, "when"), f"conditions run in a circle among {', '.join(waiting)}") for n in waiting]
                )
            order.append(ready[0])
            waiting.remove(ready[0])
        return order


_NEVER = object()


def _condition_problems(domains: Mapping[str, Domain], broken: Sequence[str] = ()) -> Iterator[Problem]:
    """What is wrong with the conditions; those on `broken` names cannot be judged."""
    for name, domain in domains.items():
        for parent, values in (domain.when or {}).items():
            where = (name, "when")
            if parent in broken:
                continue
            if parent not in domains:
                yield where, f"{parent!r} is not searched{nearest(parent, [*domains, *broken])}"
                continue
            if not values:
                yield where, f"the values of {parent!r} at which {name!r} applies must not be empty"
            for value in values:
                if not domains[parent].contains(value):
                    found = list(map(repr, domains[parent].examples()))
                    choice = isinstance(domains[parent], Choice)
                    possible = ", ".join(found) if choice else f"{found[0]} … {found[-1]}"
                    yield where, f"{parent!r} never is {value!r}; it is {possible}"


def _active(domain: Domain, config: Mapping[str, Any]) -> bool:
    return all(p in config and config[p] in values for p, values in (domain.when or {}).items())


def _freeze_condition(domain: Domain) -> Domain:
    return replace(domain, when={p: tuple(v) for p, v in domain.when.items()} if domain.when else None)
