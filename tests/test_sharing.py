"""What several experiments get of one cluster."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tuning.gangs.resources import GangPlan, Room, gangs_that_fit
from tuning.gangs.sharing import Claim, fair_gangs


def claim(name, *, priority=1.0, most=float("inf"), workers=1, cpus=1, gpus=0.0):
    plan = GangPlan(
        gangs=1, most_gangs=most, asked_gangs=1, workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus
    )
    return Claim(name=name, plan=plan, priority=priority)


def shares(claims, *nodes):
    return tuple(fair_gangs(claims, nodes).values())


def test_alone_an_experiment_has_all():
    assert shares([claim("a", workers=2)], {"CPU": 3.0}, {"CPU": 4.0}) == (3,)
    assert shares([claim("a", most=2)], {"CPU": 8.0}) == (2,)


def test_two_share_by_priority():
    assert shares([claim("a"), claim("b")], {"CPU": 8.0}) == (4, 4)
    assert shares([claim("a", priority=3.0), claim("b")], {"CPU": 8.0}) == (6, 2)
    assert shares([claim("a"), claim("b"), claim("c")], {"CPU": 2.0}) == (1, 1, 0)


def test_what_counts_is_the_share_of_the_cluster_and_not_the_number_of_gangs():
    assert shares([claim("a", workers=2), claim("b")], {"CPU": 8.0}) == (2, 4)


def test_the_least_of_priorities_has_a_first_gang():
    assert shares([claim("a", priority=100.0), claim("b", priority=0.01)], {"CPU": 4.0}) == (3, 1)


def test_what_one_cannot_use_is_the_others():
    assert shares([claim("a", most=1), claim("b")], {"CPU": 8.0}) == (1, 7)
    gpus_and_cores = [claim("a", gpus=1.0), claim("b")]
    assert shares(gpus_and_cores, {"CPU": 2.0, "GPU": 2.0}, {"CPU": 6.0}) == (1, 7), "of node 1, each a core"


def test_who_does_not_fit_is_in_nobodys_way():
    assert shares([claim("a", cpus=9), claim("b")], {"CPU": 8.0}) == (0, 8)
    assert shares([claim("a", gpus=1.0)], {"CPU": 8.0}) == (0,)
    assert shares([claim("a")]) == (0,)


CLAIMS = st.lists(
    st.builds(
        claim,
        name=st.integers(0, 99).map(str),
        priority=st.sampled_from([0.5, 1.0, 3.0]),
        most=st.sampled_from([1, 2, float("inf")]),
        workers=st.integers(1, 3),
        cpus=st.integers(1, 3),
        gpus=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    max_size=4,
    unique_by=lambda claim: claim.name,
)
NODES = st.lists(
    st.builds(lambda c, g: {"CPU": float(c), "GPU": float(g)}, st.integers(0, 9), st.integers(0, 3)),
    min_size=1,
    max_size=3,
)


@settings(deadline=None, max_examples=200)
@given(claims=CLAIMS, nodes=NODES)
def test_nothing_is_left_that_somebody_could_use_and_all_of_it_fits_at_once(claims, nodes):
    found = fair_gangs(claims, nodes)
    assert found == {name: fair_gangs(claims[::-1], nodes)[name] for name in found}, "everybody agrees"
    assert all(found[each.name] <= each.plan.most_gangs for each in claims)
    used = sum(found[each.name] * each.plan.workers * each.plan.cpus_per_worker for each in claims)
    assert used <= sum(node["CPU"] for node in nodes)
    for each in claims:
        assert found[each.name] <= gangs_that_fit(each.plan, nodes)
    if len(claims) == 1 and claims[0].plan.most_gangs > 9:
        room, (only,) = Room(nodes), claims
        for _ in range(found[only.name]):
            assert room.take(only.plan)
        assert not room.take(only.plan)
