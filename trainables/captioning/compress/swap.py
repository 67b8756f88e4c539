"""Replacing the layers of a model by compressed ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def swap_layers(root: nn.Module, make: Callable[[str, nn.Module], nn.Module | None], path: str = "") -> None:
    """Puts `make(path, layer)` in the place of every layer below `root` for which it is not None.

    Changes `root`. A replaced layer is not looked into.
    """
    for name, layer in list(root.named_children()):
        where = f"{path}.{name}" if path else name
        new = make(where, layer)
        if new is None:
            swap_layers(layer, make, where)
        else:
            setattr(root, name, new)
