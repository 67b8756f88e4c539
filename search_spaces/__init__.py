"""What may be searched: domains with conditions, and the spaces that ship. No Ray, no torch, no pandas."""

from __future__ import annotations

from collections.abc import Callable

from search_spaces.architecture import architecture
from search_spaces.captioning import captioning
from search_spaces.domains import Choice, Float, Int
from search_spaces.space import Space, SpaceError

#: Spaces that an experiment file may name.
SHIPPED: dict[str, Callable[[], Space]] = {"architecture": architecture, "captioning": captioning}

__all__ = ["SHIPPED", "Choice", "Float", "Int", "Space", "SpaceError"]
