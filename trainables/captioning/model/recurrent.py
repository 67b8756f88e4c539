"""The recurrent decoders: a plain GRU conditioned on the image, and one with attention over the grid.

Both are teacher-forced without a loop over time in Python: one fused GRU call reads the whole caption.
Generation goes token by token through `step`. Padding stands at the end of a caption, and a recurrent
network never looks ahead, so that padding cannot reach a real token; the loss leaves it out.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from trainables.captioning.model.decoding import State
from trainables.captioning.model.words import WordDecoder


class Gru(nn.Module):
    """Gated recurrent units (Cho et al. 2014; PyTorch's variant) whose weights are plain `nn.Linear`s.

    So whatever replaces a linear layer by a compressed one compresses the recurrence too. Where the
    replacement has no `weight` (int8, inference only), `forward` goes step by step and computes exactly what
    generation does. Gates are stacked as reset, update, new.

    Args:
        inputs: width of the sequence.
        width: hidden units of each layer.
        layers: stacked one on the other.
        dropout: between layers.
        shared: one layer's weights serve all `layers` (as in ALBERT, Lan et al. 2020). Every layer then reads
            `width` units: where `inputs` differs, a linear layer leads to them.
    """

    def __init__(self, inputs: int, width: int, layers: int, dropout: float, *, shared: bool = False):
        super().__init__()
        self.dropout = dropout
        self.widen: nn.Module = nn.Identity()
        if shared and layers > 1 and inputs != width:
            self.widen, inputs = nn.Linear(inputs, width, bias=False), width
        kept = 1 if shared else layers
        self.input = nn.ModuleList(nn.Linear(inputs if i == 0 else width, 3 * width) for i in range(kept))
        self.hidden = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(kept))
        self._repeat = layers // kept

    def forward(self, sequence: Tensor, state: Tensor) -> Tensor:
        """Hidden states [B, T, H] of the last layer over `sequence` [B, T, I], from `state` [B, L, H]."""
        if not all(hasattr(linear, "weight") for linear in [*self.input, *self.hidden]):
            return self._by_steps(sequence, state)
        sequence = self.widen(sequence)
        if _in_bf16_on_cuda(sequence):
            sequence = sequence.float()
        weights: list[Tensor] = []
        for input, hidden in zip(self.input, self.hidden, strict=True):
            weights += [input.weight, hidden.weight, input.bias, hidden.bias]  # type: ignore[list-item]
        weights = [weight.to(sequence.dtype) for weight in weights] * self._repeat
        start = state.to(sequence.dtype).transpose(0, 1).contiguous()  # [L, B, H]
        with _not_in_half(sequence):
            out, _ = torch.gru(
                sequence, start, weights, True, state.shape[1], self.dropout, self.training, False, True
            )
        return out

    def _by_steps(self, sequence: Tensor, state: Tensor) -> Tensor:
        outputs = []
        for x in sequence.unbind(1):
            out, state = self.step(x, state)
            outputs.append(out)
        return torch.stack(outputs, 1)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: the last layer's hidden state [B, H] and the new state [B, L, H] after x [B, I]."""
        new = []
        x = self.widen(x)
        layers = [*zip(self.input, self.hidden, strict=True)] * self._repeat
        for previous, (input, hidden) in zip(state.unbind(1), layers, strict=True):
            given, recalled = input(x), hidden(previous)  # [B, 3H]
            (r, z, n), (hr, hz, hn) = given.chunk(3, -1), recalled.chunk(3, -1)
            update = torch.sigmoid(z + hz)
            candidate = torch.tanh(n + torch.sigmoid(r + hr) * hn)
            x = candidate + update * (previous - candidate)
            new.append(x)
        return x, torch.stack(new, 1)


class GruDecoder(WordDecoder):
    """Embedding, GRU, linear; the image enters through the initial state only (the reference model).

    Args:
        channels: C of the features.
        vocabulary_size: V.
        width: hidden units.
        embedding_width: of the word vectors.
        layers: of the GRU.
        dropout: on word vectors and before the output.
        tie_embeddings: the output layer's matrix is that of the word vectors (see `words.py`).
        share_layers: the GRU's layers have one set of weights.
    """

    def __init__(
        self,
        *,
        channels: int,
        vocabulary_size: int,
        width: int,
        embedding_width: int,
        layers: int,
        dropout: float,
        tie_embeddings: bool = False,
        share_layers: bool = False,
    ):
        super().__init__(vocabulary_size, embedding_width, tied=tie_embeddings)
        self.initial = nn.Linear(channels, layers * width)
        self.gru = Gru(embedding_width, width, layers, dropout, shared=share_layers)
        self.dropout = nn.Dropout(dropout)
        self.output = self._output_layer(width)
        self._layers = layers

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each of `tokens` [B, T] (int64), for features [B, P, C]."""
        (state,) = self.start(features).carry
        hidden = self.gru(self.dropout(self.embedding(tokens)), state)  # [B, T, H]
        return self._logits(self.dropout(hidden))

    def start(self, features: Tensor) -> State:
        """The state before the first token."""
        state = torch.tanh(self.initial(features.mean(1)))
        return State(memory=(), carry=(state.unflatten(-1, (self._layers, -1)),))  # [B, L, H]

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B, V] after `token` [B], and the state after it."""
        x, hidden = self.gru.step(self.dropout(self.embedding(token)), state.carry[0])
        return self._logits(self.dropout(x)), State(memory=(), carry=(hidden,))


class GruAttentionDecoder(WordDecoder):
    """A GRU whose hidden state attends to the feature grid, additively (Bahdanau et al. 2015).

    The *current* hidden state asks, after the recurrence, and the answer goes to the word only, not back
    into the GRU ("spatial attention" of Lu et al. 2017, who found it better than asking with the previous
    state and feeding the answer back, Xu et al. 2015). It also leaves the recurrence free of the image, so
    that teacher forcing needs no loop over time. Learnt vectors per grid cell tell the decoder *where*
    something is.

    Args:
        positions: P of the features.
        attention_width: units of the additive score. Its tanh over [B, T, P, units] is what training spends
            its memory on.

    The other arguments are those of `GruDecoder`.
    """

    def __init__(
        self,
        *,
        channels: int,
        positions: int,
        vocabulary_size: int,
        width: int,
        embedding_width: int,
        attention_width: int,
        layers: int,
        dropout: float,
        tie_embeddings: bool = False,
        share_layers: bool = False,
    ):
        super().__init__(vocabulary_size, embedding_width, tied=tie_embeddings)
        self.project = nn.Linear(channels, width)
        self.normalise = nn.LayerNorm(width)
        self.place = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.initial = nn.Linear(width, layers * width)
        self.gru = Gru(embedding_width, width, layers, dropout, shared=share_layers)
        self.key = nn.Linear(width, attention_width)
        self.query = nn.Linear(width, attention_width, bias=False)
        self.score = nn.Linear(attention_width, 1, bias=False)
        self.read = nn.Linear(2 * width, embedding_width)
        self.dropout = nn.Dropout(dropout)
        self.output = self._output_layer(embedding_width)
        self._layers = layers

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each of `tokens` [B, T] (int64), for features [B, P, C]."""
        return self.explain(features, tokens)[0]

    def explain(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with the attention [B, T, P] that each predicted token paid to the grid."""
        state = self.start(features)
        hidden = self.gru(self.dropout(self.embedding(tokens)), state.carry[0])  # [B, T, H]
        return self._read(hidden, *state.memory)

    def start(self, features: Tensor) -> State:
        """The state before the first token; keys and values are computed here, once per image."""
        values = self.normalise(self.project(features)) + self.place  # [B, P, H]
        state = torch.tanh(self.initial(values.mean(1))).unflatten(-1, (self._layers, -1))  # [B, L, H]
        return State(memory=(self.key(values), values), carry=(state,))

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B, V] after `token` [B], and the state after it with the attention [B, P] paid."""
        x, hidden = self.gru.step(self.dropout(self.embedding(token)), state.carry[0])
        logits, attention = self._read(x.unsqueeze(1), *state.memory)
        return logits[:, 0], State(memory=state.memory, carry=(hidden,), attention=attention[:, 0])

    def _read(self, hidden: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] and attention [B, T, P] of hidden states [B, T, H]."""
        energy = (self.query(hidden).unsqueeze(2) + keys.unsqueeze(1)).tanh_()  # [B, T, P, A], the largest
        attention = self.score(energy).squeeze(-1).softmax(-1)
        context = attention.to(values.dtype) @ values  # [B, T, H]
        read = torch.tanh(self.read(torch.cat([hidden, context.to(hidden.dtype)], -1)))
        return self._logits(self.dropout(read)), attention


def _in_bf16_on_cuda(tensor: Tensor) -> bool:
    return (
        tensor.is_cuda
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
    )


def _not_in_half(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast has cuDNN's fused layers compute in float16, in bf16 training too, where no loss is scaled."""
    if _in_bf16_on_cuda(tensor):
        return torch.autocast("cuda", enabled=False)
    return contextlib.nullcontext()
