"""Single values of an experiment file that several keys share: counts, lengths of time, dotted names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

#: What waits longer than some three hundred years is refused by Python itself.
LONGEST_D = 10_000
#: Of trials, epochs, workers; what no float holds is nothing to reckon with.
Count = Annotated[int, Field(ge=1, le=10**9)]


def _auto_count(value: object) -> object:
    if value == "auto" or (type(value) is int and 1 <= value <= 10**9):
        return value
    raise ValueError("must be 'auto' or a whole number from 1")


#: One rule for both: pydantic's own errors of a union are one for each member.
AutoCount = Annotated[int | Literal["auto"], PlainValidator(_auto_count)]


def seconds_of(time: object) -> float:
    """Seconds of `90`, `90s`, `30m`, `2h`, `1h30m`."""
    units = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    if isinstance(time, (int, float)) and not isinstance(time, bool):
        seconds = time
    elif isinstance(time, str) and re.fullmatch(r"(\d+(\.\d+)?[dhms])+", time):
        seconds = sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+)([dhms])", time))
    else:
        raise ValueError("must be seconds or text such as 90s, 30m, 2h, 1h30m")
    if not 0 < seconds <= LONGEST_D * units["d"]:
        raise ValueError(f"must be more than no time and at most {LONGEST_D}d")
    return float(seconds)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested tree by dotted names.

    Raises:
        ValueError: a name is there twice.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        found = flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        for name in found:
            if name in flat:
                raise ValueError(f"{name!r} is there twice, nested and dotted; keep one")
        flat |= found
    return flat
