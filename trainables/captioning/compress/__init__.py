"""Making a captioner smaller: a file per method, sequences of them, what ships and what it costs.

Every method takes a captioner and returns a compressed copy. Most can do more or less: their `strength` runs
from 0 (nothing) to 1 (all that they can), and `compress` finds the one at which the *sequence* removes the
share of the captioner's bytes that was asked for. A method changes layers (and then their shapes tell it,
see `rebuild.py`), values, or how they lie in the file (`Captioner.encodings`); it never trains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trainables.captioning.compress import distil, low_rank, number_formats, prune, prune_units, share
from trainables.captioning.compress.arithmetic import float_state
from trainables.captioning.compress.encoding import encoded_bytes
from trainables.captioning.model.captioner import Captioner
from trainables.trial import SettingsError

#: How far the removed share of the bytes may be from the one that was asked for.
TOLERANCE = 0.05
_HALVINGS = 12
#: A method that removes less of the bytes does nothing.
_NOTHING = 0.0005


@dataclass(frozen=True)
class Method:
    """One way to make a captioner smaller."""

    apply: Callable[[Captioner, float], Captioner]
    """A compressed copy at a strength from 0 to 1, of a captioner on the meta device, too: then only shapes
    and encodings count. The original is untouched; the copy's training mode is the original's."""
    tunable: bool = True
    """Whether it can do more or less; else the strength is ignored."""


#: In the order in which they are applied, whatever of them is chosen.
METHODS: dict[str, Method] = {
    "distil": Method(distil.student),
    "share": Method(share.share, tunable=False),
    "prune_units": Method(prune_units.prune_units),
    "low_rank": Method(low_rank.low_rank),
    "prune": Method(prune.prune),
    **{kind: Method(number_formats.stored_as(kind), tunable=False) for kind in number_formats.KINDS},
}


def compress(captioner: Captioner, methods: Sequence[str], ratio: float | None = None) -> Captioner:
    """A copy of `captioner`, to which `methods` were applied one after the other.

    Args:
        captioner: not compressed before.
        methods: names in `METHODS`.
        ratio: share of its bytes that the whole sequence removes; without meaning where no method is tunable.

    Raises:
        SettingsError: the sequence cannot remove `ratio` within 0.05; says what it can.
    """
    return applied(captioner, dict.fromkeys(methods, find_strength(captioner, methods, ratio)))


def applied(captioner: Captioner, strengths: Mapping[str, float]) -> Captioner:
    """A copy of `captioner`, to which each method was applied as strongly as said, in this order."""
    if not strengths:
        return copy.deepcopy(captioner)
    for method, strength in strengths.items():
        captioner = METHODS[method].apply(captioner, strength)
    return captioner


def find_strength(captioner: Captioner, methods: Sequence[str], ratio: float | None) -> float:
    """The strength of all tunable `methods` at which the sequence removes `ratio` of the bytes."""
    if not any(METHODS[method].tunable for method in methods):
        return 1.0
    assert ratio is not None
    shapes = copy.deepcopy(captioner).to("meta")
    whole = stored_bytes(captioner)

    def removed(strength: float) -> float:
        return 1 - stored_bytes(applied(shapes, dict.fromkeys(methods, strength))) / whole

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if removed(middle) < ratio else (low, middle)
    strength = min((low, high), key=lambda each: abs(removed(each) - ratio))
    if abs(removed(strength) - ratio) > TOLERANCE:
        least, most = min(removed(0.0), removed(1e-9)), removed(1.0)  # the first zeros cost a bitmap
        if most - least < _NOTHING:
            raise SettingsError(("model", "compression", "ratio"), f"{ratio:g}: {_no_choice(methods, most)}")
        raise SettingsError(
            ("model", "compression", "ratio"),
            f"{ratio:g}: {'+'.join(methods)} removes between {least:.3f} and {most:.3f} of this captioner's "
            f"bytes; the nearest it can do is {min(max(ratio, least), most):.3f}",
        )
    return strength


def _no_choice(methods: Sequence[str], removed: float) -> str:
    """What to say of a sequence that removes the same share of the bytes however strong it is."""
    tunable = " and ".join(method for method in methods if METHODS[method].tunable)
    all_the_same = f"{'+'.join(methods)} removes {removed:.3f} of its bytes, neither more nor less"
    said = "it removes nothing" if removed < _NOTHING else all_the_same
    return (
        f"there is nothing in this captioner for {tunable} to make smaller: {said}; leave {tunable} out, or "
        "take a larger captioner"
    )


def stored_bytes(captioner: Captioner) -> int:
    """Bytes of all weights and statistics as they lie in the file, the file's header aside.

    The header tells names, shapes and encodings: 4 to 50 kB, whatever the widths. So the file of a captioner
    of 0.3 MB loses 1 to 3 points less than its weights do, of one of 7 MB 0.1. `artefact.size_bytes` counts
    it, but must have the weights, which a search for the strength has not.
    """
    return sum(
        encoded_bytes(tuple(tensor.shape), captioner.encodings[name])
        if name in captioner.encodings
        else math.prod(tensor.shape) * tensor.element_size()
        for name, tensor in float_state(captioner).items()
    )
