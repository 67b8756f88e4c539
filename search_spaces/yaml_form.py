"""How a domain stands in an experiment file: `{float: [1e-4, 1e-2], log: true, when: {optimizer: [sgd]}}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.domains import Choice, Condition, Domain, Float, Int, Scalar
from search_spaces.nearest import nearest

#: The key that says which domain it is.
KINDS = tuple(domain.key for domain in (Float, Int, Choice))


def written(domain: Domain) -> dict[str, Any]:
    """The entry of a file from which `parsed` makes an equal domain."""
    if isinstance(domain, Choice):
        entry: dict[str, Any] = {domain.key: list(domain.values)}
    else:
        entry = {domain.key: [domain.low, domain.high]}
        if domain.log:
            entry["log"] = True
        if domain.step != (1 if isinstance(domain, Int) else None):
            entry["step"] = domain.step
    if domain.when:
        entry["when"] = {parent: list(values) for parent, values in domain.when.items()}
    return entry


def parsed(entry: object) -> Domain:
    """The domain of an entry. Numbers may come as text, as PyYAML reads `1e-4`.

    Raises:
        ValueError: with what is wrong.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"must be like {{float: [1e-4, 1e-2], log: true}}, but got {entry!r}")
    kinds = [key for key in entry if key in KINDS]
    allowed = [*KINDS, "when"] if kinds == ["choice"] else [*KINDS, "log", "step", "when"]
    for key in entry:
        if key not in allowed:
            raise ValueError(f"unknown key {key!r}{nearest(key, allowed)}")
    if len(kinds) != 1:
        raise ValueError(f"needs exactly one of {', '.join(KINDS)}, but has {', '.join(kinds) or 'none'}")
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
    for parent, values in when.items():
        if not isinstance(values, (Scalar, list, tuple)):
            raise ValueError(f"`when` takes values of {parent!r}, but got {values!r}")
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
