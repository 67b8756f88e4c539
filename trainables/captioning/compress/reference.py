"""A fixed network that captioners are timed against: what the machine does to one it does to the other.

It works as a captioner does (convolutions over an image, then recurrent steps that each choose a word) and
shares no code with one. Never change its arithmetic: ratios measured before would no longer compare.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_IMAGE, _CHANNELS, _WIDTH, _WORDS, _TOKENS = 64, (3, 16, 32, 64), 256, 2000, 24


class Reference:
    """An image and the weights that turn it into 24 tokens, in 25 million multiply-accumulates.

    The weights come from a generator of its own with a fixed seed and live on the CPU, in float32.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def weights(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5

        self.image = torch.rand(1, 3, _IMAGE, _IMAGE, generator=generator)
        self.kernels = [weights(out, into, 3, 3) for into, out in zip(_CHANNELS, _CHANNELS[1:], strict=False)]
        self.initial = weights(_WIDTH, _CHANNELS[-1])
        self.words = weights(_WORDS, _WIDTH)
        self.input, self.hidden = weights(3 * _WIDTH, _WIDTH), weights(3 * _WIDTH, _WIDTH)
        self.output = weights(_WORDS, _WIDTH)

    @torch.no_grad()
    def __call__(self) -> list[int]:
        """The 24 tokens."""
        x = self.image
        for kernel in self.kernels:
            x = F.relu(F.conv2d(x, kernel, stride=2, padding=1))  # [1, 64, 8, 8] in the end
        state = torch.tanh(F.linear(x.mean((2, 3)), self.initial))  # [1, H]
        token = torch.zeros(1, dtype=torch.int64)
        tokens = []
        for _ in range(_TOKENS):
            given, recalled = F.linear(self.words[token], self.input), F.linear(state, self.hidden)  # [1, 3H]
            (r, z, n), (hr, hz, hn) = given.chunk(3, -1), recalled.chunk(3, -1)
            candidate = torch.tanh(n + torch.sigmoid(r + hr) * hn)
            state = candidate + torch.sigmoid(z + hz) * (state - candidate)
            token = F.linear(state, self.output).argmax(-1)
            tokens.append(token)
        return torch.cat(tokens).tolist()
