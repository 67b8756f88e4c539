"""Every proposer as a function of what was observed; and what each is there for."""

import math
from copy import deepcopy
from statistics import mean

import numpy as np
import optuna
import pytest
from cmaes import CMA
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from search_spaces import Choice, Float, Int, Space
from tuning.search.optuna_proposers import Modelled, highest_level, study_of
from tuning.search.population_proposers import POPULATION, CmaEs, Nsga2
from tuning.search.proposers import Grid, Observed, Random, Sobol
from tuning.search.ranking import Standing, hypervolume

LEVELS = (1, 3, 9)
MIXED = Space(
    {
        "ratio": Float(0.1, 0.9, when={"method": ["low_rank"]}),
        "method": Choice(["none", "low_rank", None]),
        "lr": Float(1e-5, 1e-1, log=True),
        "dropout": Float(0.0, 0.5, step=0.1),
        "layers": Int(1, 6, step=2),
        "width": Int(8, 512, log=True),
    }
)
STEPPED = Space(
    {
        "dropout": Float(0.0, 0.5, step=0.25),
        "method": Choice(["none", "low_rank"]),
        "rank": Int(1, 4, when={"method": ["low_rank"]}),
    }
)
SQUARE = Space({"x": Float(0, 1), "y": Float(0, 1)})


def modelled(algorithm):
    def make(space, seed, *, levels=LEVELS, enough=5):
        return Modelled(space, seed, algorithm=algorithm, levels=levels, enough=enough)

    return make


def cmaes(space, seed, levels=LEVELS):
    return CmaEs(space, seed, levels=levels)


def nsga2(space, seed, levels=LEVELS):
    return Nsga2(space, seed, levels=levels)


PROPOSERS = {
    "random": Random,
    "sobol": Sobol,
    "tpe": modelled("tpe"),
    "gp": modelled("gp"),
    "cmaes": cmaes,
    "nsga2": nsga2,
}
EVERY = pytest.mark.parametrize("make", PROPOSERS.values(), ids=PROPOSERS)
MANY = {PROPOSERS["gp"]: 6}  # trials of a test; a Gaussian process costs more by each


def outcomes(rng, objectives, levels=LEVELS):
    """What might become of a trial: results up to some level, some of them no number or infeasible."""
    results = {}
    for level in levels[: rng.integers(0, len(levels) + 1)]:
        losses = [math.nan if rng.random() < 0.05 else float(rng.normal()) for _ in range(objectives)]
        results[level] = Standing(tuple(losses), float(rng.choice([0.0, 0.0, rng.random()])))
    return results


def observe(proposer, count, results_of):
    """So many trials, each proposed after the results of those before it are known."""
    observed = []
    for number in range(count):
        proposal = proposer.propose(number, observed)
        results = results_of(proposal.config)
        observed.append(Observed(proposal.config, results, over=True, generation=proposal.generation))
    return observed


@EVERY
def test_a_proposal_is_a_function_of_number_and_observations(make):
    rng, objectives, count = np.random.default_rng(0), 2 if make is nsga2 else 1, MANY.get(make, 35)
    one = make(MIXED, 0)
    observed = observe(one, count, lambda config: outcomes(rng, objectives))
    before = repr(observed)
    proposal = one.propose(count, observed)
    assert repr(observed) == before  # it changes nothing that it is shown
    assert one.propose(count, observed) == proposal
    assert make(MIXED, 0).propose(count, deepcopy(observed)) == proposal
    assert make(MIXED, 7).propose(0, []) != one.propose(0, [])
    for number in (3, count - 1):
        assert make(MIXED, 0).propose(number, observed[:number]).config == observed[number].config


@EVERY
def test_every_configuration_is_in_the_space(make):
    rng, count = np.random.default_rng(3), MANY.get(make, 30)
    observed = observe(make(MIXED, 3), count, lambda config: outcomes(rng, 2 if make is nsga2 else 1))
    assert all(MIXED.contains(trial.config) for trial in observed)
    assert {"ratio" in trial.config for trial in observed} == {True, False}
    assert len({trial.config["lr"] for trial in observed}) > count / 2


@EVERY
@pytest.mark.parametrize(
    "space",
    [
        Space({"c": Choice(["a", "b"])}),
        Space({"x": Float(2, 2)}),
        Space({"n": Int(1, 1), "x": Float(0, 1)}),
        Space({"x": Float(1e-3, 1, log=True), "y": Float(0.1, 0.35, step=0.1)}),
    ],
    ids=["one choice", "one point", "a constant", "numbers"],
)
def test_small_spaces_are_searched_too(make, space):
    objectives = 2 if make is nsga2 else 1
    rng = np.random.default_rng(0)
    observed = observe(
        make(space, 0),
        MANY.get(make, 22),
        lambda config: {1: Standing(tuple(float(v) for v in rng.random(objectives)))},
    )
    assert all(space.contains(trial.config) for trial in observed)


domains = st.one_of(
    st.tuples(st.floats(-1e3, 1e3), st.floats(0, 1e3)).map(lambda t: Float(t[0], t[0] + t[1])),
    st.tuples(st.floats(1e-6, 1e3), st.floats(1, 1e3)).map(lambda t: Float(t[0], t[0] * t[1], log=True)),
    st.tuples(st.integers(-50, 50), st.integers(0, 30), st.integers(1, 4)).map(
        lambda t: Int(t[0], t[0] + t[1], step=t[2])
    ),
    st.tuples(st.integers(1, 50), st.integers(0, 300)).map(lambda t: Int(t[0], t[0] + t[1], log=True)),
    st.tuples(st.integers(-5, 5), st.integers(0, 40), st.integers(1, 9)).map(
        lambda t: Float(t[0] / 10, (t[0] + t[1]) / 10, step=t[2] / 10)
    ),
    st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True).map(Choice),
)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), domains, min_size=1),
    st.sampled_from(["random", "sobol", "tpe", "cmaes", "nsga2"]),
    st.integers(0, 2**31 - 1),
)
def test_any_space_can_be_searched_by_any_proposer(domains, name, seed):
    space, rng = Space(domains), np.random.default_rng(seed)
    objectives = 2 if name == "nsga2" else 1
    observed = observe(PROPOSERS[name](space, seed), 6, lambda config: outcomes(rng, objectives))
    rebuilt = [Observed(space.at(dict.fromkeys(space, unit)), {1: Standing((unit,) * objectives)})
               for unit in np.linspace(0, 1, 20).tolist()]  # fmt: skip
    observed.append(Observed(PROPOSERS[name](space, seed).propose(20, rebuilt).config))
    assert all(space.contains(trial.config) for trial in observed)


# Grid and Sobol.


def visited(grid, count, observed=()):
    """Configurations of the next `count` trials."""
    observed = list(observed)
    for _ in range(count):
        observed.append(Observed(grid.propose(len(observed), observed).config))
    return [trial.config for trial in observed[-count:]]


def test_a_grid_is_visited_once_and_then_there_is_none():
    configs = visited(Grid(STEPPED, seed=1), 15)
    assert all(STEPPED.contains(config) for config in configs)
    assert len({tuple(sorted(config.items())) for config in configs}) == 15 == 3 * (1 + 4)
    assert Grid(STEPPED, seed=1).propose(15, [Observed(config) for config in configs]) is None
    assert visited(Grid(STEPPED, seed=1), 15) == configs != visited(Grid(STEPPED, seed=2), 15)


def test_a_grid_leaves_out_what_was_tried_as_a_starting_point():
    first, *others = visited(Grid(STEPPED, seed=1), 15)
    started_with = Observed(others[3])
    assert Grid(STEPPED, seed=1).propose(1, [started_with]).config == first
    assert others[3] not in visited(Grid(STEPPED, seed=1), 14, [started_with])


def test_half_a_grid_is_spread_out():
    space = Space({"a": Int(0, 9), "b": Int(0, 9)})
    half = visited(Grid(space, seed=0), 50)
    assert {config["a"] for config in half} == set(range(10)) == {config["b"] for config in half}


def points(proposer, count):
    configs = [proposer.propose(number, []).config for number in range(count)]
    return np.array([[config["x"], config["y"]] for config in configs])


@pytest.mark.parametrize("count", [16, 50, 64])
def test_sobol_is_more_even_than_random(count):
    for seed in range(5):
        even, random = (qmc.discrepancy(points(kind(SQUARE, seed), count)) for kind in (Sobol, Random))
        assert even < random / 2


def test_sobol_points_may_be_asked_for_in_any_order():
    sobol = Sobol(SQUARE, seed=3)
    forward = [sobol.propose(number, []).config for number in range(8)]
    assert [sobol.propose(number, []).config for number in reversed(range(8))] == forward[::-1]


# Models of the highest rung.


def test_the_highest_level_with_enough_results():
    def trials(count, levels, loss=0.5):
        return [Observed({}, {level: Standing((loss,)) for level in levels}) for _ in range(count)]

    assert highest_level([], LEVELS, 2) is None
    assert highest_level(trials(1, [1, 3]), LEVELS, 2) is None
    assert highest_level(trials(2, [1]) + trials(1, [1, 3, 9]), LEVELS, 2) == 1
    assert highest_level(trials(2, [1]) + trials(2, [1, 3]), LEVELS, 2) == 3
    assert highest_level(trials(2, [1]) + trials(2, [1, 3], math.nan), LEVELS, 2) == 1
    assert highest_level(trials(2, [1, 3, 9]), LEVELS, 2) == 9


@pytest.mark.parametrize("algorithm", ["tpe", "gp"])
def test_models_believe_the_highest_rung_that_has_enough_results(algorithm):
    """After one epoch small x looks good, after nine large x does: what is learnt turns with the evidence."""
    space, rng = Space({"x": Float(0, 1)}), np.random.default_rng(0)
    low = [Observed({"x": x}, {1: Standing((x,))}) for x in rng.random(20).tolist()]
    high = [Observed({"x": x}, {1: Standing((x,)), 9: Standing((-x,))}) for x in rng.random(10).tolist()]

    def proposed(observed):
        draws = range(100, 106 if algorithm == "tpe" else 102)
        return mean(modelled(algorithm)(space, s, enough=10).propose(s, observed).config["x"] for s in draws)

    assert proposed(low + high[:9]) < 0.25
    assert proposed(low + high) > 0.75


@pytest.mark.parametrize("algorithm", ["tpe", "gp"])
def test_before_there_is_enough_draws_are_random(algorithm):
    observed = [Observed({"x": 0.1, "y": 0.1}, {1: Standing((float(n),))}) for n in range(4)]
    proposal = modelled(algorithm)(SQUARE, 0, enough=5).propose(4, observed)
    assert proposal.config == Random(SQUARE, 0).propose(4, observed).config
    assert proposal.why == "drawn at random: fewer than 5 have a result"


@pytest.mark.parametrize("algorithm", ["tpe", "gp"])
def test_models_keep_away_from_where_constraints_are_broken(algorithm):
    space = Space({"x": Float(0, 1)})
    xs = np.linspace(0, 1, 21).tolist()
    bounded = [Observed({"x": x}, {1: Standing((-x,), max(0.0, x - 0.5))}) for x in xs]
    free = [Observed({"x": x}, {1: Standing((-x,))}) for x in xs]

    def proposed(observed):
        draws = range(21, 27 if algorithm == "tpe" else 23)
        return mean(modelled(algorithm)(space, s).propose(s, observed).config["x"] for s in draws)

    assert 0.25 < proposed(bounded) < 0.6 < 0.8 < proposed(free)


def test_tpe_takes_several_objectives():
    def results(config):
        return {1: Standing(((config["x"] - 0.3) ** 2, (config["x"] - 0.5) ** 2))}

    observed = observe(modelled("tpe")(SQUARE, 0, enough=10), 40, results)
    assert mean(0.2 < trial.config["x"] < 0.6 for trial in observed[20:]) > 0.55  # of random draws 4 in 10


def test_thousands_of_results_are_shown_by_their_best_and_latest():
    rng = np.random.default_rng(0)
    observed = [Observed({"x": x}, {1: Standing((x,))}) for x in rng.random(3000).tolist()]
    proposal = modelled("tpe")(Space({"x": Float(0, 1)}), 0).propose(3000, observed)
    assert proposal.config["x"] < 0.1


# Populations.


def bowl(config):
    """Best where x = 0.8 and y = 0.2."""
    return {1: Standing((abs(config["x"] - 0.8) + abs(config["y"] - 0.2),))}


def two_bowls(config):
    """The front is the line from (0.3, 0.5) to (0.6, 0.5)."""
    ends = ((0.3, 0.5), (0.6, 0.5))
    return {1: Standing(tuple((config["x"] - x) ** 2 + (config["y"] - y) ** 2 for x, y in ends))}


def test_cmaes_improves_on_random_on_a_bowl():
    losses = {
        kind: [trial.results[1].losses[0] for trial in observe(kind(SQUARE, 0), 150, bowl)[100:]]
        for kind in (cmaes, Random)
    }
    assert mean(losses[cmaes]) < mean(losses[Random]) / 2
    assert min(losses[cmaes]) < 0.05


def test_cmaes_treats_what_breaks_a_constraint_as_worse_than_everything_else():
    def results(config):
        return {1: Standing((-config["x"],), max(0.0, config["x"] - 0.5))}

    late = observe(cmaes(SQUARE, 0), 100, results)[80:]
    assert 0.35 < mean(trial.config["x"] for trial in late) < 0.6


def test_nsga2_improves_on_random_with_two_objectives():
    observed = {kind: observe(kind(SQUARE, 0), 150, two_bowls) for kind in (nsga2, Random)}
    volume = {
        kind: hypervolume([trial.results[1].losses for trial in trials[75:]], (0.1, 0.1))
        for kind, trials in observed.items()
    }
    assert volume[nsga2] > volume[Random]
    near = [abs(t.config["y"] - 0.5) < 0.15 and 0.2 < t.config["x"] < 0.7 for t in observed[nsga2][100:]]
    assert mean(near) > 0.3  # of random draws 15 in 100


@pytest.mark.parametrize("make", [cmaes, nsga2])
def test_generations_follow_one_another_and_survive_a_rebuild(make):
    problem = bowl if make is cmaes else two_bowls
    observed = observe(make(SQUARE, 0), 3 * POPULATION + 1, problem)
    generations = [trial.generation for trial in observed]
    assert generations == sorted(generations) and set(generations) == {0, 1, 2, 3}
    assert all(generations.count(generation) == POPULATION for generation in (0, 1, 2))
    rebuilt = [Observed(dict(o.config), dict(o.results), generation=o.generation) for o in observed]
    again = make(SQUARE, 0).propose(len(rebuilt), rebuilt)
    assert again == make(SQUARE, 0).propose(len(observed), observed)
    assert again.generation == 3


@pytest.mark.parametrize("make", [cmaes, nsga2])
def test_results_that_come_late_or_change_are_told_anew(make):
    """Six trials run side by side and end in any order, now and then one is evaluated once more."""
    problem, rng = bowl if make is cmaes else two_bowls, np.random.default_rng(1)
    proposer, observed, running = make(SQUARE, 0), [], []
    for number in range(5 * POPULATION):
        proposal = proposer.propose(number, observed)
        assert make(SQUARE, 0).propose(number, observed) == proposal
        observed.append(Observed(proposal.config, {}, generation=proposal.generation))
        running.append(observed[-1])
        if len(running) == 6:
            ended = running.pop(int(rng.integers(6)))
            ended.results = problem(ended.config)
        if number % 7 == 6:
            again = observed[int(rng.integers(number))]
            for standing in again.results.values():
                again.results = {1: Standing(tuple(2 * loss for loss in standing.losses))}


@pytest.mark.parametrize(("make", "owner", "step"), [(cmaes, CMA, "tell"), (nsga2, Nsga2, "_best")])
def test_no_proposal_goes_through_the_old_generations_again(make, owner, step, monkeypatch):
    taken, original = [], getattr(owner, step)
    monkeypatch.setattr(
        owner, step, lambda self, *arguments: (taken.append(1), original(self, *arguments))[1]
    )
    observe(make(SQUARE, 0), 6 * POPULATION, bowl if make is cmaes else two_bowls)
    assert len(taken) == 5


@pytest.mark.parametrize("make", [cmaes, nsga2])
def test_a_generation_waits_for_its_results_and_goes_on_meanwhile(make):
    """Trials without a result (running, failed, not a number) are made up for by more of the same."""
    problem = bowl if make is cmaes else two_bowls
    observed = observe(make(SQUARE, 0), POPULATION, problem)
    for trial, results in zip(observed, [{}, {1: Standing((math.nan,) * len(observed[0].results[1].losses))}],
                              strict=False):  # fmt: skip
        trial.results = results
    for number in range(POPULATION, POPULATION + 2):
        proposal = make(SQUARE, 0).propose(number, observed)
        assert proposal.generation == 0
        observed.append(Observed(proposal.config, problem(proposal.config)))
    assert make(SQUARE, 0).propose(POPULATION + 2, observed).generation == 1


def test_a_sampler_is_shown_what_optuna_would_make_of_results_and_no_copies_of_it():
    """Copies of a thousand results cost more than TPE itself."""
    rng = np.random.default_rng(0)
    shown = [
        (Observed({"x": float(x), "y": float(y)}), Standing((float(x),), violation=float(y > 0.5)))
        for x, y in rng.random((20, 2))
    ]
    told = study_of(SQUARE, shown, optuna.samplers.RandomSampler()).get_trials(deepcopy=False)
    assert all(deepcopy(trial) is trial for trial in told)
    for number, (trial, (observed, standing)) in enumerate(zip(told, shown, strict=True)):
        own = optuna.trial.create_trial(
            params=dict(observed.config),
            distributions=SQUARE.distributions(),
            values=list(standing.losses),
            constraints={"violation": standing.violation},
        )
        assert (trial.number, trial.params, trial.distributions) == (number, own.params, own.distributions)
        assert (trial.state, trial.values, trial.constraints) == (own.state, own.values, own.constraints)
        assert trial.system_attrs == own.system_attrs
