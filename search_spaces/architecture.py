"""The shipped space `architecture`: encoder, decoder and weight sharing, together with how they are trained.

Names are those of `Settings` in `trainables/captioning/settings.py`; a test holds the two together, so that
this package needs no torch. What belongs to one choice only is searched under that choice, and the domains
are such that every configuration is a captioner that can be built: no draw is wasted on a refusal.
"""

from __future__ import annotations

from search_spaces.domains import Choice, Float, Int
from search_spaces.space import Space

#: Widths are its multiples, so that every number of heads divides every width and heads have 8 units or more.
_WIDTH_STEP = 64
_MOST_LAYERS = 4


def architecture() -> Space:
    """Which captioner to train, and how, where neither is known yet.

    The encoder `efficientnet_lite0` needs the extra `pretrained`. Where that is not installed, an experiment
    fixes `encoder: cnn`; what belongs to the other one then leaves the space with it (`Space.fix`).

    The word vectors have a width of their own, so that tying them to the output layer does not tie them to
    the decoder's width; small ones are what makes a large vocabulary cheap (Lan et al. 2020).
    """
    return Space(
        {
            "encoder": Choice(["cnn", "efficientnet_lite0"]),
            "encoder_width": Int(8, 64, step=8, when={"encoder": ["cnn"]}),
            # A frozen cnn would keep its random weights.
            "encoder_trainable": Choice([False, True], when={"encoder": ["efficientnet_lite0"]}),
            # The rate at which a pretrained network forgets; one from scratch learns at the decoder's.
            "encoder_learning_rate_factor": Float(
                0.01, 1.0, log=True, when={"encoder": ["efficientnet_lite0"], "encoder_trainable": [True]}
            ),
            "decoder": Choice(["gru", "gru_attention", "transformer"]),
            "decoder_width": Int(_WIDTH_STEP, 512, step=_WIDTH_STEP),
            "decoder_layers": Int(1, _MOST_LAYERS),
            "decoder_heads": Choice([1, 2, 4, 8], when={"decoder": ["transformer"]}),
            "share_layers": Choice([False, True], when={"decoder_layers": range(2, _MOST_LAYERS + 1)}),
            "embedding_width": Int(64, 512, step=64),
            "tie_embeddings": Choice([False, True]),
            "learning_rate": Float(1e-4, 1e-2, log=True),
            "batch_size": Choice([16, 32, 64, 128]),
            "warmup_fraction": Float(0.0, 0.2),
            "dropout": Float(0.0, 0.6),
            "weight_decay": Float(1e-6, 1e-1, log=True),
            "label_smoothing": Float(0.0, 0.2),
            # No ratio is searched: which can be reached depends on all the rest; see `compression.search`.
            "compression.method": Choice(["none", "fp16", "int8", "int4"]),
        }
    )
