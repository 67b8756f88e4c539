"""Domains of hyperparameters: real numbers, whole numbers, and a few values without any order.

A domain is data and holds no random state: who draws brings a trial of Optuna (`suggest`) or a number from
0 to 1 (`at`).
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, TypeGuard

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

Scalar = str | int | float | bool | None
#: From 0 to the largest value; of some times as many, rounding makes a value none of them.
MOST_STEPS = 10**7
#: Values of other hyperparameters, by their names, with which a domain applies.
Condition = Mapping[str, Sequence[Scalar]]


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
        if self.step is None:
            return
        if not self.step > 0:
            raise ValueError(f"`step > 0` must hold, but got step={self.step!r}")
        if max(abs(self.low), abs(self.high)) / self.step > MOST_STEPS:
            rule = "`step` must be at least a ten-millionth of the largest value"
            raise ValueError(f"{rule}, but got step={self.step!r}; leave it out")
        if self.log:
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
        if not _is_finite(value) or not self.low <= value <= self.top:
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
            value = getattr(self, name)
            if not isinstance(value, int) or abs(value) >= 2**63:
                raise ValueError(f"`{name}` must be a whole number of at most 64 bits, but got {value!r}")
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
        """The extremes, and the second: what a trainable should be asked whether it accepts.

        What divides the first two divides all of them. Where there is a condition only the extremes: perhaps
        it is there so that the others never meet what refuses them.
        """
        second = self.low if self.when else min(self.low + self.step, self.top)
        return list(dict.fromkeys([self.low, second, self.top]))


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
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"values must be finite, but got {value!r}")
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


def _check_range(domain: Float | Int) -> None:
    for name in ("low", "high", "step"):
        value = getattr(domain, name)
        if not _is_finite(value) and (name, value) != ("step", None):
            raise ValueError(f"`{name}` must be a finite number, but got {reprlib.repr(value)}")
    if not domain.low <= domain.high:
        raise ValueError(f"`low <= high` must hold, but got low={domain.low!r}, high={domain.high!r}")
    if domain.log and not domain.low > 0:
        raise ValueError(f"`low > 0` must hold with `log`, but got low={domain.low!r}")


def _is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number that a float can hold; `math.isfinite` raises at a whole one that none can."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max


def _between(low: float, high: float, unit: float) -> float:
    return low + unit * (high - low)


def _clip(domain: Float | Int, value: float) -> float:
    return min(max(value, domain.low), domain.high)


def _unit(domain: Float | Int, value: float) -> float:
    low, high = (math.log(end) if domain.log else end for end in (domain.low, domain.high))
    return ((math.log(value) if domain.log else value) - low) / ((high - low) or 1.0)
