"""int8 arithmetic for large matrices that are stored in int8, where that is faster; exact otherwise.

What ships are values on a grid (`encoding.py`), and any captioner computes with them in float32. Large
matrices with a scale per row are multiplied in int8 instead (`torch._int_mm`, exact in int32), with
activations rounded on the fly, one scale per row, so that what an image gets does not depend on the others
of its batch. For small ones rounding costs more than it saves.

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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.captioning.compress.swap import swap_layers
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.words import TiedEmbedding

#: From here on int8 arithmetic is faster than float for a single row.
FEWEST_WEIGHTS = 2**19


def fast(captioner: Captioner) -> Captioner:
    """A copy for inference of a captioner with weights on their grids, which says (almost) the same."""
    quick = copy.deepcopy(captioner).eval().requires_grad_(False)
    in_int8 = {name for name, encoding in captioner.encodings.items() if encoding.kind == "int8"}

    def make(path: str, layer: nn.Module) -> nn.Module | None:
        if f"{path}.weight" not in in_int8 or type(layer) not in (nn.Linear, TiedEmbedding):
            return None
        if layer.weight.numel() < FEWEST_WEIGHTS:  # type: ignore[operator]
            return None
        return Int8TiedEmbedding(layer) if isinstance(layer, TiedEmbedding) else Int8Linear(layer)  # type: ignore[arg-type]

    swap_layers(quick, make)
    return quick


def float_state(captioner: Captioner) -> dict[str, Tensor]:
    """The state dict that `captioner` had before `fast`, exactly, if its weights were on their grids."""
    state = dict(captioner.state_dict())
    for path, layer in captioner.named_modules():
        if isinstance(layer, Int8Linear):
            steps, scale = state.pop(f"{path}.steps"), state.pop(f"{path}.scale")
            state[f"{path}.weight"] = steps.float() * scale.unsqueeze(1)
    return state


class Int8Linear(nn.Module):
    """`nn.Linear` in int8 arithmetic, for inference.

    `steps` [N, K] (int8) times `scale` [N] (float32) is the matrix, rounded. Has no `weight`: callers that
    want a float matrix must not take one for what is computed here.
    """

    steps: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | TiedEmbedding):
        super().__init__()
        matrix = layer.weight.detach().float()
        scale = matrix.abs().amax(1).clamp(min=1e-12) / 127
        self.register_buffer("steps", torch.round(matrix / scale.unsqueeze(1)).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to float32 [..., N]."""
        x = x.float()
        if x.device.type not in (
            "cpu",
            "meta",
        ):  # CUDA's _int_mm wants more than 16 rows: no gain in generation
            return F.linear(x, self.steps.float() * self.scale.unsqueeze(1), self.bias)
        rows = x.flatten(0, -2)  # [M, K]
        peak = torch.linalg.vector_norm(rows, torch.inf, -1, keepdim=True).clamp_(min=1e-12)  # [M, 1]
        rounded = (rows * (127 / peak)).round_().to(torch.int8)
        y = torch._int_mm(rounded, self.steps.t()) * self.scale  # [M, N]
        y = y * (peak / 127) if self.bias is None else torch.addcmul(self.bias, y, peak / 127)
        return y.unflatten(0, x.shape[:-1])


class Int8TiedEmbedding(Int8Linear):
    """`TiedEmbedding` in int8, for inference: one matrix, read by rows and multiplied.

    A scale per word is at once that of a word vector and that of an output channel.
    """

    def __init__(self, layer: TiedEmbedding):
        super().__init__(layer)
        self._factor = layer.factor

    def forward(self, tokens: Tensor) -> Tensor:
        """Float32 [..., K] for int64 [...]."""
        return self.steps[tokens].float() * self.scale[tokens].unsqueeze(-1) * self._factor

    def logits(self, x: Tensor) -> Tensor:
        """[..., N] of x [..., K]."""
        return super().forward(x)
