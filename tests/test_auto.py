"""The model-based search: its numbers against other ways to get them, its choices by where they go."""

import math

import moocore
import numpy as np
import pytest
import torch
from scipy.stats import qmc

from search_spaces import Choice, Float, Int, Space
from trainables.order import Failure
from tuning.experiment import Experiment
from tuning.search.auto import Auto, expected_gain
from tuning.search.encoding import Encoding
from tuning.search.gaussian_process import GaussianProcess
from tuning.search.proposers import Observed
from tuning.search.ranking import Standing
from tuning.simulation.simulator import simulate

SPACE = Space(
    {
        "rate": Float(1e-4, 1e-1, log=True),
        "width": Int(8, 64, step=8),
        "kind": Choice(["plain", "gated"]),
        "gate": Float(0, 1, when={"kind": ["gated"]}),
    }
)


def problem(**changes):
    tree = {
        "name": "bowl",
        "trainable": "curves",
        "search_space": {"x": {"float": [0, 1]}, "y": {"float": [0, 1]}, "k": {"choice": ["a", "b"]}},
        "objectives": [{"metric": "loss", "mode": "min"}],
        "search": {"algorithm": "auto", "seed": 1},
        "scheduler": {"max_epochs": 9},
    }
    return Experiment.from_dict(tree | changes)


def bowl(trial_id, config, epoch):
    off = (config["x"] - 0.3) ** 2 + (config["y"] - 0.8) ** 2 + 0.3 * (config["k"] == "b")
    return {"loss": off + 1 / epoch, "other": config["x"]}


def configs(experiment, curves=bowl, gangs=2):
    """Configurations in the order of their trials."""
    return [
        c
        for _, c in sorted({d.trial_id: d.config for d in simulate(experiment, curves, gangs=gangs)}.items())
    ]


@pytest.mark.parametrize("budget", [{"trials": 40}, {"epochs": 200}], ids=["beside asha", "deciding"])
def test_proposals_come_to_where_the_loss_is_least(budget):
    last = configs(problem(budget=budget))[-10:]
    near = [c for c in last if abs(c["x"] - 0.3) < 0.15 and abs(c["y"] - 0.8) < 0.15 and c["k"] == "a"]
    assert len(near) >= 7


def test_the_same_seed_makes_the_same_choices_and_another_others():
    def epochs(seed):
        done = simulate(
            problem(budget={"epochs": 60}, search={"algorithm": "auto", "seed": seed}), bowl, gangs=3
        )
        return [(epoch.trial_id, epoch.epoch, epoch.config) for epoch in done]

    assert epochs(1) == epochs(1) != epochs(2)


@pytest.mark.parametrize("budget", [{"trials": 40}, {"epochs": 150}], ids=["beside asha", "deciding"])
def test_where_trials_fail_is_kept_away_from(budget):
    tried = {}

    def cliff(trial_id, config, epoch):
        tried[trial_id] = config  # a simulation does not yield what failed
        if config["x"] < 0.5:
            return Failure(state="diverged", reason="loss is nan")
        return bowl(trial_id, config, epoch)

    list(simulate(problem(budget=budget), cliff, gangs=2))
    later = [config for _, config in sorted(tried.items())][10:]
    assert sum(config["x"] < 0.5 for config in later) <= 0.4 * len(later)


def test_early_epochs_that_mislead_do_not_keep_the_best_from_being_found():
    def crossing(trial_id, config, epoch):
        x = config["x"]
        return {"loss": x if epoch < 9 else 1 - x}  # small x looks good until the last epoch

    done = list(simulate(problem(budget={"epochs": 300}), crossing, gangs=2))
    assert min(epoch.metrics["loss"] for epoch in done if epoch.epoch == 9) < 0.05


def test_several_objectives_are_searched_along_the_front():
    several = problem(
        budget={"epochs": 180},
        objectives=[{"metric": "loss", "mode": "min"}, {"metric": "other", "mode": "min"}],
    )
    last = configs(several)[-12:]
    assert sum(abs(config["y"] - 0.8) < 0.2 and config["k"] == "a" for config in last) >= 7
    xs = [config["x"] for config in last]
    assert max(xs) - min(xs) > 0.1, "the front runs from x = 0 to x = 0.3"


def test_the_process_predicts_as_the_definition_has_it():
    """Posterior of a Gaussian process by numpy's general solver, from the covariance in the docstring."""
    rng = np.random.default_rng(0)
    points, times, losses = rng.random((7, 2)), rng.random(7), rng.standard_normal(7)
    asked, at = rng.random((4, 2)), rng.random(4)
    process = GaussianProcess(2)
    process.parameters = torch.tensor(rng.standard_normal(len(process.parameters)) * 0.3)
    process.condition(points, times, losses)

    values = np.exp(process.parameters.numpy())
    l1, l2, (s1, s2, r, s3, q, noise) = values[:2], values[2:4], values[4:]

    def covariance(a, t, b, u):
        def matern(lengths):
            d = math.sqrt(5) * np.linalg.norm((a[:, None] - b[None]) / lengths, axis=-1)
            return (1 + d + d**2 / 3) * np.exp(-d)

        apart = np.abs(t[:, None] - u[None])
        always, then = s1 * matern(l1), s2 * matern(l2) * np.exp(-apart / r)
        return always + then + s3 * np.exp(-((apart / q) ** 2) / 2)

    known = covariance(points, times, points, times) + (noise + 1e-5) * np.eye(7)
    across = covariance(asked, at, points, times)
    mean, spread = process.predict(asked, at)
    assert np.allclose(mean, across @ np.linalg.solve(known, losses), atol=1e-5)
    variance = s1 + s2 + s3 - np.einsum("ij,ji->i", across, np.linalg.solve(known, across.T))
    assert np.allclose(spread**2, variance, atol=1e-5)


def test_fitting_raises_the_likelihood_and_finds_the_coordinate_that_matters():
    points = qmc.Sobol(3, rng=np.random.default_rng(0)).random(32)
    losses = np.sin(6 * points[:, 1])
    process = GaussianProcess(3)
    process.fit(points, np.ones(32), (losses - losses.mean()) / losses.std(), steps=30)
    lengths = process.parameters[:3]
    assert lengths[1] < lengths[0] and lengths[1] < lengths[2]


def test_the_gain_of_one_objective_is_that_of_sampling():
    rng = np.random.default_rng(0)
    known, mean, spread = np.array([[0.5], [0.2]]), np.array([[0.1], [0.4]]), np.array([[0.3], [0.2]])
    gains = expected_gain(known, mean, spread, rng)
    sampled = np.clip(0.2 - (mean + spread * rng.standard_normal((1, 200_000))), 0, None).mean(axis=1)
    assert np.allclose(gains, sampled, atol=2e-3)


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_gain_of_several_objectives_is_added_hypervolume(objectives):
    rng = np.random.default_rng(1)
    known, mean = rng.random((9, objectives)), rng.random((20, objectives))
    gains = expected_gain(known, mean, np.full_like(mean, 1e-9), rng)
    reference = known.max(axis=0) + 0.1
    before = moocore.hypervolume(known, ref=reference)
    added = [moocore.hypervolume(np.vstack([known, point]), ref=reference) - before for point in mean]
    assert np.allclose(gains, added, atol=1e-6)


def test_points_are_as_far_apart_as_values_are():
    encoding = Encoding(SPACE)
    low, high = {"rate": 1e-4, "width": 8, "kind": "plain"}, {"rate": 1e-1, "width": 8, "kind": "plain"}
    other = low | {"kind": "gated", "gate": 0.5}
    points = encoding.points([low, high, other])
    assert points.shape == (3, encoding.dimensions) == (3, 5)
    assert math.isclose(np.linalg.norm(points[0] - points[1]), 1)
    assert math.isclose(np.linalg.norm(points[0] - points[2]), 1)


def test_neighbours_are_in_the_space_and_mostly_near():
    encoding, rng = Encoding(SPACE), np.random.default_rng(0)
    (config,) = encoding.draw(rng, 1)
    around = [encoding.near(config, rng) for _ in range(200)]
    assert all(SPACE.contains(each) for each in around)
    home = encoding.points([config])[0]
    distances = np.linalg.norm(encoding.points(around) - home, axis=1)
    far = np.linalg.norm(encoding.points(encoding.draw(rng, 200)) - home, axis=1)
    assert np.median(distances) < 0.5 * np.median(far)


def test_beside_another_scheduler_only_trials_that_may_change_are_searched_for_results():
    """Else each proposal costs more than the one before, and thousands of trials cost hours."""

    class Results(dict):
        looked = 0

        def __contains__(self, epoch):
            Results.looked += 1
            return super().__contains__(epoch)

    auto = Auto(SPACE, 0, levels=(9,))
    observed = [Observed(SPACE.at(dict.fromkeys(SPACE, 0.5)), Results(), over=True) for _ in range(60)]
    for number, trial in enumerate(observed):
        trial.results[9] = Standing((float(number),))
    waits = Observed(SPACE.at(dict.fromkeys(SPACE, 0.1)), Results())
    observed.append(waits)
    auto.watch(observed, decides=False)
    auto.propose(61, observed)
    Results.looked = 0
    auto.propose(61, observed)
    assert Results.looked == 1, "the one that is not over"
    waits.results[9] = Standing((-1.0,))
    auto.propose(61, observed)
    assert (60, 9) in auto._arrivals, "a result that came later is known"
