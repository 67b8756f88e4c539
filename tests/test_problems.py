"""The problems of the search benchmark are what they say: known optimum, known front, named difficulty."""

import math

import moocore
import numpy as np
import pytest
from optuna.samplers import RandomSampler
from optuna.study import create_study

from benchmarks.simulated.hartmann import hartmann
from benchmarks.simulated.problem import configuration
from benchmarks.simulated.related import MORE, TIMES, related
from benchmarks.simulated.reported_set import REPORTED
from benchmarks.simulated.tuning_set import TUNING

PROBLEMS = {problem.name: problem for problem in (*TUNING, *REPORTED)}
NETWORKS = [problem for name, problem in PROBLEMS.items() if not name.startswith("hartmann")]
SINGLE = [problem for problem in PROBLEMS.values() if len(problem.objectives) == 1]
TWO = [problem for problem in PROBLEMS.values() if len(problem.objectives) == 2]


def each(problems):
    return pytest.mark.parametrize("problem", problems, ids=lambda problem: problem.name)


def sample(problem, count=600, seed=7):
    rng = np.random.default_rng(seed)
    return [configuration(problem.space, rng.random(len(problem.space))) for _ in range(count)]


def rank_correlation(problem, epoch):
    """Spearman's, between a noisy epoch and the truth, over configurations that converge."""
    pairs = [
        (problem.curve(config, seed)[epoch - 1, 0], problem.truth(config)[0])
        for seed, config in enumerate(sample(problem, 1000))
    ]
    early, late = np.array([pair for pair in pairs if np.isfinite(pair).all()]).T
    return np.corrcoef(early.argsort().argsort(), late.argsort().argsort())[0, 1]


def test_each_set_has_six_problems_with_one_objective_and_one_with_two():
    for problems in (TUNING, REPORTED):
        assert sum(len(problem.objectives) == 1 for problem in problems) >= 6
        assert [len(problem.objectives) for problem in problems].count(2) == 1
    assert len(PROBLEMS) == len(TUNING) + len(REPORTED)


@pytest.mark.parametrize("dims", [3, 6])
def test_the_two_sets_have_their_hartmann_functions_in_different_places(dims):
    tuning, reported = (
        next(problem for problem in problems if problem.name.startswith(f"hartmann{dims}"))
        for problems in (TUNING, REPORTED)
    )
    there = dict.fromkeys(tuning.space, 0.2)
    assert tuning.truth(there)[0] != pytest.approx(reported.truth(there)[0], abs=1e-3)


@each(PROBLEMS.values())
def test_a_related_problem_is_another_on_another_scale_the_same_at_no_distance(problem):
    configs = sample(problem, 20)
    truths = np.array([problem.truth(config) for config in configs])
    curves = np.array([problem.curve(config, 3) for config in configs])
    for distance in (0.0, 0.1):
        other = related(problem, distance, 1)
        moved = np.array([other.truth(config) for config in configs])
        assert np.allclose(moved, MORE + TIMES * truths) == (distance == 0.0)
        moved = np.array([other.curve(config, 3) for config in configs])
        assert np.allclose(moved, MORE + TIMES * curves, equal_nan=True) == (distance == 0.0)


@each(PROBLEMS.values())
def test_a_point_of_the_unit_cube_is_a_configuration_of_the_space(problem):
    corners = [configuration(problem.space, np.full(len(problem.space), unit)) for unit in (0.0, 0.5, 1.0)]
    for config in (*corners, *sample(problem)):
        assert problem.space.contains(config), config


def test_uniform_points_spread_as_optunas_random_sampler_does():
    problem = PROBLEMS["transformer-misleading"]
    study = create_study(sampler=RandomSampler(seed=0))
    theirs = [problem.space.suggest(study.ask()) for _ in range(600)]
    ours = sample(problem)
    for name in ("depth", "width", "learning_rate", "dropout", "warmup_steps"):
        ranges = [
            np.quantile([math.log(c[name] + 0.01) for c in them], [0.25, 0.75]) for them in (theirs, ours)
        ]
        span = np.diff(ranges[0])[0]
        assert ranges[1] == pytest.approx(ranges[0], abs=0.25 * span), name
    assert {c["heads"] for c in ours} == {c["heads"] for c in theirs}
    assert all(("beta2" in c) == (c["optimizer"] == "adamw") for c in ours)


@each(PROBLEMS.values())
def test_a_training_can_be_repeated_and_differs_between_seeds(problem):
    config = next(config for config in sample(problem) if np.isfinite(problem.truth(config)).all())
    assert problem.curve(config, 3).shape == (problem.max_epochs, len(problem.objectives))
    np.testing.assert_array_equal(problem.curve(config, 3), problem.curve(config, 3))
    assert problem.curve(config, 3)[0, 0] != problem.curve(config, 4)[0, 0]


@each(PROBLEMS.values())
def test_the_truth_is_the_last_epoch_without_noise(problem):
    for config in sample(problem, 20):
        if np.isfinite(problem.truth(config)).all():
            last = np.array([problem.curve(config, seed)[-1] for seed in range(60)])
            error = 5 * last.std(axis=0) / math.sqrt(60) + 1e-9
            assert (abs(last.mean(axis=0) - problem.truth(config)) <= error).all()


@each(NETWORKS)
def test_some_trainings_diverge_for_good_and_most_do_not(problem):
    divergent = 0
    for seed, config in enumerate(sample(problem)):
        lost = np.isnan(problem.curve(config, seed)).any(axis=1)
        assert not lost[0], "the first epoch has a loss"
        assert (np.diff(lost.astype(int)) >= 0).all(), "what is lost stays lost"
        assert lost[-1] == math.isinf(problem.truth(config)[0])
        divergent += lost[-1]
    assert 0.03 < divergent / 600 < 0.4


@pytest.mark.parametrize(
    "dims, optimum, value",
    [
        (3, (0.114614, 0.555649, 0.852547), -3.86278),
        (6, (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573), -3.32237),
    ],
)
def test_hartmann_has_the_optimum_of_the_literature(dims, optimum, value):
    for mirrored in (False, True):
        problem = hartmann(dims, "bad", 27, mirrored)
        config = {f"x{i}": 1 - x if mirrored else x for i, x in enumerate(optimum)}
        assert problem.truth(config)[0] == pytest.approx(value, abs=1e-4)
        assert problem.best == pytest.approx(value, abs=1e-4)
        assert problem.curve(config, 0)[-1, 0] == problem.truth(config)[0]
        assert problem.regret(config) == pytest.approx(0, abs=1e-4)


@each(SINGLE)
def test_no_configuration_is_better_than_the_best(problem):
    losses = [problem.truth(config)[0] for config in sample(problem, 3000)]
    assert problem.best < min(losses)
    assert sum(loss < problem.median for loss in losses) / 3000 == pytest.approx(0.5, abs=0.05)


@each([problem for problem in PROBLEMS.values() if "-" in problem.name and problem in NETWORKS])
def test_the_first_epoch_says_of_the_end_what_the_name_says(problem):
    low, high = {"honest": (0.6, 1.0), "misleading": (0.15, 0.6), "reversed": (-1.0, 0.1)}[
        problem.name.rpartition("-")[2]
    ]
    assert low < rank_correlation(problem, 1) < high
    assert rank_correlation(problem, problem.max_epochs) > 0.9


def test_hartmann_keeps_the_order_of_its_qualities():
    correlations = [rank_correlation(hartmann(3, quality, 27), 9) for quality in ("good", "bad", "terrible")]
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[0] > correlations[-1] + 0.1


@each([problem for problem in NETWORKS if problem.name.endswith(("misleading", "reversed"))])
def test_curves_cross(problem):
    """Of two trainings, the one ahead by far after a tenth often ends behind by far."""
    tables = [problem.curve(config, seed)[:, 0] for seed, config in enumerate(sample(problem, 200))]
    early, late = np.array([(t[problem.max_epochs // 10], t[-1]) for t in tables if np.isfinite(t[-1])]).T
    ahead = early[:, None] + 0.1 < early[None, :]
    behind = late[:, None] > late[None, :] + 0.1
    assert (ahead & behind).sum() / ahead.sum() > 0.1


@each(TWO)
def test_no_point_of_the_front_dominates_another_and_none_is_dominated(problem):
    assert moocore.is_nondominated(problem.front).all()
    assert len(problem.front) > 20
    assert problem.share(problem.front) == pytest.approx(1.0)
    assert problem.share(np.empty((0, 2))) == 0.0
    found = np.array([problem.truth(config) for config in sample(problem, 3000)])
    assert 0.7 < problem.share(found) < 1.0
    assert problem.share(np.vstack([found, problem.front])) < 1.005


@each(TWO)
def test_nothing_near_the_front_is_better_than_it(problem):
    rng = np.random.default_rng(0)
    units = rng.random((2000, len(problem.space)))
    for _ in range(12):
        losses = np.array([problem.truth(configuration(problem.space, row)) for row in units])
        units = units[moocore.is_nondominated(losses)]
        parents = units[rng.integers(len(units), size=1500)]
        steps = 10 ** rng.uniform(-3, -0.5, size=(1500, 1)) * rng.standard_normal(parents.shape)
        units = np.vstack([units, np.clip(parents + steps, 0, 1)])
    assert 0.95 < problem.share(losses) < 1.01


def test_a_divergent_training_has_no_hypervolume():
    assert TUNING[-1].share(np.array([[math.inf, math.inf]])) == 0.0
