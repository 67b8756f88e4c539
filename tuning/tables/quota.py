"""Which checkpoints go when there is no room for all that somebody might like to look at. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint on storage."""

    name: str
    """Its folder, relative to the experiment's."""
    size_mb: float
    needed: bool
    """Somebody may go on from it, or it is among the best."""
    place: float
    """Of its trial among all, the best being 0; inf where it has none."""


def superfluous(checkpoints: Iterable[Checkpoint], max_mb: float) -> list[str]:
    """Those to delete so that the others take at most `max_mb`, the worst trials' first.

    Never one that is needed, so that what is left may be more than `max_mb`.

    Args:
        max_mb: 10^6 bytes; inf keeps all.
    """
    known = list(checkpoints)
    excess = sum(each.size_mb for each in known) - max_mb
    found = []
    for each in sorted((each for each in known if not each.needed), key=lambda each: -each.place):
        if excess <= 0:
            break
        found.append(each.name)
        excess -= each.size_mb
    return found
