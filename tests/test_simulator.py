"""Virtual time against timetables worked out by hand, and a run as large as a cluster."""

import math
from itertools import groupby

import pytest

from trainables.order import Failure
from tuning.events import EpochReported, TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.search.proposers import Proposal
from tuning.simulation.simulator import VirtualClock, simulate


def experiment(**changes):
    tree = {
        "name": "virtual",
        "search_space": {"x": {"float": [0, 1]}},
        "objectives": [{"metric": "loss", "mode": "min"}],
        "search": {"algorithm": "random"},
        "scheduler": {"algorithm": "asha", "min_epochs": 1, "max_epochs": 4, "reduction_factor": 2},
        "budget": {"trials": 3},
    }
    return Experiment.from_dict(tree | changes)


class Recorder(list):
    handle = list.append

    def tick(self):
        pass

    def close(self):
        pass


class Numbers:
    """Proposes c = 0, 1, 2, …: what is then known of a trial is its number."""

    def propose(self, number, observed):
        return Proposal({"c": number})


def timetable(*arguments, **options):
    """(when it ended, trial, epoch) of every epoch."""
    return [(e.at_s, int(e.trial_id), e.epoch) for e in simulate(*arguments, **options)]


NO_RUNGS = {"algorithm": "none", "max_epochs": 2}


def test_one_gang_does_one_after_another():
    def curves(trial_id, config, epoch):
        return {"loss": 1.0, "seconds": 10.0 * (int(trial_id) + 1)}

    assert timetable(experiment(scheduler=NO_RUNGS), curves, gangs=1) == [
        (10, 0, 1), (20, 0, 2), (40, 1, 1), (60, 1, 2), (90, 2, 1), (120, 2, 2),
    ]  # fmt: skip


def test_two_gangs_share_the_trials():
    """Trial 0 takes 10 s an epoch, 1 takes 20, 2 takes 30 and starts when 0 is done."""

    def curves(trial_id, config, epoch):
        return {"loss": 1.0, "seconds": 10.0 * (int(trial_id) + 1)}

    assert timetable(experiment(scheduler=NO_RUNGS), curves, gangs=2) == [
        (10, 0, 1), (20, 1, 1), (20, 0, 2), (40, 1, 2), (50, 2, 1), (80, 2, 2),
    ]  # fmt: skip


def test_promotion_in_virtual_time():
    """Rungs after 1 and 2 epochs, one in two goes on; trial 1 is the best, an epoch takes 10 s, 2 gangs.

    10 s: 0 and 1 reach rung 0. When 0 comes it is alone, so 2 starts; when 1 comes, it is promoted.
    20 s: 2 reaches rung 0, where floor(3 / 2) promotions are given, and no trial is left; 1 is alone in
    rung 1, but it is the best and goes on to its end.
    """

    def curves(trial_id, config, epoch):
        return {"loss": [0.5, 0.1, 0.9][int(trial_id)] - 0.01 * epoch, "seconds": 10.0}

    assert timetable(experiment(), curves, gangs=2) == [
        (10, 0, 1), (10, 1, 1), (20, 2, 1), (20, 1, 2), (30, 1, 3), (40, 1, 4),
    ]  # fmt: skip


def test_a_failure_takes_its_epoch_and_frees_the_gang():
    def curves(trial_id, config, epoch):
        if trial_id == "00000" and epoch == 2:
            return Failure(state="diverged", reason="loss is nan")
        return {"loss": 1.0, "seconds": 10.0}

    told = Recorder()
    assert timetable(experiment(scheduler=NO_RUNGS), curves, gangs=1, listeners=[told]) == [
        (10, 0, 1), (21, 1, 1), (31, 1, 2), (41, 2, 1), (51, 2, 2),
    ]  # fmt: skip
    ended = {event.trial_id: event.state for event in told if isinstance(event, TrialEnded)}
    assert ended == {"00000": "diverged", "00001": "completed", "00002": "completed"}


def test_time_is_a_limit_in_virtual_seconds():
    """At 45 s an epoch runs, longer than could be known: it is finished and kept, nothing follows."""

    def curves(trial_id, config, epoch):
        return {"loss": float(trial_id), "seconds": {"00000": 10.0, "00001": 12.0}.get(trial_id, 30.0)}

    limited = experiment(scheduler=NO_RUNGS, budget={"time": 45})
    done = timetable(limited, curves, gangs=2)
    assert done == [(10, 0, 1), (12, 1, 1), (20, 0, 2), (24, 1, 2), (50, 2, 1)]


def test_worker_hours_are_those_of_all_workers_of_a_gang():
    def curves(trial_id, config, epoch):
        return {"loss": 1.0, "seconds": 900.0}

    described = experiment(
        scheduler=NO_RUNGS | {"max_epochs": 1}, budget={"worker_hours": 2}, training={"workers": 2}
    )
    epochs = list(simulate(described, curves, gangs=1))
    assert [epoch.at_s for epoch in epochs] == [900, 1800, 2700, 3600]
    assert all(epoch.metrics["worker_s"] == 1800 for epoch in epochs)


def test_events_bear_virtual_dates():
    told = Recorder()
    curves = {"loss": 1.0, "seconds": 10.0}
    list(simulate(experiment(scheduler=NO_RUNGS), lambda *_: curves, gangs=1, listeners=[told]))
    began = told[0].at
    assert isinstance(told[0], TrialStarted)
    reported = [(event.at - began).total_seconds() for event in told if isinstance(event, EpochReported)]
    assert reported == [10, 20, 30, 40, 50, 60]


def test_a_clock_goes_when_it_is_told():
    clock = VirtualClock()
    before = clock.date()
    clock.now_s = 90.5
    assert clock() == 90.5 and (clock.date() - before).total_seconds() == 90.5


def test_a_given_proposer_is_asked_instead_of_the_experiments_own():
    asked = []

    def curves(trial_id, config, epoch):
        asked.append(config["c"])
        return {"loss": 1.0}

    numbered = experiment(search_space={"c": {"int": [0, 99]}}, scheduler=NO_RUNGS)
    list(simulate(numbered, curves, gangs=1, proposer=Numbers()))
    assert asked == [0, 0, 1, 1, 2, 2]


def test_epochs_come_as_they_end_and_may_be_left_at_any_time():
    simulation = simulate(experiment(budget={"trials": 10**6}), lambda *_: {"loss": 1.0}, gangs=3)
    assert [next(simulation).at_s for _ in range(4)] == [1, 1, 1, 2]


def test_a_nan_at_the_rung_is_a_divergence():
    def curves(trial_id, config, epoch):
        return {"loss": math.nan if trial_id == "00001" else 1.0}

    told = Recorder()
    list(simulate(experiment(), curves, gangs=1, listeners=[told]))
    assert [e.state for e in told if isinstance(e, TrialEnded) and e.trial_id == "00001"] == ["diverged"]


@pytest.mark.parametrize("algorithm", ["asha", "asha_stopping"])
@pytest.mark.timeout(90)
def test_ten_thousand_trials_over_a_thousand_gangs(algorithm):
    def curves(trial_id, config, epoch):
        return {"loss": abs(config["x"] - 0.3) + 1 / epoch, "seconds": 10 + 5 * config["x"]}

    scheduler = {"algorithm": algorithm, "min_epochs": 1, "max_epochs": 9, "reduction_factor": 3}
    described = experiment(scheduler=scheduler, budget={"trials": 10_000})
    epochs = list(simulate(described, curves, gangs=1000))
    times = [epoch.at_s for epoch in epochs]
    assert times == sorted(times)
    done = {}
    for epoch in epochs:
        done[epoch.trial_id] = max(done.get(epoch.trial_id, 0), epoch.epoch)
    reached = [sum(last >= level for last in done.values()) for level in (1, 2, 4, 9)]
    assert reached[0] == 10_000
    if algorithm == "asha":  # and at most the best trial goes on without a promotion
        assert 10_000 // 3 <= reached[1] <= 10_000 // 3 + 1
        assert 10_000 // 9 <= reached[2] <= 10_000 // 9 + 1
        assert reached[3] >= 10_000 // 9
    best = min(epochs, key=lambda epoch: epoch.metrics["loss"])
    assert best.epoch == 9 and abs(best.config["x"] - 0.3) < 0.01
    busy = [sum(1 for _ in group) for _, group in groupby(int(time // 20) for time in times)]
    assert min(busy[1:5]) >= 1000  # no gang is idle while trials are left
