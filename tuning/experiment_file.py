"""The experiment file as text: YAML and `--set` overrides in, a plain tree and where each value stands out.

This file knows YAML and line numbers. What keys there are and what they may hold is for
`tuning/sections.py` and `experiment.py`, which names the places that are found here in its errors.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

#: Sections whose keys are themselves dotted: `--set model.compression.method=int8` sets one key of `model`.
_DOTTED_SECTIONS = ("model", "search_space")


class ExperimentError(ValueError):
    """An experiment that cannot be run. `problems` holds one line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]):
        super().__init__(tuple(problems))  # in args: survives pickling between processes
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the values of an experiment were written. Never part of a comparison of experiments."""

    name: str = field(default="", compare=False)
    """The file, as the user named it; empty for an experiment built in Python."""
    places: Mapping[str, str] = field(default_factory=dict, compare=False)
    """`FILE:LINE` or `--set KEY=VALUE` by dotted path."""

    def problem(self, path: Sequence[str | int], message: str) -> str:
        """One line of an `ExperimentError`: place, key, message."""
        key = ".".join(map(str, path))
        return ": ".join(part for part in (self.place(path), key, message) if part)

    def place(self, path: Sequence[str | int]) -> str:
        """Place of the value at `path`, or of the nearest section around it."""
        for length in range(len(path), -1, -1):
            found = self.places.get(".".join(map(str, path[:length])))
            if found:
                return found
        return self.name


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number, as everywhere but in PyYAML, and a date is text.

    An alias within what has an anchor itself is refused: a few lines of them stand for millions of values.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _anchors_around = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        is_anchored = event.anchor is not None and not isinstance(event, yaml.AliasEvent)
        if isinstance(event, yaml.AliasEvent) and self._anchors_around:
            rule = f"*{event.anchor} is within what has an anchor itself: write it out"
            raise ComposerError(None, None, rule, event.start_mark)  # type: ignore[arg-type]
        self._anchors_around += is_anchored
        node = super().compose_node(parent, index)
        self._anchors_around -= is_anchored
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # PyYAML trusts tags and its own patterns
            rule = f"{reprlib.repr(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise ConstructorError(None, None, rule, node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Puts quotes around a text that `_Loader` would take for a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def experiment_text(tree: Mapping[str, Any]) -> str:
    """The text of a file from which `read_experiment_file` reads an equal tree."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_experiment_file(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Source]:
    """The file's tree with the overrides (`a.b=c`) put in, and the place of every value.

    Raises:
        ExperimentError: no such file, broken YAML, a key that is there twice, an override that fits nowhere.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        raise ExperimentError([f"{path}: cannot read the experiment file: {reason}"]) from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ExperimentError([f"{path}:1: an experiment file holds keys and values, as in `name: mine`"])
        places = {"": f"{path}:1"}
        problems = list(_locate(node, (), str(path), places))
        if problems:
            raise ExperimentError(problems)
        tree = loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise ExperimentError([f"{where}: not valid YAML: {_reason(error)}"]) from error
    for override in overrides:
        _apply(tree, override, places)
    return tree, Source(name=str(path), places=places)


def _reason(error: yaml.YAMLError | RecursionError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def _locate(node: yaml.Node, path: tuple[str, ...], file: str, places: dict[str, str]) -> Iterator[str]:
    """Fill `places` for everything below `node`; yield keys that are there twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[".".join([*path, str(index)])] = f"{file}:{item.start_mark.line + 1}"
            yield from _locate(item, (*path, str(index)), file, places)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield f"{file}:{line}: {'.'.join(path)}: a key is a name, not a list or a mapping"
                continue
            if key.value in seen:
                dotted = ".".join([*path, key.value])
                yield f"{file}:{line}: {dotted}: is there twice, first on line {seen[key.value]}; keep one"
            seen[str(key.value)] = line
            places[".".join([*path, str(key.value)])] = f"{file}:{line}"
            yield from _locate(value, (*path, str(key.value)), file, places)


def _apply(tree: dict[str, Any], override: str, places: dict[str, str]) -> None:
    """Put one `a.b=c` into the tree, sections made where they are missing."""
    dotted, equals, text = override.partition("=")
    origin = f"--set {override}"
    if not equals or not all(dotted.split(".")):
        raise ExperimentError([f"{origin}: must be of the form a.b=c, as in --set training.workers=2"])
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise ExperimentError([f"{origin}: {text!r} is not valid YAML: {_reason(error)}"]) from error

    section: Any = tree
    done: list[str] = []
    rest = dotted.split(".")
    while True:
        key, rest_after = _next_key(section, done, rest)
        if isinstance(section, list):
            if not key.isdecimal() or int(key) >= len(section):
                raise ExperimentError([f"{origin}: {'.'.join(done)} has the items 0 to {len(section) - 1}"])
        elif not isinstance(section, dict):
            raise ExperimentError([f"{origin}: {'.'.join(done)} is {section!r} and holds no keys"])
        slot: Any = int(key) if isinstance(section, list) else key
        done.append(key)
        if not rest_after:
            section[slot] = value
            break
        if isinstance(section, dict) and section.get(slot) is None:
            section[slot] = {}
        section, rest = section[slot], rest_after
    for stale in [p for p in places if p.startswith(dotted + ".")]:
        del places[stale]
    places[dotted] = origin


def _next_key(section: Any, done: list[str], rest: list[str]) -> tuple[str, list[str]]:
    """The next key to go down and what is left: the longest dotted key that exists, else one step."""
    if isinstance(section, dict):
        for length in range(len(rest), 0, -1):
            if ".".join(rest[:length]) in section:
                return ".".join(rest[:length]), rest[length:]
        if len(done) == 1 and done[0] in _DOTTED_SECTIONS:
            return ".".join(rest), []
    return rest[0], rest[1:]
