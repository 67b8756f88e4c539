"""Which gangs there are and whose: lent only while they serve, as many as allowed, none started in vain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning.gangs.roster import Roster


@pytest.fixture
def roster():
    """Three gangs that serve, as many as are allowed."""
    made = Roster()
    assert made.resize(3) == (3, [])
    for name in "abc":
        made.add(name)
        made.hear(name, "serving")
    return made


def test_a_gang_is_lent_from_when_it_has_room():
    roster = Roster()
    roster.resize(1)
    roster.add("a")
    assert not roster.any_free and not roster.placed
    roster.hear("a", "starting")
    assert roster.placed and roster.any_free and roster.serving == 0
    roster.hear("a", "serving")
    assert roster.serving == 1
    assert roster.any_free and roster.lend("one", "00000") == "a"
    assert not roster.any_free and roster.lent
    assert roster.take_back("two") is None
    assert roster.take_back("one") == "a" and roster.any_free


def test_one_that_serves_is_lent_before_one_that_still_starts(roster):
    roster.hear("a", "starting")
    assert [roster.lend(run, "00000") for run in ("one", "two", "three")] == ["b", "c", "a"]


def test_a_gang_without_workers_is_not_lent_but_stays_whose_it_is(roster):
    assert roster.lend("one", "00000") == "a"
    roster.hear("a", "waiting")
    assert [roster.lend("two", "00000"), roster.lend("three", "00000")] == ["b", "c"]
    assert roster.take_back("one") == "a" and not roster.any_free


def test_of_too_many_gangs_those_that_wait_go_first_then_the_youngest(roster):
    roster.lend("one", "00000")
    roster.hear("b", "waiting")
    assert roster.resize(2) == (0, ["b"])
    assert roster.resize(1) == (0, ["c"])
    assert roster.resize(1) == (0, [])


def test_a_closed_gang_does_not_cost_another_when_fewer_may_be(roster):
    roster.lend("one", "00000")
    roster.close("a")
    assert roster.resize(3) == (0, []), "nothing takes its place"
    assert roster.resize(1) == (0, ["c"]) and not roster.none_left
    assert roster.resize(1) == (0, [])


def test_a_gang_too_many_leaves_when_its_trial_does(roster):
    for run in ("one", "two", "three"):
        roster.lend(run, "00000")
    assert roster.resize(1) == (0, [])
    assert roster.take_back("one") == "a" and not roster.any_free, "it is given back, not lent again"
    assert roster.resize(1) == (0, ["a"])
    roster.take_back("two")
    assert roster.resize(1) == (0, ["b"])
    roster.take_back("three")
    assert roster.any_free and roster.resize(1) == (0, [])


def test_another_is_started_only_where_all_are_in_use(roster):
    assert roster.resize(5) == (0, []), "a, b and c have nothing to do"
    for run in ("one", "two", "three"):
        assert roster.any_free
        roster.lend(run, "00000")
    assert not roster.any_free
    roster.take_back("one")
    assert roster.resize(5) == (2, []), "one was missed, if only for a moment"


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["lend", "back", "hear", "resize"]), st.integers(0, 5), st.booleans()))
)
def test_no_gang_has_two_trials_and_there_are_never_too_many_for_long(steps):
    roster, alive, has, allowed, named = Roster(), [], {}, 0, 0
    for step, number, good in steps:
        if step == "resize":
            allowed = number
            start, ended = roster.resize(allowed)
            assert not set(ended) & set(has.values()), "a trial's gang was ended"
            alive = [name for name in alive if name not in ended]
            assert len(alive) + start <= max(allowed, len(alive))
            assert len(alive) <= max(allowed, len(has)), "an idle gang too many stayed"
            for _ in range(start):
                named += 1
                roster.add(f"g{named}")
                alive.append(f"g{named}")
        elif step == "hear" and alive:
            roster.hear(alive[number % len(alive)], "serving" if good else "waiting")
        elif step == "lend" and roster.any_free:
            name = roster.lend(f"run-{len(has)}-{number}", "00000")
            assert name in alive and name not in has.values()
            has[f"run-{len(has)}-{number}"] = name
            assert len(has) <= allowed
        elif step == "back" and has:
            run = sorted(has)[number % len(has)]
            assert roster.take_back(run) == has.pop(run)
