"""How a weight lies in the file that ships: its number format, and whether its zeros are left out.

The model in memory stays in float32. What ships is its values *on the grid* of their encoding, so that
`decode(encode(w))` is exactly `on_grid(w)`, and encoding twice changes nothing: scales have so few digits
that scale times the largest step is exact, and gives the same scale again.

* `fp16`, `bf16`: two bytes a weight.
* `int8`: one byte, one float32 scale per output channel (row); `int8_per_tensor`: one scale in all.
* `int4`: half a byte, one bfloat16 scale per 32 weights of a row.
* sparse: only weights other than zero, behind a bitmap of one bit a weight (Han et al. 2016 store distances
  instead, which is smaller only below a tenth of the weights). Goes with every number format.

Knows tensors, not models; which tensor gets which encoding is said by the methods beside this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["fp32", "fp16", "bf16", "int8", "int8_per_tensor", "int4"]

#: Density of a tensor that may have zeros, where it does not matter how many.
SPARSE = 1 - 1e-6
#: Weights of a row that share a scale in `int4`.
GROUP = 32
_CASTS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_LARGEST = {"int8": 127, "int8_per_tensor": 127, "int4": 7}
_MANTISSA = 0xFFFFF000 - 2**32  # of a float32, 11 bits are kept: 127 times such a number is exact


@dataclass(frozen=True)
class Encoding:
    """Of one tensor."""

    kind: Kind = "fp32"
    density: float = 1.0
    """Share of the weights that are not zero; below 1, zeros are left out of the file."""

    @property
    def sparse(self) -> bool:
        """Whether there is a bitmap."""
        return self.density < 1


def on_grid(weight: Tensor, kind: Kind) -> Tensor:
    """Float32, as `weight` [N, ...], every entry at the nearest value that `kind` can hold."""
    if kind in _CASTS:
        return weight.float().to(_CASTS[kind]).float()
    steps, scale = _steps(weight, kind)
    return _from_steps(steps, scale, weight.shape)


def encoded_bytes(shape: tuple[int, ...], encoding: Encoding) -> int:
    """Bytes of a tensor [N, ...] in the file, its name aside; of a sparse one as its density says."""
    count = math.prod(shape)
    kept = round(count * encoding.density)
    bitmap = -(-count // 8) if encoding.sparse else 0
    rows = shape[0] if shape else 1
    match encoding.kind:
        case "fp32":
            return bitmap + 4 * kept
        case "fp16" | "bf16":
            return bitmap + 2 * kept
        case "int8":
            return bitmap + kept + 4 * rows
        case "int8_per_tensor":
            return bitmap + kept + 4
        case "int4":
            return bitmap + -(-kept // 2) + 2 * rows * _groups(count // max(rows, 1))


def encode(weight: Tensor, encoding: Encoding) -> dict[str, Tensor]:
    """The tensors to store for `weight` [N, ...], by what is added to its name: "", ".scale", ".bits".

    Of a sparse tensor, what counts is where `weight` is zero, not the density.
    """
    weight = weight.detach().cpu().float()
    stored: dict[str, Tensor] = {}
    if encoding.kind in _CASTS:
        values = weight.to(_CASTS[encoding.kind]).flatten()
    else:
        values, scale = _steps(weight, encoding.kind)
        values = values.flatten()
        stored[".scale"] = scale.to(torch.bfloat16) if encoding.kind == "int4" else scale
    if encoding.sparse:
        kept = (weight != 0).flatten()
        stored[".bits"] = torch.from_numpy(np.packbits(kept.numpy()))
        values = values[kept]
    if encoding.kind == "int4":
        stored[""] = _packed(values)
    else:
        stored[""] = values.contiguous() if encoding.sparse else values.reshape(weight.shape).contiguous()
    return stored


def decode(stored: Mapping[str, Tensor], shape: tuple[int, ...], encoding: Encoding) -> Tensor:
    """The float32 tensor of `shape` of which `encode` made `stored`, on its grid."""
    count, values = math.prod(shape), stored[""].flatten()
    if encoding.sparse:
        kept = torch.from_numpy(np.unpackbits(stored[".bits"].numpy(), count=count).astype(bool))
        number = int(kept.sum())
        if encoding.kind == "int4":
            values = _unpacked(values, number)
        dense = torch.zeros(count, dtype=values.dtype)
        dense[kept] = values
        values = dense
    elif encoding.kind == "int4":
        values = _unpacked(values, count)
    if encoding.kind in _CASTS:
        return values.float().reshape(shape)
    return _from_steps(values.reshape(shape), stored[".scale"].float(), shape)


def _steps(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Whole steps int8, as `weight`, and the float32 size of a step: [N], [] (per tensor) or [N, groups]."""
    largest, rows = _LARGEST[kind], _grouped(weight.float(), kind)
    scale = rows.abs().amax(-1) / largest
    if kind == "int4":
        scale = scale.to(torch.bfloat16).float()
    else:
        scale = (scale.view(torch.int32) & _MANTISSA).view(torch.float32)
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    steps = (rows / divisor.unsqueeze(-1)).round_().clamp_(-largest, largest).to(torch.int8)
    return _ungrouped(steps, weight.shape), scale


def _from_steps(steps: Tensor, scale: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    kind: Kind = "int4" if scale.ndim == 2 else "int8" if scale.ndim == 1 else "int8_per_tensor"
    rows = _grouped(steps.float(), kind)
    return _ungrouped(rows * scale.unsqueeze(-1), shape)


def _grouped(weight: Tensor, kind: Kind) -> Tensor:
    """What shares a scale in the last dimension: [1, all] -> [all], [N, K], or [N, groups, 32] padded."""
    if kind == "int8_per_tensor":
        return weight.flatten()
    rows = weight.flatten(1) if weight.ndim > 1 else weight.unsqueeze(1)
    if kind == "int8":
        return rows
    groups = _groups(rows.shape[1])
    width = min(GROUP, rows.shape[1])
    return torch.nn.functional.pad(rows, (0, groups * width - rows.shape[1])).unflatten(1, (groups, width))


def _ungrouped(rows: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    if rows.ndim == 3:
        rows = rows.flatten(1)[:, : math.prod(shape[1:])]
    return rows.reshape(shape)


def _groups(columns: int) -> int:
    return -(-columns // GROUP)


def _packed(steps: Tensor) -> Tensor:
    """uint8 [ceil(n/2)] of int8 [n] from -7 to 7: two in a byte, the first in the low half."""
    values = (steps + 8).to(torch.uint8)
    if len(values) % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return values[0::2] | (values[1::2] << 4)


def _unpacked(packed: Tensor, count: int) -> Tensor:
    halves = torch.stack([packed & 15, packed >> 4], 1).flatten()[:count]
    return halves.to(torch.int8) - 8
