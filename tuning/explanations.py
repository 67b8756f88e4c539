"""What pydantic refuses in an experiment, in the words of its file: place, key, value, rule."""

from __future__ import annotations

import reprlib
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from search_spaces.nearest import nearest
from search_spaces.space import SpaceError
from trainables.refusal import refusal
from tuning.contradictions import Contradictions
from tuning.experiment_file import Source

_KINDS = {"tuple_type": "should be a list"}
_KINDS |= dict.fromkeys(("dict_type", "model_type"), "should hold keys and values")


def explained(details: ErrorDetails, source: Source, root: type[BaseModel]) -> list[str]:
    """Lines for one error of pydantic about a tree of the model `root`."""
    path, value = details["loc"], details["input"]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, (SpaceError, Contradictions)):
        return [source.problem((*path, *where), message) for where, message in cause.problems]
    if details["type"] == "extra_forbidden":
        return [source.problem(path, f"unknown key{nearest(str(path[-1]), _keys_beside(path, root))}")]
    if details["type"] == "missing":
        return [source.problem(path, "is missing")]
    if cause and isinstance(value, (Mapping, list, tuple)):  # a whole section: its own keys are in the rule
        return [source.problem(path, str(cause))]
    if details["type"] in _KINDS:
        return [source.problem(path, f"got {reprlib.repr(value)}: {_KINDS[details['type']]}")]
    return [source.problem(path, refusal(details))]


def _keys_beside(path: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys that are known where the last of `path` stands."""
    model: Any = root
    for step in path[:-1]:
        if isinstance(step, str):
            annotation = next(f for n, f in model.model_fields.items() if step in (n, f.alias)).annotation
            arguments = typing.get_args(annotation)
            model = arguments[0] if arguments else annotation
    return [field.alias or name for name, field in model.model_fields.items()]
