"""Budgets: what is counted, when a run may not go on, and what is left."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.experiment import Budget
from tuning.search.budget import BudgetGuard


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def guard(clock=None, *, workers=1, gangs=1, **limits):
    return BudgetGuard(Budget(**limits), workers=workers, gangs=gangs, clock=clock or Clock())


def test_trials_are_counted_and_let_what_runs_go_on():
    budget = guard(trials=2)
    assert budget.may_start and budget.why_exhausted == "" and budget.time_left_s is None
    budget.count_trial()
    assert budget.may_start
    budget.count_trial()
    assert not budget.may_start and not budget.exhausted and budget.epochs_left == math.inf
    assert budget.why_exhausted == "all 2 trials of the budget have started"


def test_time_runs_from_when_the_guard_was_built():
    clock = Clock()
    budget = guard(clock, time="1m")
    clock.now += 59
    assert budget.may_start and budget.time_left_s == 1
    clock.now += 2
    assert budget.exhausted and not budget.may_start and budget.time_left_s == 0
    assert budget.why_exhausted == "the budget's 60 s are over"


def test_whichever_limit_comes_first_ends_it():
    budget = guard(trials=1, time=60, epochs=2)
    budget.count_trial()
    assert not budget.may_start and not budget.exhausted and budget.time_left_s == 60
    budget.count_epoch(1.0, 1.0)
    budget.count_epoch(1.0, 1.0)
    assert budget.exhausted and budget.why_exhausted == "all 2 epochs of the budget are spent"


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"epochs": 3}, "all 3 epochs of the budget are spent"),
        ({"worker_hours": 1.5}, "1.5 worker-hours are spent, the budget has 1.5"),
        ({"money": 3, "price_per_hour": 2}, "3 is spent, the budget's money is 3"),
        ({"money": 2.5, "price_per_hour": 2}, "3 is spent, the budget's money is 2.5"),
    ],
)
def test_epochs_hours_and_money_are_spent_by_epochs(limits, why):
    budget = guard(**limits)
    for _ in range(2):  # half an hour of work each
        budget.count_epoch(1800.0, 900.0)
        assert budget.may_start and not budget.exhausted and budget.why_exhausted == ""
    budget.count_epoch(1800.0, 900.0)
    assert budget.exhausted and not budget.may_start and budget.epochs_left == 0
    assert budget.why_exhausted == why


def test_the_cost_is_shown_without_a_limit_on_it():
    budget = guard(trials=1, price_per_hour=4)
    budget.count_epoch(900.0, 900.0)
    assert budget.cost == 1.0 and not budget.exhausted
    assert guard(trials=1).cost is None


def test_a_plateau_is_a_row_of_trials_without_gain():
    budget = guard(trials=99, plateau=3)
    for improved in (False, False, True, False, False):
        budget.trial_over(improved)
        assert budget.may_start
    budget.trial_over(False)
    for improved in (False, True):  # the second: the best trial, which goes on to its end
        assert not budget.may_start and not budget.exhausted and budget.epochs_left == 0
        assert not budget.has_room_for(0, 0)
        assert budget.why_exhausted == "3 trials in a row brought nothing better, budget.plateau is reached"
        budget.trial_over(improved)


def test_failures_are_epochs_but_say_nothing_of_what_an_epoch_takes():
    clock = Clock()
    budget = guard(clock, epochs=100, time=600, worker_hours=1)
    for _ in range(10):
        budget.count_epoch(worker_s=60.0, seconds=60.0)
        budget.count_failure()
        clock.now += 30.0
    assert budget.epochs == 20
    assert budget.epochs_left == pytest.approx(5), "300 s are left"
    assert budget.has_room_for(4, 0) and not budget.has_room_for(5, 0)


def test_epochs_left_are_the_fewest_that_any_limit_allows():
    clock = Clock()
    budget = guard(clock, gangs=3, workers=2, epochs=100, worker_hours=1, time=600)
    assert budget.epochs_left == 100  # before the first epoch nothing is known of the others
    assert budget.time_left_s == 600  # an hour of work is over in 600 s when 6 workers do it
    budget.count_epoch(worker_s=60.0, seconds=30.0)
    assert budget.epochs_left == pytest.approx(59)  # of the hour; time allows 60
    assert budget.time_left_s == pytest.approx(3540 / 6)
    clock.now += 500
    assert budget.epochs_left == pytest.approx(10)  # of the time: 100 s by 3 gangs at 30 s
    assert guard(money=10, price_per_hour=5).epochs_left == math.inf


amounts = st.floats(0, 1e5, allow_nan=False)
limits = st.fixed_dictionaries(
    {},
    optional={
        "trials": st.integers(1, 9),
        "epochs": st.integers(1, 9),
        "time": st.floats(1, 1e4),
        "worker_hours": st.floats(0.01, 50),
        "plateau": st.integers(1, 9),
    },
).map(lambda given: {"price_per_hour": 2.0, "money": 30.0, **given})
happenings = st.lists(
    st.one_of(
        st.just(("trial",)),
        st.tuples(st.just("epoch"), amounts, amounts),
        st.tuples(st.just("over"), st.booleans()),
        st.tuples(st.just("wait"), st.floats(0, 2e3)),
    ),
    max_size=30,
)


def happen(budget, clock, event):
    kind, *figures = event
    if kind == "trial":
        budget.count_trial()
    elif kind == "epoch":
        budget.count_epoch(*figures)
    elif kind == "over":
        budget.trial_over(*figures)
    else:
        clock.now += figures[0]


def state(budget):
    told = (budget.may_start, budget.exhausted, budget.why_exhausted, budget.epochs_left, budget.cost)
    return (*told, budget.time_left_s)


@given(limits, happenings)
def test_it_is_exhausted_exactly_when_a_limit_is_reached(limits, events):
    clock, spent = Clock(), {"trial": 0, "epoch": 0, "worker_s": 0.0, "wait": 0.0, "streak": 0}
    budget, flat = guard(clock, gangs=2, **limits), False
    for event in events:
        happen(budget, clock, event)
        if event[0] in ("trial", "epoch"):
            spent[event[0]] += 1
        spent["worker_s"] += event[1] if event[0] == "epoch" else 0.0
        if event[0] == "over":
            spent["streak"] = 0 if event[1] else spent["streak"] + 1
        reached = (
            spent["epoch"] >= limits.get("epochs", math.inf)
            or clock.now >= 1000.0 + limits.get("time", math.inf)
            or spent["worker_s"] / 3600 >= limits.get("worker_hours", math.inf)
            or spent["worker_s"] / 3600 * limits["price_per_hour"] >= limits["money"]
        )
        flat = flat or spent["streak"] >= limits.get("plateau", math.inf)
        assert budget.exhausted == reached
        assert budget.may_start == (
            not reached and not flat and spent["trial"] < limits.get("trials", math.inf)
        )
        assert budget.may_start == (budget.why_exhausted == "")
        assert budget.epochs_left >= 0 and (budget.epochs_left == 0) >= (reached or flat)
        assert budget.time_left_s is None or budget.time_left_s >= 0
        assert budget.epochs_left <= limits.get("epochs", math.inf) - min(
            spent["epoch"], limits.get("epochs", 0)
        )


@given(limits, happenings)
def test_telling_the_same_again_gives_the_same_state(limits, events):
    clocks = Clock(), Clock()
    first, again = (guard(clock, gangs=2, workers=3, **limits) for clock in clocks)
    for event in events:
        happen(first, clocks[0], event)
    for event in events:
        happen(again, clocks[1], event)
    assert state(first) == state(again)


@given(limits, happenings)
def test_what_is_over_stays_over_unless_a_trial_improves(limits, events):
    clock = Clock()
    budget = guard(clock, **limits)
    for event in events:
        before = budget.exhausted
        happen(budget, clock, event)
        assert budget.exhausted or not before or event == ("over", True)
