import math
import random

import pytest

from tuning.experiment import Scheduler
from tuning.scheduler import Asha, Decision, make_scheduler


def actions(asha, epoch, values):
    return [asha.report(f"t{i}", epoch, value).action for i, value in enumerate(values)]


def test_hand_worked_example():
    """reduction_factor 3, larger is better; cut = 2/3 quantile, linear, of what came so far.

    0.5              -> cut .5     goes on (the first always does)
    0.4 of .4 .5     -> cut .4667  stops
    0.6 of .4 .5 .6  -> cut .5333  goes on
    0.5 of .4 .5 .5 .6 -> cut .5   goes on (equals it)
    0.45             -> cut .5     stops
    """
    asha = Asha(rungs=[1, 3], reduction_factor=3, mode="max")
    assert actions(asha, 1, [0.5, 0.4, 0.6, 0.5, 0.45]) == [
        "continue",
        "stop",
        "continue",
        "continue",
        "stop",
    ]


def test_reasons_are_for_people():
    asha = Asha(rungs=[1, 3], reduction_factor=3, mode="max")
    asha.report("a", 1, 0.5)
    assert asha.report("a", 3, 0.7) == Decision("continue", "rung 1: 0.7 reaches the cut at 0.7", 1)
    assert asha.report("b", 1, 0.21) == Decision("stop", "rung 0: 0.21 is below the cut at 0.4033", 0)
    small = Asha(rungs=[1], reduction_factor=2, mode="min")
    small.report("a", 1, 1.0)
    assert small.report("b", 1, 3.0).reason == "rung 0: 3 is above the cut at 2"


def test_min_is_max_of_the_negative():
    rng = random.Random(0)
    values = [rng.gauss(0, 1) for _ in range(60)]
    larger = actions(Asha(rungs=[1], reduction_factor=4, mode="max"), 1, values)
    smaller = actions(Asha(rungs=[1], reduction_factor=4, mode="min"), 1, [-v for v in values])
    assert larger == smaller


def test_in_the_long_run_one_in_reduction_factor_goes_on():
    rng = random.Random(1)
    kept = actions(Asha(rungs=[1], reduction_factor=3, mode="max"), 1, [rng.random() for _ in range(900)])
    assert 270 <= kept.count("continue") <= 330


def test_between_rungs_nothing_is_decided_and_nothing_remembered():
    asha = Asha(rungs=[2], reduction_factor=2, mode="max")
    assert asha.report("a", 1, 100.0) == Decision("continue")
    assert asha.report("b", 2, 0.0).action == "continue"  # the 100 was never in the rung


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_stops_and_moves_no_cut(value):
    asha = Asha(rungs=[1], reduction_factor=3, mode="max")
    assert asha.report("a", 1, value) == Decision("stop", f"rung 0: the value is {value}", 0)
    assert asha.report("b", 1, 0.1).action == "continue"


def test_a_repeated_epoch_gets_the_first_answer_and_counts_once():
    asha = Asha(rungs=[1], reduction_factor=2, mode="max")
    first = asha.report("a", 1, 0.5)
    asha.report("b", 1, 0.9)
    assert asha.report("a", 1, 0.5) is first  # afresh it would now be below the cut
    once = Asha(rungs=[1], reduction_factor=2, mode="max")
    once.report("a", 1, 0.5)
    once.report("b", 1, 0.9)
    assert once.report("c", 1, 0.6) == asha.report("c", 1, 0.6)


def test_replaying_the_reports_leads_to_the_same_decisions():
    rng = random.Random(2)
    reports = [(f"t{i}", epoch, rng.random()) for i in range(30) for epoch in (1, 2, 3)]
    one, two = (Asha(rungs=[1, 3], reduction_factor=3, mode="max") for _ in range(2))
    for report in reports[:50]:
        assert one.report(*report) == two.report(*report)
    three = Asha(rungs=[1, 3], reduction_factor=3, mode="max")
    for report in reports[:50]:
        three.report(*report)
    assert [one.report(*r) for r in reports[50:]] == [three.report(*r) for r in reports[50:]]


def test_without_a_scheduler_nothing_stops():
    never = make_scheduler(Scheduler(algorithm="none", max_epochs=9), mode="max")
    assert {never.report(f"t{i}", e, -float(i)).action for i in range(9) for e in range(1, 10)} == {
        "continue"
    }


def test_settings_reach_the_scheduler():
    asha = make_scheduler(Scheduler(min_epochs=2, max_epochs=9, reduction_factor=2), mode="min")
    assert [asha.report("a", epoch, 1.0).rung for epoch in range(1, 10)] == [
        None, 0, None, 1, None, None, None, 2, None,
    ]  # fmt: skip


def test_rungs_must_ascend():
    with pytest.raises(ValueError, match=r"must ascend, but got \(3, 1\)"):
        Asha(rungs=[3, 1], reduction_factor=3, mode="max")
