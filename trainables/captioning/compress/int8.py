"""int8 weights for the decoder: one byte a weight in the artefact, int8 arithmetic where that is faster.

One scale per output channel. Large matrices are multiplied in int8 (`torch._int_mm`, exact in int32), with
activations rounded on the fly, one scale per row, so that what an image gets does not depend on the others
of its batch. For small ones rounding costs more than it saves: they are stored as int8 and turned into a
float matrix at their first use, as word vectors are row by row. Weights and scales are plain buffers:
nothing is pickled or packed.

Measured 2026-11-23 on a Xeon with AVX-512 VNNI, torch 2.13, one thread; time of one row through a layer
relative to fp32, where under 1 is faster, for 256x768 / 512x1536 / 256x3000 / 512x8000:

    torch._int_mm, a scale per row (here)        1.45 / 0.60 / 0.52 / 0.14
    dequantised once (here, for small layers)    1    / 1    / 1    / 1
    quantized.linear_dynamic (quantize_dynamic)  0.80 / 0.37 / 0.35 / 0.05
    torchao 0.18, weight-only                    2.9  / 3.2  / 1.9  / 0.9
    torchao 0.18, dynamic activations            14   / 8    / 4.2  / 1.3
    dequantised in every call                    3.1  / 2.8  / 2.4  / 2.4

`linear_dynamic` lost because it has one activation scale for the whole *batch*, so that figures would depend
on how validation is split between workers, and because its quantised tensors are deprecated.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.captioning.compress.swap import swap_layers
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.words import TiedEmbedding

#: Smaller matrices stay as they are: their scales and overhead cost what the bytes would save.
_FEWEST_WEIGHTS = 1024
#: From here on int8 arithmetic is faster than float for a single row.
_FEWEST_FOR_ARITHMETIC = 2**19


def quantise(captioner: Captioner) -> Captioner:
    """A copy of `captioner` for inference whose decoder's matrices are int8; the original is untouched."""
    small = copy.deepcopy(captioner).eval().requires_grad_(False)

    def make(_path: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) not in (nn.Linear, nn.Embedding, TiedEmbedding):
            return None
        if layer.weight.numel() < _FEWEST_WEIGHTS:  # type: ignore[operator]
            return None
        if isinstance(layer, TiedEmbedding):
            return Int8TiedEmbedding(layer)
        return Int8Embedding(layer) if isinstance(layer, nn.Embedding) else _product(cast(nn.Linear, layer))

    swap_layers(small.decoder, make)
    return small


class _Int8(nn.Module):
    """Symmetric int8 of a matrix: `quantised` [N, K] times `scale` [N] (float32) is the matrix, rounded."""

    quantised: Tensor
    scale: Tensor

    def __init__(self, matrix: Tensor):
        super().__init__()
        matrix = matrix.detach().float()
        scale = matrix.abs().amax(1).clamp(min=1e-12) / 127
        self.register_buffer("quantised", torch.round(matrix / scale.unsqueeze(1)).to(torch.int8))
        self.register_buffer("scale", scale)

    def dequantised(self) -> Tensor:
        """Float32 [N, K]."""
        return self.quantised.float() * self.scale.unsqueeze(1)

    def rows(self, index: Tensor) -> Tensor:
        """Float32 [..., K], the rows that int64 [...] names."""
        return self.quantised[index].float() * self.scale[index].unsqueeze(-1)


class Int8Linear(_Int8):
    """`nn.Linear` in int8 arithmetic, for inference.

    Has no `weight`: callers that want a float matrix must not take one for what is computed here.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear | TiedEmbedding):
        super().__init__(linear.weight)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to float32 [..., N]."""
        x = x.float()
        if x.device.type != "cpu":  # CUDA's _int_mm wants more than 16 rows: no gain in generation
            return F.linear(x, self.dequantised(), self.bias)
        rows = x.flatten(0, -2)  # [M, K]
        peak = torch.linalg.vector_norm(rows, torch.inf, -1, keepdim=True).clamp_(min=1e-12)  # [M, 1]
        rounded = (rows * (127 / peak)).round_().to(torch.int8)
        y = torch._int_mm(rounded, self.quantised.t()) * self.scale  # [M, N]
        y = y * (peak / 127) if self.bias is None else torch.addcmul(self.bias, y, peak / 127)
        return y.unflatten(0, x.shape[:-1])


class StoredInt8Linear(_Int8):
    """`nn.Linear` that is stored as int8 and computes in float, for inference.

    The float matrix is made at the first use and kept until the buffers are replaced or changed.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear | TiedEmbedding):
        super().__init__(linear.weight)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self._made: tuple[Tensor, int, Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """Float32 [N, K]."""
        source = self.quantised
        if self._made is None or self._made[0] is not source or self._made[1] != source._version:
            self._made = source, source._version, self.dequantised()
        return self._made[2]

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        return F.linear(x, self.weight, self.bias)


class Int8Embedding(_Int8):
    """`nn.Embedding` whose rows are int8, for inference."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__(embedding.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Float32 [..., K] for int64 [...]."""
        return self.rows(tokens)


class Int8TiedEmbedding(nn.Module):
    """`TiedEmbedding` in int8, for inference: one matrix, read by rows and multiplied.

    A scale per word is at once that of a word vector and that of an output channel.
    """

    def __init__(self, embedding: TiedEmbedding):
        super().__init__()
        self.matrix = _product(embedding)
        self._factor = embedding.embedding_dim**0.5

    def forward(self, tokens: Tensor) -> Tensor:
        """Float32 [..., K] for int64 [...]."""
        return self.matrix.rows(tokens) * self._factor

    def logits(self, x: Tensor) -> Tensor:
        """[..., N] of x [..., K]."""
        return self.matrix(x)


def _product(layer: nn.Linear | TiedEmbedding) -> Int8Linear | StoredInt8Linear:
    """`layer`'s matrix and bias as a linear layer, in the arithmetic that is the faster one at its size."""
    return (Int8Linear if layer.weight.numel() >= _FEWEST_FOR_ARITHMETIC else StoredInt8Linear)(layer)
