"""What is asked of an autoscaler: what is missing, once, and given back when it is found."""

from types import SimpleNamespace

import pytest
from ray import JobID, PlacementGroupID

from tuning.gangs import demand
from tuning.gangs.demand import REST_S, Demand
from tuning.gangs.resources import GangPlan


class Group:
    found = False

    def __init__(self, bundles, strategy, name):
        self.bundles, self.name, self.id = bundles, name, PlacementGroupID.of(JobID.from_int(1))


@pytest.fixture
def ray(monkeypatch):
    """Groups that are asked for, and a clock that only stands."""
    known = SimpleNamespace(groups=[], now=100.0)

    def make(bundles, strategy, name):
        assert name not in [each.name for each in known.groups], "Ray refuses a name twice"
        known.groups.append(Group(bundles, strategy, name))
        return known.groups[-1]

    def table():
        return {each.id.hex(): {"state": "CREATED" if each.found else "PENDING"} for each in known.groups}

    monkeypatch.setattr(demand, "placement_group_table", table)
    monkeypatch.setattr(demand, "placement_group", make)
    monkeypatch.setattr(demand, "remove_placement_group", known.groups.remove)
    monkeypatch.setattr(demand.time, "monotonic", lambda: known.now)
    return known


@pytest.fixture
def asking(ray):
    plan = GangPlan(gangs=1, most_gangs=9, asked_gangs=4, workers=2, cpus_per_worker=3, gpus_per_worker=1.0)
    return Demand("birds", plan)


def test_each_gang_is_asked_for_once(ray, asking):
    for _ in range(3):
        asking.ask(2)
    assert [group.bundles for group in ray.groups] == [[{"CPU": 3.0, "GPU": 1.0}] * 2] * 2


def test_what_is_not_wanted_any_more_is_taken_back(ray, asking):
    asking.ask(3)
    first = ray.groups[0]
    asking.ask(1)
    assert ray.groups == [first]
    asking.close()
    assert ray.groups == []


def test_what_is_found_is_for_gangs_and_for_a_while_nothing_is_asked_for(ray, asking):
    asking.ask(3)
    ray.groups[1].found = True
    asking.ask(3)
    assert ray.groups == [], "another of them would take that room"
    asking.ask(3)
    assert ray.groups == []
    ray.now += REST_S
    asking.ask(3)
    assert len(ray.groups) == 3, "a gang did not get it, or somebody else did"
