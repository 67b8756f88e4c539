"""Results at a rung as they arrive, against sorting all of them every time."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.search import arrivals as module
from tuning.search.arrivals import Arrivals
from tuning.search.ranking import Standing, best_first

#: Few different figures, so that many are equal; some break a constraint, by as few different amounts.
standings = st.sampled_from([1, 2, 3, 5]).flatmap(
    lambda objectives: st.lists(
        st.builds(
            Standing,
            st.tuples(*[st.integers(0, 3).map(float)] * objectives),
            st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, float("inf")]),
        ),
        min_size=1,
        max_size=20,
    )
)


@given(standings)
def test_the_last_is_where_sorting_would_put_it(given):
    arrivals = Arrivals()
    for count, standing in enumerate(given, start=1):
        assert arrivals.add(standing) == count - 1
        assert arrivals.place_of_last() == best_first(given[:count]).index(count - 1)
    assert len(arrivals) == len(given)


@given(standings, st.randoms(use_true_random=False))
def test_the_best_is_the_first_of_the_free_in_the_order_of_all(given, chance):
    arrivals, free = Arrivals(), set()
    for count, standing in enumerate(given, start=1):
        free.add(arrivals.add(standing))
        if chance.random() < 0.3:
            lost = chance.randrange(count)
            arrivals.take(lost)
            free.discard(lost)
        if chance.random() < 0.5:
            expected = next((index for index in best_first(given[:count]) if index in free), None)
            assert arrivals.take_best() == expected
            free.discard(expected)
    rest = [index for index in best_first(given) if index in free]
    assert list(iter(arrivals.take_best, None)) == rest


@pytest.mark.parametrize("objectives", [1, 2])
def test_thousands_are_not_sorted_for_each(objectives, monkeypatch):
    """Of several objectives, contributions are worked out for one front each time, never for all."""
    worked_out, original = [], module.contributions
    monkeypatch.setattr(
        module, "contributions", lambda scaled: (worked_out.append(len(scaled)), original(scaled))[1]
    )
    arrivals, rng = Arrivals(), random.Random(0)
    for _ in range(2000):
        arrivals.add(Standing(tuple(rng.random() for _ in range(objectives))))
        arrivals.take_best()
    assert len(worked_out) == (2000 if objectives == 2 else 0)
    assert max(worked_out, default=0) < 100
