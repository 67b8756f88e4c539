"""The captioner: an encoder and a decoder under one roof, and the objective they are trained on.

The loop that trains it is `trainables/captioning/train.py`; search for the best caption is `decoding.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.captioning.data.tokenizer import PAD
from trainables.captioning.model.decoders import build_decoder
from trainables.captioning.model.decoding import generate
from trainables.captioning.model.encoders import build_encoder
from trainables.captioning.settings import Settings

if TYPE_CHECKING:
    from trainables.captioning.compress.encoding import Encoding


class Captioner(nn.Module):
    """Images, or features that were computed ahead, to captions.

    Args:
        settings: of the trial; kept as `settings`.
        vocabulary_size: V, the special tokens included; kept.
        image_size: side of the images, in pixels; kept.
        load_weights: False leaves a pretrained encoder at its random initialisation, for callers that load
            a whole captioner's weights next.

    Raises:
        SettingsError: the settings do not fit together, or a package is missing.
    """

    def __init__(
        self, settings: Settings, vocabulary_size: int, image_size: int, *, load_weights: bool = True
    ):
        super().__init__()
        self.settings = settings
        self.vocabulary_size = vocabulary_size
        self.image_size = image_size
        #: How weights lie in the file that ships, by name; float32 where nothing is said.
        self.encodings: dict[str, Encoding] = {}
        self.encoder = build_encoder(settings, image_size, load_weights=load_weights)
        self.decoder = build_decoder(
            settings,
            channels=self.encoder.channels,
            positions=self.encoder.positions,
            vocabulary_size=vocabulary_size,
        )

    def encode(self, inputs: Tensor) -> Tensor:
        """Features [B, P, C] of images [B, S, S, 3] (0..255, any dtype).

        What has three dimensions is taken for features (of a frozen encoder, kept in fp16) and passes.
        """
        if inputs.dim() == 4:
            return self.encoder(inputs)
        return inputs.float() if inputs.element_size() == 2 else inputs

    def forward(self, inputs: Tensor, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each of `tokens` [B, T] (int64: BOS, words, padding)."""
        return self.decoder(self.encode(inputs), tokens)

    def generate(
        self, inputs: Tensor, *, max_tokens: int, beam_width: int = 1, length_penalty: float = 0.7
    ) -> list[list[int]]:
        """Token ids of a caption for each of `inputs`; see `decoding.generate`. Wants evaluation mode."""
        return generate(
            self.decoder,
            self.encode(inputs),
            max_tokens=max_tokens,
            beam_width=beam_width,
            length_penalty=length_penalty,
        )


def token_loss(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """What a batch adds to the objective: sums, so that workers and passes add up exactly.

    Args:
        logits: [B, T, V], any floating dtype; the loss is computed in float32.
        targets: int64 [B, T], the token that follows each input token; PAD where there is none.
        label_smoothing: share of the target's probability that is spread over the vocabulary.

    Returns:
        Three scalars over the tokens that are not padding: the sum of their negative log-likelihoods in
        nats (with a graph), how many the logits rank first (int64), how many there are (int64).
    """
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=PAD,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    real = targets != PAD
    correct = (logits.detach().argmax(-1) == targets) & real
    return loss, correct.sum(), real.sum()
