"""What a trainable returns, made fit to travel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainables.trial import Metrics


def figures(method: str, returned: Any) -> Metrics:
    """What a trainable's `method` returned, as plain floats: it travels to processes without its libraries.

    Raises:
        TypeError: these are no figures by name.
    """
    if not isinstance(returned, Mapping):
        raise TypeError(f"{method} must return figures by name, {{'val_loss': 0.3}}, but got {returned!r}")
    plain = {}
    for name, value in returned.items():
        try:
            plain[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
            raise TypeError(f"{method} must return numbers, but {name!r} is {value!r}") from None
    return plain
