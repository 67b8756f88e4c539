"""The transformer decoder: causal self-attention over the caption, cross-attention to the feature grid.

Pre-norm (Xiong et al. 2020), which trains without a long warm-up. A token sees only what stands before it;
padding stands at the end of a caption, so that it cannot reach a real token; the loss leaves it out.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.captioning.model.decoding import State
from trainables.captioning.model.words import WordDecoder


class TransformerDecoder(WordDecoder):
    """Transformer over the caption so far (Vaswani et al. 2017).

    Args:
        channels: C of the features.
        positions: P of the features; each cell has a learnt vector that says where it is.
        vocabulary_size: V.
        width: of the model; the feed-forward part is four times as wide.
        embedding_width: of the word vectors; a linear layer leads to `width` where they differ.
        layers: of self-attention, cross-attention and feed-forward.
        heads: of each attention; divides `width`.
        dropout: on word vectors, on what each part adds, and before the output.
        tie_embeddings: the output layer's matrix is that of the word vectors (see `words.py`).
        share_layers: one layer, applied `layers` times (ALBERT, Lan et al. 2020). Its view of the image is
            computed once; the caption's keys and values are still those of each application.
    """

    def __init__(
        self,
        *,
        channels: int,
        positions: int,
        vocabulary_size: int,
        width: int,
        embedding_width: int,
        layers: int,
        heads: int,
        dropout: float,
        tie_embeddings: bool = False,
        share_layers: bool = False,
    ):
        super().__init__(vocabulary_size, embedding_width, tied=tie_embeddings)
        if not tie_embeddings:
            nn.init.normal_(cast(nn.Embedding, self.embedding).weight, std=embedding_width**-0.5)
        self.widen = nn.Linear(embedding_width, width) if embedding_width != width else nn.Identity()
        self.project = nn.Linear(channels, width)
        self.normalise = nn.LayerNorm(width)
        self.place = nn.Parameter(torch.randn(positions, width) * 0.02)
        kept = 1 if share_layers else layers
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(kept))
        self.final = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.output = self._output_layer(width)
        self._width = width
        self._repeat = layers // kept
        self._scale = 1.0 if tie_embeddings else width**0.5  # a tied vector comes multiplied

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each of `tokens` [B, T] (int64), for features [B, P, C]."""
        x = self._embed(tokens, start=0)  # [B, T, D]
        for layer, memory in self._passes(self._memory(features)):
            x, _ = layer(x, memory, None)
        return self._logits(self.dropout(self.final(x)))

    def start(self, features: Tensor) -> State:
        """The state before the first token; the grid's keys and values are computed here, once per image."""
        memory = self._memory(features)
        return State(memory=memory, carry=tuple(known[:, :, :, :0] for _, known in self._passes(memory)))

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B, V] after `token` [B], and the state after it: the cached keys and values grow by one."""
        x = self._embed(token.unsqueeze(1), start=state.carry[0].shape[3])  # [B, 1, D]
        carry = []
        for (layer, memory), cache in zip(self._passes(state.memory), state.carry, strict=True):
            x, cache = layer(x, memory, cache)
            carry.append(cache)
        return self._logits(self.dropout(self.final(x[:, 0]))), State(memory=state.memory, carry=tuple(carry))

    def _passes(self, memory: tuple[Tensor, ...]) -> list[tuple[nn.Module, Tensor]]:
        """The layers in the order of their application, each with its keys and values of the grid."""
        return [*zip(self.layers, memory, strict=True)] * self._repeat

    def _memory(self, features: Tensor) -> tuple[Tensor, ...]:
        """The grid's keys and values for each layer (a shared one has one set): L times [B, 2, h, P, d]."""
        image = self.normalise(self.project(features)) + self.place  # [B, P, D]
        return tuple(cast(_Layer, layer).across.keys_and_values(image) for layer in self.layers)

    def _embed(self, tokens: Tensor, *, start: int) -> Tensor:
        """Word vectors plus sinusoidal positions from `start` on: [B, T, D]. Computed, so of any length."""
        vectors = self.widen(self.embedding(tokens))
        half = (self._width + 1) // 2
        place = torch.arange(start, start + tokens.shape[1], device=tokens.device, dtype=torch.float32)
        rate = torch.exp(torch.arange(half, device=tokens.device) * (-math.log(10_000.0) / half))
        angle = place.unsqueeze(1) * rate  # [T, D/2]
        wave = torch.cat([angle.sin(), angle.cos()], -1)[:, : self._width]
        return self.dropout(vectors * self._scale + wave.to(vectors.dtype))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.itself, self.across = _Attention(width, heads), _Attention(width, heads)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, image: Tensor, cache: Tensor | None) -> tuple[Tensor, Tensor]:
        """New x [B, T, D] and the caption's keys and values [B, 2, h, T, d], those of `cache` first."""
        normal = self.norms[0](x)
        words = self.itself.keys_and_values(normal)
        if cache is not None:
            words = torch.cat([cache.to(words.dtype), words], 3)
        x = x + self.dropout(self.itself(normal, words, causal=cache is None))
        x = x + self.dropout(self.across(self.norms[1](x), image, causal=False))
        x = x + self.dropout(self.contract(F.gelu(self.expand(self.norms[2](x)))))
        return x, words


class _Attention(nn.Module):
    """Multi-head attention whose keys and values can be computed ahead and kept.

    Heads may be removed (`compress/prune_units.py`); those that stay are as wide as before.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.head_width = width // heads  # constant: how many heads there are, the projections' rows say

    def keys_and_values(self, x: Tensor) -> Tensor:
        """[B, 2, h, N, d] of x [B, N, D]."""
        return torch.stack([self._split(self.key(x)), self._split(self.value(x))], 1)

    def forward(self, x: Tensor, known: Tensor, *, causal: bool) -> Tensor:
        """What x [B, T, D] finds among keys and values [B, 2, h, N, d]: [B, T, D]."""
        query = self._split(self.query(x))
        found = F.scaled_dot_product_attention(query, known[:, 0], known[:, 1], is_causal=causal)
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)  # [B, h, N, d]
