"""A captioner of the shapes that stored weights have: what compression did to the layers, done again.

A layer that was factorised is known by its factors, a layer that lost units by its shape. So neither files
nor checkpoints need to say how a model was compressed, and every sequence of methods can be read back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from trainables.captioning.compress.low_rank import factorised_like
from trainables.captioning.model.captioner import Captioner

Shapes = Mapping[str, tuple[int, ...]]


def rebuilt(captioner: Captioner, shapes: Shapes) -> Captioner:
    """`captioner`, changed, with parameters and buffers of these `shapes` by name; their values are void."""
    captioner = factorised_like(captioner, shapes)
    for path, module in captioner.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            shape = shapes.get(f"{path}.{name}".lstrip("."))
            if shape is not None and shape != tuple(tensor.shape):
                _resize(module, name, shape)
    return captioner


def _resize(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    old = getattr(module, name)
    new = torch.empty(shape, dtype=old.dtype, device=old.device)
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    if name == "weight":
        tell_shape(module)


def tell_shape(module: nn.Module) -> None:
    """Brings the numbers that a torch layer keeps about its shape into line with its weight."""
    shape = tuple(module.weight.shape)  # type: ignore[union-attr, arg-type]
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.Conv2d):
        depthwise = module.groups > 1  # the only grouped convolutions here
        module.out_channels = shape[0]
        module.groups = shape[0] if depthwise else 1
        module.in_channels = shape[0] if depthwise else shape[1]
    elif isinstance(module, nn.BatchNorm2d):
        (module.num_features,) = shape
    elif isinstance(module, nn.GroupNorm):
        (module.num_channels,) = shape
        module.num_groups = math.gcd(8, shape[0])
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = shape
