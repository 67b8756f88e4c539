"""Configurations out of the rows of a table of trials: in their own types, inactive names absent.

A table has one dtype per column, an empty cell for what does not apply, and another for a choice that is
None; this file undoes that. It also tells in which other settings two experiments' trials differ. What the
configurations are for is nobody's business here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from search_spaces import Space
from search_spaces.domains import Choice, Domain, Int

if TYPE_CHECKING:
    from tuning.experiment import Experiment

#: Before the name of a hyperparameter in a table.
PREFIX = "config/"


def searched_names(trials: pd.DataFrame) -> list[str]:
    """Hyperparameters that a table of trials has columns of."""
    return [str(name).removeprefix(PREFIX) for name in trials.columns if str(name).startswith(PREFIX)]


def configurations(trials: pd.DataFrame, space: Space) -> dict[str, dict[str, Any]]:
    """The configuration of every trial, by trial_id, in the order of the table.

    Args:
        trials: a table of trials.
        space: what was searched; names of it that a trial should have and has not are left out.
    """
    columns = {name: PREFIX + name for name in space if PREFIX + name in trials}
    found = {}
    for row in trials[["trial_id", *columns.values()]].to_dict("records"):
        values = values_of(row, {name: space[name] for name in columns})
        active = space.complete(values, {})
        found[str(row["trial_id"])] = {name: values[name] for name in active if name in values}
    return found


def values_of(row: Mapping[Any, Any], domains: Mapping[str, Domain]) -> dict[str, Any]:
    """Values of the hyperparameters `domains` in a row, whether they apply or not.

    An empty cell is None where that is a choice, else it is absent.
    """
    values = {}
    for name, domain in domains.items():
        cell = row.get(PREFIX + name)
        if not pd.isna(cell):
            values[name] = _restored(domain, cell.item() if hasattr(cell, "item") else cell)
        elif isinstance(domain, Choice) and None in domain.values:
            values[name] = None
    return values


def in_domain(domain: Domain, value: Any) -> Any:
    """`value` as `domain` would have it (3.0 is 3 among whole numbers), or as it is where it is outside."""
    if isinstance(domain, Choice):
        same = [v for v in domain.values if v == value and isinstance(v, bool) == isinstance(value, bool)]
        return same[0] if same else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance(domain, Int):
        return int(value) if float(value).is_integer() else value
    return float(value)


def differing_settings(one: Experiment, other: Experiment) -> list[str]:
    """What both say about their trials beside the search, and differently: `data.size`, `model.encoder`."""
    names = ["trainable"] if one.trainable != other.trainable else []
    data = sorted(one.data.keys() | other.data.keys())
    names += [f"data.{key}" for key in data if one.data.get(key) != other.data.get(key)]
    fixed = sorted(one.model.keys() & other.model.keys())
    return names + [f"model.{name}" for name in fixed if one.model[name] != other.model[name]]


def _restored(domain: Domain, cell: Any) -> Any:
    if isinstance(domain, Choice) and isinstance(cell, str) and cell not in domain.values:
        # A column of choices of several types is one of text.
        return next((value for value in domain.values if str(value) == cell), cell)
    return in_domain(domain, cell)
