"""The front goes on, once all were at the rung: by hand, against brute force, replayed, in a whole search."""

import math
import random

import pytest
from recorded import describe

from tuning.experiment import ExperimentError
from tuning.search.front_scheduler import FrontScheduler
from tuning.search.ranking import Standing
from tuning.search.strategies import make_scheduler
from tuning.simulation.scheduler_comparison import fitting
from tuning.simulation.simulator import simulate


def promotions(scheduler):
    return [trial_id for trial_id, _ in iter(scheduler.next_promotion, None)]


def at(*losses, violation=0.0):
    return Standing(losses, violation)


def test_nothing_goes_on_before_all_were_there():
    scheduler = FrontScheduler(rung=1, expected=4)
    assert scheduler.report("a", 1, at(1, 4)).action == "pause"
    scheduler.report("b", 1, at(2, 2))
    scheduler.report("c", 1, at(3, 3))  # b is better in both
    assert promotions(scheduler) == [] and scheduler.next_stop() is None
    scheduler.report("d", 1, at(4, 1))
    assert scheduler.next_stop() == ("c", "rung 0: another beats it")
    scheduler.drop("c")
    assert scheduler.next_stop() is None
    assert set(promotions(scheduler)) == {"a", "b", "d"}
    assert promotions(scheduler) == []


def test_who_is_over_before_the_rung_is_not_waited_for():
    scheduler = FrontScheduler(rung=1, expected=3)
    scheduler.report("a", 1, at(1, 1))
    scheduler.drop("b")
    assert promotions(scheduler) == []
    assert scheduler.report("c", 1, at(math.nan, 0)).action == "stop"
    scheduler.drop("c")
    assert promotions(scheduler) == ["a"]


def test_what_is_complete_is_compared_and_does_not_go_on():
    scheduler = FrontScheduler(rung=1, expected=3, complete={"a"})
    assert scheduler.report("a", 1, at(1, 1)).action == "stop"
    scheduler.drop("a")
    scheduler.report("b", 1, at(2, 2))
    scheduler.report("c", 1, at(0, 3))
    assert promotions(scheduler) == ["c"]


def test_what_is_not_trained_yet_goes_on_after_the_front_and_beats_nobody():
    scheduler = FrontScheduler(rung=1, expected=4, untrained={"b", "d"})
    scheduler.report("a", 1, at(1, 4))
    assert scheduler.report("b", 1, at(9, 4)).action == "pause"
    scheduler.report("c", 1, at(2, 5))
    assert scheduler.report("d", 1, at(0, 0)).action == "pause"
    assert scheduler.next_stop() == ("c", "rung 0: another beats it")
    assert promotions(scheduler) == ["a", "b", "d"]
    scheduler.drop("c")
    assert scheduler.next_stop() is None


def test_constraints_come_first_and_of_equals_the_first_that_came():
    scheduler = FrontScheduler(rung=1, expected=4)
    scheduler.report("a", 1, at(0, 0, violation=0.5))
    for name in "bcd":
        scheduler.report(name, 1, at(5, 5 if name != "d" else 6))
    assert promotions(scheduler) == ["b"]


def test_without_a_rung_nothing_is_paused():
    scheduler = FrontScheduler(rung=None, expected=1)
    assert scheduler.report("a", 1, at(1, 1)).action == "continue"
    assert promotions(scheduler) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_that_of_brute_force_and_a_replay_goes_on_where_it_was(seed):
    rng = random.Random(seed)
    losses = {f"t{i}": (rng.randint(0, 6), rng.randint(0, 6)) for i in range(12)}
    front = {
        losses[name]
        for name in losses
        if not any(
            other != losses[name] and all(o <= s for o, s in zip(other, losses[name], strict=True))
            for other in losses.values()
        )
    }
    scheduler, again = (FrontScheduler(rung=1, expected=12) for _ in range(2))
    for name in losses:
        scheduler.report(name, 1, at(*losses[name]))
    order = promotions(scheduler)
    assert len(order) == len(front) and {losses[name] for name in order} == front
    done = order[: len(order) // 2]
    for name in losses:
        again.report(name, 1, at(*losses[name]))
    for name in done:
        again.report(name, 2, at(*losses[name]))
    assert promotions(again) == order[len(done) :]


SEVERAL = [{"metric": "score", "mode": "max"}, {"metric": "learning_rate", "mode": "min"}]


def test_a_whole_search_trains_the_front_and_nobody_else(tmp_path):
    experiment = describe(
        tmp_path,
        objectives=SEVERAL,
        scheduler={"algorithm": "front", "min_epochs": 1, "max_epochs": 5},
        budget={"trials": 9},
    )

    def curves(trial_id, config, epoch):
        return {
            "score": config["learning_rate"] * (int(trial_id) % 2),
            "learning_rate": config["learning_rate"],
        }

    done = list(simulate(experiment, curves, gangs=4))
    first = {each.trial_id: each.metrics for each in done if each.epoch == 1}
    assert len(first) == 9
    assert experiment.full_epochs() == {1, 5}
    assert {each.epoch for each in done[:9]} == {1}, "nobody goes on before all came, on a free gang either"
    reached = {each.trial_id for each in done if each.epoch == 5}
    expected = {
        name
        for name, mine in first.items()
        if not any(
            other["score"] >= mine["score"]
            and other["learning_rate"] <= mine["learning_rate"]
            and other != mine
            for other in first.values()
        )
    }
    assert reached == expected and 1 < len(expected) < 9


def test_it_needs_a_number_of_trials_and_fits_where_objectives_are_several(tmp_path):
    with pytest.raises(ExperimentError, match="scheduler.algorithm: got 'front': needs `budget.trials`"):
        describe(tmp_path, scheduler={"algorithm": "front"}, budget={"time": "1h"})
    assert "front" not in fitting(describe(tmp_path), replay=False)
    assert "front" in fitting(describe(tmp_path, objectives=SEVERAL), replay=False)


def test_a_grid_that_is_smaller_than_the_budget_is_all_that_is_waited_for(tmp_path):
    scheduler = make_scheduler(
        describe(
            tmp_path,
            search_space={"learning_rate": {"choice": [0.1, 0.2]}},
            search={"algorithm": "grid"},
            scheduler={"algorithm": "front", "min_epochs": 1},
        )
    )
    scheduler.report("a", 1, at(1.0))
    assert promotions(scheduler) == []
    scheduler.report("b", 1, at(2.0))
    assert promotions(scheduler) == ["a"]
