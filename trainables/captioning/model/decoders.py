"""Which decoder the settings name, built to fit an encoder and a vocabulary."""

from __future__ import annotations

from trainables.captioning.model.recurrent import GruAttentionDecoder, GruDecoder
from trainables.captioning.model.transformer import TransformerDecoder
from trainables.captioning.settings import Settings
from trainables.trial import SettingsError

#: Wider decoders ask the grid with this many units: their tanh is a third of a training step at 256.
_MOST_ATTENTION_UNITS = 128


def build_decoder(
    settings: Settings, *, channels: int, positions: int, vocabulary_size: int
) -> GruDecoder | GruAttentionDecoder | TransformerDecoder:
    """The decoder that `settings.decoder` names, for features [B, positions, channels].

    Every decoder has `forward(features, tokens [B, T]) -> logits [B, T, V]` for teacher forcing and the
    `start` and `step` of `decoding.Decoder` for generation.

    Raises:
        SettingsError: `decoder_heads` does not divide `decoder_width` (transformer).
    """
    width = settings.decoder_width
    embedding_width = settings.embedding_width or width
    sharing = {"tie_embeddings": settings.tie_embeddings, "share_layers": settings.share_layers}
    if settings.decoder == "gru":
        return GruDecoder(
            channels=channels,
            vocabulary_size=vocabulary_size,
            width=width,
            embedding_width=embedding_width,
            layers=settings.decoder_layers,
            dropout=settings.dropout,
            **sharing,
        )
    if settings.decoder == "gru_attention":
        return GruAttentionDecoder(
            channels=channels,
            positions=positions,
            vocabulary_size=vocabulary_size,
            width=width,
            embedding_width=embedding_width,
            attention_width=min(width, _MOST_ATTENTION_UNITS),
            layers=settings.decoder_layers,
            dropout=settings.dropout,
            **sharing,
        )
    check_heads(width, settings.decoder_heads)
    return TransformerDecoder(
        channels=channels,
        positions=positions,
        vocabulary_size=vocabulary_size,
        width=width,
        embedding_width=embedding_width,
        layers=settings.decoder_layers,
        heads=settings.decoder_heads,
        dropout=settings.dropout,
        **sharing,
    )


def check_heads(width: int, heads: int) -> None:
    """Refuses a transformer whose heads do not share its width evenly.

    Raises:
        SettingsError: with the nearest number of heads that does.
    """
    if width % heads:
        nearest = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
        raise SettingsError(
            ("model", "decoder_heads"),
            f"{heads} heads must divide decoder_width {width}; the nearest number that does is {nearest}",
        )
