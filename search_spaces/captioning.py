"""The shipped spaces for the trainable `captioning`, as functions.

Names are those of `Settings` in `trainables/captioning/settings.py`; a test holds the two together, so
that this package needs no torch.
"""

from __future__ import annotations

from search_spaces.domains import Choice, Float
from search_spaces.space import Space


def captioning() -> Space:
    """What matters most for a captioner that is to be good and small."""
    return Space(
        {
            "learning_rate": Float(1e-4, 1e-2, log=True),
            "batch_size": Choice([16, 32, 64, 128]),
            "dropout": Float(0.0, 0.6),
            "weight_decay": Float(1e-6, 1e-1, log=True),
            "decoder_width": Choice([128, 256, 384, 512]),
            # No ratio is searched: which can be reached depends on all the rest; see `compression.search`.
            "compression.method": Choice(["none", "fp16", "int8", "int4"]),
        }
    )
