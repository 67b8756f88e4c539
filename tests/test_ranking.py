"""Ranking against brute force: dominance pair by pair, hypervolumes by counting cells."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.search.ranking import Standing, best_first, dominated, front, hypervolume, pareto_order

few = st.integers(0, 4).map(float)  # so that ties and dominance are frequent
some_points = st.integers(2, 3).flatmap(
    lambda objectives: st.lists(st.tuples(*[few] * objectives), min_size=1, max_size=9)
)
strange = st.sampled_from([math.nan, math.inf, -math.inf])
violations = st.sampled_from([0.0, 0.0, 0.5, 2.0, math.inf])


def standings(objectives):
    losses = st.tuples(*[st.one_of(few, few, few, strange)] * objectives)
    return st.lists(st.builds(Standing, losses, violations), max_size=9)


any_standings = st.integers(1, 3).flatmap(standings)


def beats(a, b):
    """Pareto dominance, by its definition."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def ranks_by_definition(points):
    """0 for those whom none dominates, 1 for those whom only these dominate, and so on."""
    ranks, left = {}, set(range(len(points)))
    while left:
        best = {i for i in left if not any(beats(points[j], points[i]) for j in left)}
        ranks |= dict.fromkeys(best, max(ranks.values(), default=-1) + 1)
        left -= best
    return [ranks[i] for i in range(len(points))]


def volume_by_cells(points, reference):
    """Exact: the space is cut at every coordinate, and a cell counts where a point is below it."""
    axes = [sorted({*(min(p[k], r) for p in points), r}) for k, r in enumerate(reference)]
    total = 0.0
    for cell in itertools.product(*(list(itertools.pairwise(axis)) for axis in axes)):
        if any(all(p[k] <= low for k, (low, _) in enumerate(cell)) for p in points):
            total += math.prod(high - low for low, high in cell)
    return total


def contributions_by_definition(points, members):
    """What the hypervolume of `members` would lose without each, as `pareto_order` scales."""
    array = np.array(points)
    low, span = array.min(axis=0), np.ptp(array, axis=0)
    scaled = [tuple(row) for row in (array - low) / np.where(span > 0, span, 1.0)]
    reference = (1.1,) * array.shape[1]
    whole = volume_by_cells([scaled[m] for m in members], reference)
    return {
        m: whole - volume_by_cells([scaled[other] for other in members if other != m], reference)
        for m in members
    }


@given(some_points)
def test_the_order_is_by_front_then_by_contribution_then_by_arrival(points):
    order = pareto_order(np.array(points))
    assert sorted(order) == list(range(len(points)))
    ranks = ranks_by_definition(points)
    assert [ranks[i] for i in order] == sorted(ranks)
    for rank in set(ranks):
        members = [i for i in order if ranks[i] == rank]
        lost = contributions_by_definition(points, members)
        for one, next_one in itertools.pairwise(members):
            assert lost[one] >= lost[next_one] - 1e-9
            if points[one] == points[next_one]:
                assert one < next_one


@given(some_points, st.floats(0.01, 100), st.floats(-100, 100))
def test_no_unit_decides(points, scale, shift):
    factors = np.array([scale, *[1.0] * (len(points[0]) - 1)])
    turned = np.array(points) * factors + shift
    clear = {round(v, 6) for v in contributions_by_definition(points, range(len(points))).values()}
    if len(clear) == len(points):  # else rounding may part what is equal
        assert pareto_order(turned) == pareto_order(np.array(points))


@given(some_points)
def test_the_front_is_whom_nobody_dominates_of_equals_the_first(points):
    expected = [
        not any(beats(other, point) for other in points) and point not in points[:index]
        for index, point in enumerate(points)
    ]
    assert front(points).tolist() == expected


def test_the_front_of_nothing_is_empty():
    assert front([]).tolist() == [] and front(np.zeros((0, 2))).shape == (0,)
    assert pareto_order(np.zeros((0, 2))) == [] and best_first([]) == []
    assert hypervolume([], (1.0, 1.0)) == 0.0


@given(some_points, st.integers(0, 5))
def test_hypervolume_by_counting_cells(points, corner):
    reference = (float(corner),) * len(points[0])
    assert hypervolume(points, reference) == pytest.approx(volume_by_cells(points, reference))


def test_hypervolume_by_hand():
    assert hypervolume([(1, 3), (2, 1), (3, 3)], (4, 4)) == 3 * 1 + 2 * 2 + 0 * 9
    assert hypervolume([(5, 0), (0, 5)], (4, 4)) == 0.0  # beyond the reference in one objective


@given(any_standings)
def test_the_order_of_standings(given):
    order = best_first(given)
    assert sorted(order) == list(range(len(given)))
    classes = [
        2 if not given[i].finite else 1 if given[i].violation > 0 else 0 for i in order
    ]  # feasible, infeasible, not comparable
    assert classes == sorted(classes)
    kept, broken, lost = ([i for i, c in zip(order, classes, strict=True) if c == k] for k in range(3))
    assert [given[i].violation for i in broken] == sorted(given[i].violation for i in broken)
    assert lost == sorted(lost)
    if kept and len(given[kept[0]].losses) == 1:
        assert kept == sorted(kept, key=lambda i: (given[i].losses[0], i))
    elif kept:
        in_place = sorted(kept)
        places = pareto_order(np.array([given[i].losses for i in in_place]))
        assert kept == [in_place[place] for place in places]


@given(standings(2))
def test_dominated_by_definition(given):
    for index, one in enumerate(given):
        others = given[:index] + given[index + 1 :]
        expected = any(
            other.violation < one.violation
            or (
                other.violation == one.violation
                and (other.losses == one.losses or beats(other.losses, one.losses))
            )
            for other in others
            if not any(map(math.isnan, other.losses + one.losses))
        )
        if one.finite and all(other.finite for other in others):
            assert dominated(one, others) == expected


def test_who_is_dominated_by_example():
    assert dominated(Standing((1.0, 1.0)), [Standing((1.0, 1.0))])  # an equal is as good
    assert not dominated(Standing((0.0, 1.0)), [Standing((1.0, 0.0))])
    assert dominated(Standing((0.0, 0.0), violation=0.1), [Standing((9.0, 9.0))])
    assert not dominated(Standing((9.0, 9.0)), [Standing((0.0, 0.0), violation=0.1)])
    assert not dominated(Standing((9.0, 9.0)), [])


@pytest.mark.parametrize(
    ("standing", "finite"),
    [
        (Standing((1.0,)), True),
        (
            Standing((1.0,), violation=math.inf),
            True,
        ),  # its constrained figure is missing: the last, but there
        (Standing((1.0,), violation=math.nan), False),
        (Standing((math.nan,)), False),
        (Standing((1.0, -math.inf)), False),
    ],
)
def test_what_can_be_compared(standing, finite):
    assert standing.finite == finite
    assert best_first([standing, Standing((9.0,) * len(standing.losses), violation=99.0)]) == (
        [1, 0] if not finite or standing.violation == math.inf else [0, 1]
    )


def test_a_thousand_points_of_two_objectives_are_ranked_in_one_go():
    rng = np.random.default_rng(0)
    points = rng.random((1000, 2))
    order = pareto_order(points)
    best = {tuple(row) for row in points[front(points)]}
    assert {tuple(points[i]) for i in order[: len(best)]} == best


def test_of_many_objectives_whoever_is_far_from_others_is_first():
    """By hand, on a line: the best in one of two objectives is 1 from what would be better, the worst 0."""
    line = [0.9, 0.5, 1.0, 0.0]
    assert pareto_order(np.array([(t, 1 - t, 0.0, 0.0, 0.0) for t in line])) == [3, 1, 2, 0]


def test_three_hundred_points_of_many_objectives_take_no_time():
    points = np.random.default_rng(0).standard_normal((300, 7))
    points -= points.mean(axis=1, keepdims=True)
    assert front(points).all()
    assert sorted(pareto_order(points)) == list(range(300))
