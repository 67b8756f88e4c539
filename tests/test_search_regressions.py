"""Mistakes that the search once made, each with the least that shows it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import Choice, Float, Int, Space
from tuning.events import TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.search.population_proposers import CmaEs
from tuning.search.proposers import Grid, Proposal, Random
from tuning.search.searcher import Searcher
from tuning.simulation.simulator import simulate


@pytest.mark.parametrize("kind", [Random, lambda s, seed: CmaEs(s, seed, levels=(1,))])
def test_values_are_plain_python(kind):
    space = Space({"x": Float(0, 1), "m": Choice(["a", 2.5])})
    assert {type(v) for n in range(4) for v in kind(space, 0).propose(n, []).config.values()} <= {float, str}


@given(st.integers(1, 50), st.integers(0, 300), st.data())
def test_the_unit_of_a_whole_number_on_a_log_scale_leads_back_to_it(low, span, data):
    domain = Int(low, low + span, log=True)
    value = data.draw(st.integers(low, low + span))
    assert domain.at(domain.unit(value)) == value


def test_a_grid_loses_nothing_to_start_configurations():
    space = Space({"c": Choice(["a", "b", "c", "d"])})
    searcher = Searcher(
        path=None, name="s", space=space, modes=["max"], proposer=Grid(space, 0), start=[Proposal({"c": "a"})]
    )
    seen = []
    while (suggestion := searcher.suggest()) is not None:
        seen.append(suggestion.config["c"])
    assert sorted(seen) == ["a", "b", "c", "d"]


class Recorder(list):
    handle = list.append

    def tick(self):
        pass


def experiment(**changes):
    tree = {
        "name": "any",
        "search_space": {"x": {"float": [0, 1]}},
        "objectives": [{"metric": "m", "mode": "min"}],
        "search": {"algorithm": "random"},
        "scheduler": {"algorithm": "asha", "min_epochs": 1, "max_epochs": 3, "reduction_factor": 2},
    }
    return Experiment.from_dict(tree | changes)


def runs_twice(described, curves, gangs):
    told, running = Recorder(), set()
    list(simulate(described, curves, gangs=gangs, listeners=[told]))
    for event in told:
        if isinstance(event, TrialStarted):
            if event.trial_id in running:
                return True
            running.add(event.trial_id)
        elif isinstance(event, TrialEnded):
            running.discard(event.trial_id)
    return False


def test_the_best_does_not_run_twice_at_the_end():
    def curves(trial_id, config, epoch):
        loss, seconds = {"00000": (0.5, 10.0), "00001": (0.1, 1.0)}[trial_id]
        return {"m": loss, "seconds": seconds if epoch < 2 else 10.0}

    assert not runs_twice(experiment(budget={"trials": 2}), curves, 3)


@pytest.mark.parametrize("seed", range(2, 7))
def test_auto_promotes_nobody_who_runs(seed):
    def curves(trial_id, config, epoch):
        rng = np.random.default_rng([seed, int(trial_id), epoch])
        return {"m": float(rng.random()), "seconds": float(rng.integers(1, 20))}

    described = experiment(
        search={"algorithm": "auto", "seed": seed},
        budget={"epochs": 60 + seed},  # of trials it would not decide
        scheduler={"algorithm": "auto", "min_epochs": 1, "max_epochs": 9, "reduction_factor": 2 + seed % 2},
    )
    assert not runs_twice(described, curves, 8)


@pytest.mark.timeout(5)
def test_a_trainable_that_always_fails_ends_a_budget_of_epochs():
    from trainables.order import Failure

    list(
        simulate(
            experiment(budget={"epochs": 5}),
            lambda *_: Failure(state="failed", reason="import error"),
            gangs=1,
        )
    )
