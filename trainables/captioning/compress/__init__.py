"""Making a trained captioner smaller: a file per method, what ships (`artefact`), its cost (`measure`)."""

from __future__ import annotations

import copy

from trainables.captioning.compress.int8 import quantise
from trainables.captioning.compress.low_rank import factorise, is_factorised
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Compression


def as_shipped(captioner: Captioner, compression: Compression) -> Captioner:
    """A copy of `captioner` in evaluation mode, compressed as `compression` says.

    A captioner that was factorised during training keeps its factors.

    Raises:
        SettingsError: `low_rank` at a ratio that this decoder cannot reach.
    """
    if compression.method == "int8":
        return quantise(captioner)
    if compression.method == "low_rank" and not is_factorised(captioner):
        return factorise(captioner, compression.ratio).eval()
    return copy.deepcopy(captioner).eval()
