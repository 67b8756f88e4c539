"""What pydantic says of a refused value, in the words of the experiment file."""

from __future__ import annotations

import difflib
import re

from pydantic_core import ErrorDetails


def refusal(details: ErrorDetails) -> str:
    """`got VALUE: should be …`, with the nearest of a few valid values."""
    value, message = details["input"], details["msg"]
    rule = details.get("ctx", {}).get("error") or re.sub("^(Input|String) should", "should", message)
    near: list[str] = []
    if details["type"] == "literal_error":
        near = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", message), n=1)
    return f"got {value!r}: {rule}" + (f"; did you mean {near[0]!r}?" if near else "")
