"""What may be searched: domains, the conditions under which they apply, and their YAML form.

This file knows Optuna's distributions and nothing else: neither Ray nor torch, nor which hyperparameters
a trainable has (`tuning/experiment.py` asks the trainable). A space is data and holds no random state: who
draws brings a trial of Optuna (`Space.suggest`) or numbers from 0 to 1 (`Space.at`).

    Space({
        "learning_rate": Float(1e-4, 1e-2, log=True),
        "compression.method": Choice(["none", "low_rank"]),
        "compression.ratio": Float(0.1, 0.9, when={"compression.method": ["low_rank"]}),
    })
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

Scalar = str | int | float | bool | None
Condition = Mapping[str, Sequence[Scalar]]

#: One thing wrong with a space: where (`("compression.ratio", "when")`) and what.
Problem = tuple[tuple[str, ...], str]


class SpaceError(ValueError):
    """A search space that cannot be. `problems` holds every place and the law that is broken there."""

    def __init__(self, problems: Sequence[Problem]):
        super().__init__(tuple(problems))  # in args: survives pickling between processes
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(f"{': '.join(path)}: {message}" for path, message in self.problems)


@dataclass(frozen=True)
class Float:
    """A real number from `low` to `high`, both included.

    With `log`, evenly spread over orders of magnitude; with `step`, only `low + k * step`.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: Condition | None = None
    key: ClassVar[str] = "float"

    def __post_init__(self) -> None:
        _check_range(self)
        if self.step is not None and not self.step > 0:
            raise ValueError(f"`step > 0` must hold, but got step={self.step!r}")
        if self.step is not None and self.log:
            raise ValueError(f"`step` and `log` exclude each other, but got step={self.step!r}, log=True")

    @property
    def top(self) -> float:
        """The largest value that can come up: `high`, or the last step below it."""
        if self.step is None:
            return self.high
        low, step = Decimal(str(self.low)), Decimal(str(self.step))  # 0.1 + 2 * 0.1 is to be 0.3
        return float(low + (Decimal(str(self.high)) - low) // step * step)

    def suggest(self, name: str, trial: Trial) -> float:
        """A value, drawn by the sampler of the trial's study."""
        return trial.suggest_float(name, self.low, self.top, step=self.step, log=self.log)

    def at(self, unit: float) -> float:
        """The value at `unit`, 0 for `low` to 1 for the top; `unit` spread evenly draws as `suggest` does."""
        if self.log:
            return _clip(self, math.exp(_between(math.log(self.low), math.log(self.high), unit)))
        if self.step is None:
            return _clip(self, _between(self.low, self.high, unit))
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        steps = int((Decimal(str(self.high)) - low) // step)
        return float(low + min(int(unit * (steps + 1)), steps) * step)

    def grid(self) -> list[float]:
        """All values; needs a `step`."""
        if self.step is None:
            raise ValueError("a float domain without `step` has no grid")
        count = round((self.top - self.low) / self.step) + 1
        return [self.at((index + 0.5) / count) for index in range(count)]

    def unit(self, value: float) -> float:
        """Where `value` lies between `low` and `high`, 0 to 1, on the domain's own scale."""
        return _unit(self, value)

    def distribution(self) -> FloatDistribution:
        """The same domain in Optuna's terms."""
        return FloatDistribution(self.low, self.top, log=self.log, step=self.step)

    def contains(self, value: object) -> bool:
        """Whether `value` could come up."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        if not self.low <= value <= self.top:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-8

    def examples(self) -> list[Scalar]:
        """The extremes: what a trainable should be asked whether it accepts."""
        return list(dict.fromkeys([float(self.low), float(self.top)]))


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both included, in steps of `step`."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    when: Condition | None = None
    key: ClassVar[str] = "int"

    def __post_init__(self) -> None:
        _check_range(self)
        for name in ("low", "high", "step"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"`{name}` must be a whole number, but got {getattr(self, name)!r}")
        if self.step < 1:
            raise ValueError(f"`step >= 1` must hold, but got step={self.step!r}")
        if self.step != 1 and self.log:
            raise ValueError(f"`step` and `log` exclude each other, but got step={self.step!r}, log=True")

    @property
    def top(self) -> int:
        """The largest value that can come up: `high`, or the last step below it."""
        return self.low + (self.high - self.low) // self.step * self.step

    def suggest(self, name: str, trial: Trial) -> int:
        """A value, drawn by the sampler of the trial's study."""
        return trial.suggest_int(name, self.low, self.top, step=self.step, log=self.log)

    def at(self, unit: float) -> int:
        """The value at `unit`, 0 for `low` to 1 for the top; `unit` spread evenly draws as `suggest` does."""
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return int(_clip(self, round(math.exp(_between(low, high, unit)))))
        steps = (self.high - self.low) // self.step
        return self.low + self.step * min(int(unit * (steps + 1)), steps)

    def grid(self) -> list[int]:
        """All values."""
        return list(range(self.low, self.top + 1, self.step))

    def unit(self, value: int) -> float:
        """Where `value` lies between `low` and `high`, 0 to 1, on the domain's own scale."""
        if self.log:  # where `at` has it: a whole number stands for half a step to either side
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return (math.log(value) - low) / (high - low)
        return _unit(self, value)

    def distribution(self) -> IntDistribution:
        """The same domain in Optuna's terms."""
        return IntDistribution(self.low, self.top, log=self.log, step=self.step)

    def contains(self, value: object) -> bool:
        """Whether `value` could come up."""
        if isinstance(value, bool) or not isinstance(value, int):
            return False
        return self.low <= value <= self.top and (value - self.low) % self.step == 0

    def examples(self) -> list[Scalar]:
        """The extremes: what a trainable should be asked whether it accepts."""
        return list(dict.fromkeys([self.low, self.top]))


@dataclass(frozen=True)
class Choice:
    """One of a few values, without any order among them."""

    values: Sequence[Scalar]
    when: Condition | None = None
    key: ClassVar[str] = "choice"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values:
            raise ValueError("at least one value must be there to choose from, but got none")
        for index, value in enumerate(self.values):
            if not isinstance(value, Scalar):
                raise ValueError(f"values must be text, numbers, true, false or null, but got {value!r}")
            if value in self.values[:index]:
                raise ValueError(f"values must differ, but {value!r} is there twice")

    def suggest(self, name: str, trial: Trial) -> Scalar:
        """A value, drawn by the sampler of the trial's study."""
        return trial.suggest_categorical(name, self.values)

    def at(self, unit: float) -> Scalar:
        """The value at `unit`, 0 to 1; each has an equal share."""
        return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]

    def grid(self) -> list[Scalar]:
        """All values."""
        return list(self.values)

    def distribution(self) -> CategoricalDistribution:
        """The same domain in Optuna's terms."""
        return CategoricalDistribution(self.values)

    def contains(self, value: object) -> bool:
        """Whether `value` could come up; `True` and `1` are different values."""
        return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values)

    def examples(self) -> list[Scalar]:
        """All values."""
        return list(self.values)


Domain = Float | Int | Choice
_DOMAINS: dict[str, type[Float] | type[Int] | type[Choice]] = {d.key: d for d in (Float, Int, Choice)}


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
        """Read the YAML form, `{name: {float: [low, high], log: true}, …}`.

        Numbers may come as text, as PyYAML reads `1e-4`.

        Raises:
            SpaceError: with every problem and its place.
        """
        domains: dict[str, Domain] = {}
        problems: list[Problem] = []
        for name, entry in spec.items():
            try:
                domains[str(name)] = _parse_domain(entry)
            except ValueError as error:
                problems.append(((str(name),), str(error)))
        if problems:
            broken = [str(name) for name in spec if name not in domains]
            raise SpaceError(problems + list(_condition_problems(domains, broken)))
        return cls(domains)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The YAML form; `Space.from_dict(space.to_dict()) == space`."""
        spec = {}
        for name, domain in self._domains.items():
            if isinstance(domain, Choice):
                entry: dict[str, Any] = {domain.key: list(domain.values)}
            else:
                entry = {domain.key: [domain.low, domain.high]}
                if domain.log:
                    entry["log"] = True
                if domain.step not in (None, 1) or (isinstance(domain, Float) and domain.step is not None):
                    entry["step"] = domain.step
            if domain.when:
                entry["when"] = {parent: list(values) for parent, values in domain.when.items()}
            spec[name] = entry
        return spec

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


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, else a list of those there are."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(names[:12]) or 'none'}{' …' if len(names) > 12 else ''}"


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
                    possible = domains[parent].examples()
                    link = ", " if isinstance(domains[parent], Choice) else " … "
                    yield where, f"{parent!r} never is {value!r}; it is {link.join(map(repr, possible))}"


def _active(domain: Domain, config: Mapping[str, Any]) -> bool:
    return all(p in config and config[p] in values for p, values in (domain.when or {}).items())


def _check_range(domain: Float | Int) -> None:
    for name in ("low", "high"):
        bound = getattr(domain, name)
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not math.isfinite(bound):
            raise ValueError(f"`{name}` must be a finite number, but got {bound!r}")
    if not domain.low <= domain.high:
        raise ValueError(f"`low <= high` must hold, but got low={domain.low!r}, high={domain.high!r}")
    if domain.log and not domain.low > 0:
        raise ValueError(f"`low > 0` must hold with `log`, but got low={domain.low!r}")


def _between(low: float, high: float, unit: float) -> float:
    return low + unit * (high - low)


def _clip(domain: Float | Int, value: float) -> float:
    return min(max(value, domain.low), domain.high)


def _unit(domain: Float | Int, value: float) -> float:
    low, high = (math.log(end) if domain.log else end for end in (domain.low, domain.high))
    return ((math.log(value) if domain.log else value) - low) / ((high - low) or 1.0)


def _freeze_condition(domain: Domain) -> Domain:
    return replace(domain, when={p: tuple(v) for p, v in domain.when.items()} if domain.when else None)


def _parse_domain(entry: object) -> Domain:
    if not isinstance(entry, Mapping):
        raise ValueError(f"must be like {{float: [1e-4, 1e-2], log: true}}, but got {entry!r}")
    kinds = [key for key in entry if key in _DOMAINS]
    allowed = [*_DOMAINS, "when"] if kinds == ["choice"] else [*_DOMAINS, "log", "step", "when"]
    for key in entry:
        if key not in allowed:
            raise ValueError(f"unknown key {key!r}{nearest(key, allowed)}")
    if len(kinds) != 1:
        raise ValueError(f"needs exactly one of {', '.join(_DOMAINS)}, but has {', '.join(kinds) or 'none'}")
    kind, values = kinds[0], entry[kinds[0]]
    when = _parse_condition(entry.get("when"))
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"`{kind}` takes a list, but got {values!r}")
    if kind == "choice":
        return Choice(values, when=when)
    if len(values) != 2:
        raise ValueError(f"`{kind}` takes [low, high], but got {list(values)!r}")
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"`log` is true or false, but got {log!r}")
    low, high = (_number(value) for value in values)
    step = None if entry.get("step") is None else _number(entry["step"])
    if kind == "float":
        return Float(low, high, log=log, step=step, when=when)
    return Int(_whole(low), _whole(high), log=log, step=1 if step is None else _whole(step), when=when)


def _parse_condition(when: object) -> Condition | None:
    if when is None:
        return None
    if not isinstance(when, Mapping):
        raise ValueError(f"`when` must be like {{compression.method: [low_rank]}}, but got {when!r}")
    return {
        str(parent): [values] if isinstance(values, Scalar) else list(values)
        for parent, values in when.items()
    }


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"must be a number, but got {value!r}") from None
    return value


def _whole(value: int | float) -> int:
    # 1e3 is a float to YAML and a whole number to people; anything else is for Int to refuse.
    return int(value) if isinstance(value, float) and value.is_integer() else value  # type: ignore[return-value]
