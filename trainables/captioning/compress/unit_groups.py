"""Which units a captioner has that can be removed, and where in its weights they lie.

Declarations only: for each kind of encoder and decoder a list of axes (a tensor's name and a dimension), and
for each axis the groups of units that lie along it, one after the other. The three gates of a GRU are the
same group three times; an axis that is read in several roles at once (tied word vectors, shared layers) has
one group for all of them. What is removed, and how, is `prune_units.py`'s business.

Not declared: the transformer's model width, whose units its sinusoids know by their position; EfficientNet's
residual streams, which are narrow and to which a whole stage adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.encoders import Cnn, EfficientNetLite0
from trainables.captioning.model.recurrent import GruAttentionDecoder, GruDecoder
from trainables.captioning.model.transformer import TransformerDecoder
from trainables.captioning.model.words import TiedEmbedding

_FEWEST = 8


@dataclass(frozen=True)
class Units:
    """A group of units, each of which can be removed without the others."""

    count: int
    fewest: int
    """How many must be left."""
    width: int = 1
    """Entries that each has along an axis: a head has several."""
    runs: int = 1
    """Runs of equal length that must lose equally many: the groups of a group normalisation, which so keep
    their number and their members."""
    odd: bool = False
    """Whether an odd number is left of each run: with an even one there would be more groups."""

    def left(self, strength: float) -> int:
        """How many units remain at a strength from 0 (all) to 1 (the fewest)."""
        length = self.count // self.runs
        left = length - round(strength * (length - math.ceil(self.fewest / self.runs)))
        return self.runs * (left | 1 if self.odd else left)


@dataclass(frozen=True)
class Rectified:
    """Units that come out of a batch normalisation and ReLU6, so that their mean is known without data."""

    norm: str
    """Path of the batch normalisation."""
    reader: str
    """Path of the layer that reads them."""
    constant: str
    """Tensor to which what they add up to on average can be added, or from which it can be subtracted."""
    sign: int


class Groups:
    """All units of a captioner: `units`, `rectified` by a group's name, `axes` by a tensor's and a dimension.

    A frozen encoder has none: its features may have been computed ahead, and it would not recover.
    """

    def __init__(self, captioner: Captioner):
        self.units: dict[str, Units] = {}
        self.rectified: dict[str, Rectified] = {}
        self.axes: dict[tuple[str, int], tuple[str, ...]] = {}
        self._state: dict[str, Tensor] = captioner.state_dict()
        encoder, decoder = captioner.encoder, captioner.decoder
        if not encoder.frozen:
            reader = "decoder.initial" if isinstance(decoder, GruDecoder) else "decoder.project"
            self.columns(reader, "features")
            if isinstance(encoder, Cnn):
                _cnn(self, encoder)
            else:
                _efficientnet(self, cast(EfficientNetLite0, encoder), reader)
        _transformer(self, decoder) if isinstance(decoder, TransformerDecoder) else _recurrent(self, decoder)

    def add(self, group: str, count: int, *, runs: int = 1, odd: bool = False) -> str:
        """Declares a group of `count` units, of which an eighth is left at the least, and at the least 8."""
        fewest = min(count, max(_FEWEST, math.ceil(count / 8)))
        self.units[group] = Units(count, fewest, runs=runs, odd=odd)
        return group

    def rows(self, path: str, *groups: str) -> None:
        """The layer at `path` computes these units: its weight's first dimension, bias and statistics."""
        for name, tensor in self._state.items():
            if name.rpartition(".")[0] == path and tensor.ndim:
                self.axes[name, 0] = groups

    def columns(self, path: str, *groups: str) -> None:
        """The layer at `path` reads these units: its weight's second dimension."""
        self.axes[f"{path}.weight", 1] = groups


def _recurrent(to: Groups, decoder: GruDecoder | GruAttentionDecoder) -> None:
    gru = decoder.gru
    width = cast(nn.Linear, gru.hidden[0]).in_features
    hidden = [to.add(f"hidden {i}", width) for i in range(len(gru.hidden))]
    layers = decoder.initial.out_features // width
    tied, plain = isinstance(decoder.embedding, TiedEmbedding), isinstance(decoder, GruDecoder)
    # Where the word vectors stand in the hidden units' place, they are the same units.
    read_by_all_layers = layers > len(hidden) and isinstance(gru.widen, nn.Identity)
    read_as_output = tied and plain and isinstance(decoder.output, nn.Identity)
    if read_by_all_layers or read_as_output:
        words = hidden[-1]
    else:
        words = to.add("words", cast(nn.Embedding, decoder.embedding).embedding_dim)
    to.columns("decoder.embedding", words)
    to.rows("decoder.initial", *hidden * (layers // len(hidden)))
    given = words
    if isinstance(gru.widen, nn.Linear):
        to.columns("decoder.gru.widen", words)
        to.rows("decoder.gru.widen", given := hidden[0])
    for i, group in enumerate(hidden):
        to.columns(f"decoder.gru.input.{i}", given)
        to.rows(f"decoder.gru.input.{i}", group, group, group)
        to.columns(f"decoder.gru.hidden.{i}", group)
        to.rows(f"decoder.gru.hidden.{i}", group, group, group)
        given = group
    answer = given
    if isinstance(decoder, GruAttentionDecoder):
        answer = words if tied else to.add("answer", decoder.read.out_features)
        _attention(to, decoder, hidden=given, answer=answer)
    if isinstance(decoder.output, nn.Linear):
        to.columns("decoder.output", answer)
        if tied:
            to.rows("decoder.output", words)


def _attention(to: Groups, decoder: GruAttentionDecoder, *, hidden: str, answer: str) -> None:
    values = to.add("values", decoder.project.out_features)
    energy = to.add("energy", decoder.key.out_features)
    to.rows("decoder.project", values)
    to.rows("decoder.normalise", values)
    to.axes["decoder.place", 1] = (values,)
    to.columns("decoder.initial", values)
    to.columns("decoder.key", values)
    to.rows("decoder.key", energy)
    to.columns("decoder.query", hidden)
    to.rows("decoder.query", energy)
    to.columns("decoder.score", energy)
    to.columns("decoder.read", hidden, values)
    to.rows("decoder.read", answer)


def _transformer(to: Groups, decoder: TransformerDecoder) -> None:
    if isinstance(decoder.widen, nn.Linear):
        words = to.add("words", decoder.widen.in_features)
        to.columns("decoder.embedding", words)
        to.columns("decoder.widen", words)
        if isinstance(decoder.embedding, TiedEmbedding):
            to.rows("decoder.output", words)
    for i, layer in enumerate(decoder.layers):
        path = f"decoder.layers.{i}"
        inner = to.add(f"inner {i}", layer.expand.out_features)  # type: ignore[union-attr, arg-type]
        to.rows(f"{path}.expand", inner)
        to.columns(f"{path}.contract", inner)
        for part in ("itself", "across"):
            attention = layer.get_submodule(part)
            heads = f"heads {i} {part}"
            width = cast(int, attention.head_width)
            count = cast(nn.Linear, attention.query).out_features // width
            to.units[heads] = Units(count, fewest=1, width=width)
            for name in ("query", "key", "value"):
                to.rows(f"{path}.{part}.{name}", heads)
            to.columns(f"{path}.{part}.out", heads)


def _cnn(to: Groups, encoder: Cnn) -> None:
    def normalised(path: str, group: str) -> None:
        to.rows(f"{path}.0", group)
        to.rows(f"{path}.1", group)

    def declare(group: str, path: str) -> str:
        norm = cast(nn.GroupNorm, encoder.get_submodule(f"{path}.1"))
        return to.add(group, norm.num_channels, runs=norm.num_groups, odd=norm.num_groups < 8)

    given = declare("stem", "stem")
    normalised("encoder.stem", given)
    for i, block in enumerate(encoder.stages):
        path = f"encoder.stages.{i}"
        inner = declare(f"inner stage {i}", f"stages.{i}.first")
        to.columns(f"{path}.first.0", given)
        normalised(f"{path}.first", inner)
        to.columns(f"{path}.second.0", inner)
        if not isinstance(block.shortcut, nn.Identity):
            to.columns(f"{path}.shortcut.0", given)
            last = i == len(encoder.stages) - 1
            given = declare("features" if last else f"stage {i}", f"stages.{i}.second")
            normalised(f"{path}.shortcut", given)
        normalised(f"{path}.second", given)


def _efficientnet(to: Groups, encoder: EfficientNetLite0, reader: str) -> None:
    for i, block in enumerate(encoder.network._blocks):
        path = f"encoder.network._blocks.{i}"
        if not hasattr(block, "_expand_conv"):
            continue  # its inner channels are those of the stream
        inner = to.add(f"block {i}", block._expand_conv.out_channels)
        for name in ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1"):
            to.rows(f"{path}.{name}", inner)
        to.columns(f"{path}._project_conv", inner)
        to.rectified[inner] = Rectified(
            f"{path}._bn1", f"{path}._project_conv", constant=f"{path}._bn2.running_mean", sign=-1
        )
    to.add("features", encoder.network._conv_head.out_channels)
    to.rows("encoder.network._conv_head", "features")
    to.rows("encoder.network._bn1", "features")
    to.rectified["features"] = Rectified("encoder.network._bn1", reader, constant=f"{reader}.bias", sign=1)
