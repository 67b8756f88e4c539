"""Which parameters are trained, by which rule, at which learning rate.

Knows the captioner's settings and nothing of batches or workers; `train.py` calls it at every step.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from trainables.captioning.settings import Settings

#: What the settings say of a group of parameters, by its keys in the optimizer.
SET = ("lr", "base_lr", "weight_decay", "momentum")


def build_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer that `settings.optimizer` names, over the parameters of `model` that require gradients.

    Biases, norms' scales and embeddings are not decayed: decay would not regularise the former, and would
    shrink the vectors of rare words, which seldom get a gradient, to nothing. Parameters under `encoder`
    learn at `encoder_learning_rate_factor` times the rate. Decay is decoupled for adamw and adabelief and
    an L2 term of the gradient for adam and sgd.

    Each group carries `base_lr`; `set_learning_rate` scales it by the schedule.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # By name: what compression puts in an embedding's place is one, too.
            decayed = parameter.ndim > 1 and "embedding" not in name.split(".")
            kind = (name.startswith("encoder."), decayed)
            groups.setdefault(kind, []).append(parameter)
    described = []
    for (encoder, decayed), parameters in sorted(groups.items(), key=lambda group: group[0]):
        rate = settings.learning_rate * (settings.encoder_learning_rate_factor if encoder else 1.0)
        decay = settings.weight_decay if decayed else 0.0
        described.append({"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay})
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(described)
        case "adam":
            return torch.optim.Adam(described)
        case "sgd":
            return torch.optim.SGD(described, momentum=settings.momentum)
        case "adabelief":
            from pytorch_optimizer import AdaBelief  # here: importing it takes seconds

            return AdaBelief(described)


def learning_rate_factor(step: int, total: int, warmup_fraction: float) -> float:
    """Share of the full learning rate at step `step` (from 0) of `total`: linear warm-up, then a cosine.

    Never 0: the first step of the warm-up and the last of the cosine do learn something.
    """
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's own rate by `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
