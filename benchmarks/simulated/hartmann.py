"""MFHartmann: early epochs are a flattened, noisy Hartmann function, the last epoch is the function itself.

Kandasamy et al. 2017, with the bias and the noise of mf-prior-bench (Mallik et al. 2023), whose names the
qualities keep.
"""

from __future__ import annotations

import math

import numpy as np

from benchmarks.simulated.problem import Array, Config, Problem
from search_spaces import Float, Space

_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = {
    3: np.array([[3.0, 10, 30], [0.1, 10, 35], [3.0, 10, 30], [0.1, 10, 35]]),
    6: np.array(
        [
            [10, 3, 17, 3.5, 1.7, 8],
            [0.05, 10, 17, 0.1, 8, 14],
            [3, 3.5, 1.7, 10, 17, 8],
            [17, 8, 0.05, 10, 0.1, 14],
        ]
    ),
}
_P = {
    3: np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]) * 1e-4,
    6: np.array(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ]
    )
    * 1e-4,
}
#: Bias of the four heights and standard deviation of the noise, both in full at fidelity 1 and none at 100.
_QUALITY = {"good": (2.5, 2.0), "moderate": (3.0, 3.0), "bad": (3.5, 4.0), "terrible": (4.0, 5.0)}


def hartmann(dims: int, quality: str, max_epochs: int, mirrored: bool = False) -> Problem:
    """MFHartmann in `dims` (3 or 6) dimensions; the last epoch is the fidelity 100 of
    mf-prior-bench, the epochs before it the corresponding share of 100."""
    bias, noise = _QUALITY[quality]
    names = [f"x{index}" for index in range(dims)]
    missing = -np.log(np.arange(1, max_epochs + 1) / max_epochs) / math.log(100)
    heights = _ALPHA - bias * missing[:, None] ** 2  # [max_epochs, 4]
    steep, centres = _A[dims], _P[dims]

    def wells(config: Config) -> Array:
        x = np.array([config[name] for name in names])
        return np.exp(-(steep * ((1 - x if mirrored else x) - centres) ** 2).sum(axis=1))

    def curve(config: Config, seed: int) -> Array:
        errors = np.random.default_rng(seed).standard_normal(max_epochs) * noise * missing
        return (errors - heights @ wells(config))[:, None]

    return Problem(
        name=f"hartmann{dims}-{quality}",
        space=Space({name: Float(0.0, 1.0) for name in names}),
        max_epochs=max_epochs,
        curve=curve,
        truth=lambda config: np.array([-(_ALPHA @ wells(config))]),
    )
