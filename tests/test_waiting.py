"""Waiting for a cluster to grow: in virtual time, and with Ray's own list of what is asked for."""

from types import SimpleNamespace

import pytest

from tuning.experiment import Experiment, TooLarge
from tuning.gangs import waiting
from tuning.gangs.resources import NoRoom
from tuning.gangs.waiting import plan_in_time


def experiment(**training):
    return Experiment.from_dict(
        {
            "name": "large",
            "trainable": "curves",
            "search_space": {"learning_rate": {"float": [1e-4, 1e-1]}},
            "objectives": [{"metric": "score", "mode": "max"}],
            "budget": {"trials": 8},
            "training": {"workers": 3} | training,
        }
    )


@pytest.fixture
def growing(monkeypatch):
    """One node with two cores; another joins after `joins_s` seconds of a clock that only sleep moves."""
    now = SimpleNamespace(s=0.0, joins_s=float("inf"))

    def sleep(seconds):
        now.s += seconds

    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now.s, sleep=sleep))
    monkeypatch.setattr(waiting, "alive_nodes", lambda: [{"CPU": 2.0}] * (2 if now.s >= now.joins_s else 1))
    nobody = SimpleNamespace(ask=lambda gangs: None, close=lambda: None)
    monkeypatch.setattr("tuning.gangs.demand.Demand", lambda name, plan: nobody)
    return now


def test_without_the_key_nothing_is_waited_for(growing):
    with pytest.raises(TooLarge):
        plan_in_time(experiment(), print)
    assert growing.s == 0


def test_it_says_for_what_and_how_long_it_waits_until_a_node_joins(growing):
    growing.joins_s, lines = 65.0, []
    plan = plan_in_time(experiment(wait_for_resources="10m"), lines.append)
    assert plan.gangs == 1 and 65 <= growing.s < 70
    wanted = "waiting for room for 1 gang of 3 workers with 1 CPU each"
    assert lines == [f"{wanted}: {s} of 10:00, the cluster has 2 CPU" for s in ("0 s", "30 s", "1:00")]


def test_the_wait_ends_with_the_reason(growing):
    with pytest.raises(NoRoom) as error:
        plan_in_time(experiment(wait_for_resources=45, gangs=1), lambda line: None)
    assert str(error.value) == (
        "training.workers: got 3: 3 workers with 1 CPU each do not fit on the cluster (2 CPU); "
        "the largest possible value is 2; waited 45 s for it to grow"
    )
    assert growing.s == 45


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ray_is_asked_for_what_is_missing_and_the_question_is_taken_back(cluster):
    from ray.util import placement_group_table

    def asked():
        return [
            list(group["bundles"].values())
            for group in placement_group_table().values()
            if group["state"] == "PENDING"
        ]

    seen = []
    with pytest.raises(NoRoom):
        plan_in_time(experiment(wait_for_resources=1, gangs=2), lambda line: seen.extend(asked()))
    assert seen == [[{"CPU": 1.0}] * 3] * 2
    assert asked() == []
