"""A Gaussian process over configurations and the share of training that they got.

Numbers only: points between 0 and 1, losses that somebody scaled. What is asked of it is
`tuning/search/auto.py`'s business. Double precision, exact (Cholesky), so for some hundreds of points.

The covariance of two results is

    s1 * m(x, x'; l1) + s2 * m(x, x'; l2) * exp(-|t - t'| / r) + s3 * exp(-(t - t')^2 / 2 q^2)
    + (n + e * (1 - t)) where both are one result

with Matern-5/2 functions m over the points, a length scale per coordinate, and t the logarithm of the epoch:
what a configuration does at any time, what it does at some time only, what training does for all, and noise,
of which early epochs have more. How far these can be trusted (s1 against s2 and e) is thus learnt. Parameters
are those of highest posterior density under log-normal priors, as of Snoek et al. 2012 and Swersky et al.
2013 with other kernels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

#: Prior medians of s1, s2, r, s3, q, n and e; of a length scale it is the first of the next.
MEDIANS = (0.25, 0.75, 0.5, 0.5, 1.0, 0.01, 0.1)
LENGTH, LENGTH_SPREAD, SPREAD, NOISE_SPREAD = 0.6, 0.8, 1.0, 1.5
JITTER = 1e-5


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For small matrices: more threads would only take cores from the gangs of this machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class GaussianProcess:
    """Exact regression; `fit` chooses parameters, `condition` takes results in."""

    def __init__(self, dimensions: int):
        """Start at the priors' medians. `dimensions`: coordinates of a point."""
        self._dimensions = dimensions
        logs = [math.log(LENGTH)] * (2 * dimensions) + [math.log(median) for median in MEDIANS]
        spreads = [LENGTH_SPREAD] * (2 * dimensions) + [SPREAD] * (len(MEDIANS) - 2) + [NOISE_SPREAD] * 2
        self._median = torch.tensor(logs, dtype=torch.float64)
        self._spread = torch.tensor(spreads, dtype=torch.float64)
        self.parameters = self._median.clone()

    def fit(self, points: Array, times: Array, losses: Array, *, steps: int) -> None:
        """Move the parameters uphill (L-BFGS); where that leaves the numbers, they stay as they were.

        Args:
            points: float64 [n, dimensions].
            times: float64 [n], logarithm of the epoch, 1 for the last.
            losses: float64 [n], about of mean 0 and variance 1.
            steps: most iterations.
        """
        x_ND, t_N, y_N = map(torch.from_numpy, (points, times, losses))
        parameters = self.parameters.clone().requires_grad_(True)
        optimizer = torch.optim.LBFGS([parameters], max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._cost(parameters, x_ND, t_N, y_N)
            loss.backward()
            return loss

        try:
            optimizer.step(closure)  # type: ignore[arg-type]
        except torch.linalg.LinAlgError:
            return
        if torch.isfinite(parameters).all():
            self.parameters = parameters.detach()

    def condition(self, points: Array, times: Array, losses: Array) -> None:
        """Know these results, and only these; shapes as for `fit`."""
        self._x_ND, self._t_N, y_N = map(torch.from_numpy, (points, times, losses))
        with torch.no_grad():
            self._factor_NN = torch.linalg.cholesky(self._noisy(self.parameters, self._x_ND, self._t_N))
            self._weights_N = torch.cholesky_solve(y_N[:, None], self._factor_NN)[:, 0]

    def predict(self, points: Array, times: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free losses there: float64 [m] each."""
        with torch.no_grad():
            x_MD, t_M = torch.from_numpy(points), torch.from_numpy(times)
            covariance_MN = self._covariance(self.parameters, x_MD, t_M, self._x_ND, self._t_N)
            mean_M = covariance_MN @ self._weights_N
            solved_NM = torch.linalg.solve_triangular(self._factor_NN, covariance_MN.T, upper=False)
            s1, s2, _, s3, _ = self.parameters[2 * self._dimensions : -2].exp()
            variance_M = (s1 + s2 + s3 - solved_NM.square().sum(0)).clamp_min(1e-12)
        return mean_M.numpy(), variance_M.sqrt().numpy()

    def futures(self, points: Array, times: Sequence[float]) -> Array:
        """How the expectation at the last of `times` will move while results at the others come in.

        Returns:
            float64 [m, times]: standard deviations of its step at each result, and last of the loss itself,
            free of noise, after all of them.
        """
        with torch.no_grad():
            x_MD, t_K = torch.from_numpy(points), torch.tensor(times, dtype=torch.float64)
            solved_KNM = torch.stack(
                [
                    torch.linalg.solve_triangular(self._factor_NN, covariance_MN.T, upper=False)
                    for covariance_MN in (
                        self._covariance(self.parameters, x_MD, t.expand(len(points)), self._x_ND, self._t_N)
                        for t in t_K
                    )
                ]
            )
            nowhere_KD = x_MD[:1].expand(len(times), -1)
            prior_KK = self._covariance(self.parameters, nowhere_KD, t_K, nowhere_KD, t_K)
            noise_K = self._noise(self.parameters, t_K)
            noise_K[-1] = JITTER
            known_MKK = torch.einsum("knm,lnm->mkl", solved_KNM, solved_KNM)
            factor_MKK = torch.linalg.cholesky(prior_KK - known_MKK + torch.diag(noise_K))
        return factor_MKK[:, -1].numpy()

    def _cost(self, parameters: Tensor, x_ND: Tensor, t_N: Tensor, y_N: Tensor) -> Tensor:
        """Negative logarithm of the posterior density, up to a constant."""
        factor_NN = torch.linalg.cholesky(self._noisy(parameters, x_ND, t_N))
        weights_N = torch.cholesky_solve(y_N[:, None], factor_NN)[:, 0]
        prior = ((parameters - self._median) / self._spread).square().sum() / 2
        return y_N @ weights_N / 2 + factor_NN.diagonal().log().sum() + prior

    def _noisy(self, parameters: Tensor, x_ND: Tensor, t_N: Tensor) -> Tensor:
        covariance_NN = self._covariance(parameters, x_ND, t_N, x_ND, t_N)
        return covariance_NN + torch.diag(self._noise(parameters, t_N))

    def _noise(self, parameters: Tensor, t_N: Tensor) -> Tensor:
        always, early = parameters[-2:].exp()
        return always + early * (1 - t_N) + JITTER

    def _covariance(self, parameters: Tensor, a_MD: Tensor, t_M: Tensor, b_ND: Tensor, u_N: Tensor) -> Tensor:
        lengths_2D = parameters[: 2 * self._dimensions].exp().view(2, -1)
        s1, s2, r, s3, q = parameters[2 * self._dimensions : -2].exp()
        apart_MN = (t_M[:, None] - u_N[None, :]).abs()
        always_MN = s1 * _matern(a_MD / lengths_2D[0], b_ND / lengths_2D[0])
        then_MN = s2 * _matern(a_MD / lengths_2D[1], b_ND / lengths_2D[1]) * torch.exp(-apart_MN / r)
        return always_MN + then_MN + s3 * torch.exp(-0.5 * (apart_MN / q).square())


def _matern(a_MD: Tensor, b_ND: Tensor) -> Tensor:
    """Matern-5/2 correlation of points whose length scales are 1."""
    squared_MN = (a_MD[:, None, :] - b_ND[None, :, :]).square().sum(-1)
    distance_MN = (5 * squared_MN + 1e-12).sqrt()  # the root has no gradient at 0
    return (1 + distance_MN + 5 * squared_MN / 3) * torch.exp(-distance_MN)
