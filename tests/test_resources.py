"""How many gangs fit on nodes, against a search through all placements."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning.gangs.resources import GangPlan, Room, gangs_that_fit, nodes_text


def plan(workers=1, cpus=1, gpus=0.0):
    return GangPlan(
        gangs=1, most_gangs=99, asked_gangs=1, workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus
    )


def most_workers(cpus, gpus, each):
    """The most workers that one node holds, by trying each GPU for each; `gpus` are tenths that are free."""
    if cpus < each.cpus_per_worker:
        return 0
    if not each.gpus_per_worker:
        return 1 + most_workers(cpus - each.cpus_per_worker, gpus, each)
    tenths, best = round(each.gpus_per_worker * 10), 0
    if tenths < 10:
        for index, free in enumerate(gpus):
            if free >= tenths:
                left = (*gpus[:index], free - tenths, *gpus[index + 1 :])
                best = max(best, 1 + most_workers(cpus - each.cpus_per_worker, left, each))
    elif gpus.count(10) >= tenths // 10:
        best = 1 + most_workers(cpus - each.cpus_per_worker, gpus[: len(gpus) - tenths // 10], each)
    return best


@settings(deadline=None, max_examples=150)
@given(
    nodes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=4),
    each=st.builds(
        plan,
        workers=st.integers(1, 3),
        cpus=st.integers(1, 3),
        gpus=st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.0]),
    ),
)
def test_as_many_gangs_are_taken_as_fit_and_no_more(nodes, each):
    cluster = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes]
    expected = sum(most_workers(cpus, (10,) * gpus, each) for cpus, gpus in nodes) // each.workers
    assert gangs_that_fit(each, cluster) == expected
    room, taken = Room(cluster), 0
    while room.take(each):
        taken += 1
    assert taken == expected


def test_a_gang_is_taken_from_one_node_where_it_fits_the_fullest_that_will_do():
    room = Room([{"CPU": 1.0}, {"CPU": 4.0}, {"CPU": 2.0}])
    assert room.take(plan(workers=2))
    assert room.workers(plan()) == [1, 4, 0]
    assert room.take(plan(workers=5)), "no node has as many: it is spread"
    assert room.workers(plan()) == [0, 0, 0]
    assert not room.take(plan())


def test_gangs_of_different_kinds_share_nodes_and_gpus():
    room = Room([{"CPU": 8.0, "GPU": 2.0}])
    assert room.take(plan(gpus=0.5))
    assert room.workers(plan(gpus=1.0)) == [1], "the other GPU is whole"
    assert room.take(plan(gpus=0.5)) and room.workers(plan(gpus=1.0)) == [1], "both halves are of one GPU"
    assert room.take(plan(gpus=1.0)) and not room.take(plan(gpus=0.5))
    assert room.workers(plan(cpus=5)) == [1]


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([{"CPU": 2.0, "memory": 1.0}], "2 CPU"),
        ([{"CPU": 2.0}, {"CPU": 2.0}], "nodes: 2 of 2 CPU"),
        ([], "nodes: none"),
    ],
)
def test_nodes_in_words(nodes, text):
    assert nodes_text(nodes) == text
