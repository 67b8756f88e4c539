"""Random numbers that depend on a trial, its epoch and its worker, and on nothing that ran before."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(*parts: int) -> None:
    """Seed Python, numpy and torch from `parts`; the same parts give the same stream in any process."""
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
