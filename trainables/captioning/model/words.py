"""The two matrices with a row per word: word vectors at a decoder's entry, the output layer at its exit.

They may be one (`tie_embeddings`: Press & Wolf 2017; Inan et al. 2017). A tied matrix is a parameter of one
module that both sides call, not one tensor under two names: so it is counted, saved, averaged over workers
and compressed once, and nobody else has to know. What is computed between the two is the decoders' business,
how the matrix becomes int8 that of `compress/arithmetic.py`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TiedEmbedding(nn.Embedding):
    """Word vectors that are the output layer's rows, too; the output keeps a bias [V] of its own.

    The matrix [V, E] starts at a standard deviation of 1/sqrt(E), that of an output layer. What is looked up
    is multiplied by sqrt(E) (Vaswani et al. 2017, section 3.4), and so is as large as an untied vector.
    """

    def __init__(self, vocabulary_size: int, width: int):
        super().__init__(vocabulary_size, width)
        nn.init.normal_(self.weight, std=width**-0.5)
        self.factor = width**0.5  # stays when units are removed, and with it what the others say
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., E] for int64 [...]."""
        return super().forward(tokens) * self.factor

    def logits(self, x: Tensor) -> Tensor:
        """[..., V] of x [..., E]."""
        return F.linear(x, self.weight, self.bias)


class WordDecoder(nn.Module):
    """What all decoders have: `embedding`, and `output` between the last hidden units and the logits.

    Untied, `output` is the linear layer to the logits. Tied, it only leads to the width of the word vectors,
    by a projection where the widths differ (Press & Wolf 2017), and the logits are `embedding`'s.

    Args:
        vocabulary_size: V.
        embedding_width: E.
        tied: whether there is one matrix for both.
    """

    embedding: nn.Module
    output: nn.Module

    def __init__(self, vocabulary_size: int, embedding_width: int, *, tied: bool):
        super().__init__()
        kind = TiedEmbedding if tied else nn.Embedding
        self.embedding = kind(vocabulary_size, embedding_width)
        self._shape = vocabulary_size, embedding_width
        self._tied = tied

    def _output_layer(self, width: int) -> nn.Module:
        """`output` for hidden units [..., width]."""
        vocabulary_size, embedding_width = self._shape
        if not self._tied:
            return nn.Linear(width, vocabulary_size)
        return nn.Identity() if width == embedding_width else nn.Linear(width, embedding_width, bias=False)

    def _logits(self, hidden: Tensor) -> Tensor:
        """[..., V] of the last hidden units [..., H]."""
        out = self.output(hidden)
        return cast(TiedEmbedding, self.embedding).logits(out) if self._tied else out
