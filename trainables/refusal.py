"""Why a value is refused, in the words of the experiment file, and what was perhaps meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def refusal(details: ErrorDetails) -> str:
    """`got VALUE: should be …`, as pydantic says it, with the nearest of a few valid values."""
    value, message = details["input"], details["msg"]
    rule = details.get("ctx", {}).get("error") or re.sub("^(Input|String) should", "should", message)
    choices = re.findall(r"'([^']*)'", message) if details["type"] == "literal_error" else ()
    return f"got {value!r}: {rule}{nearest(str(value), choices)}"


def nearest(name: str, choices: Iterable[str]) -> str:
    """The ending "; did you mean 'X'?" of a message, or nothing where no choice is near."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
