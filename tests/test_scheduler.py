"""Successive halving without a driver: hand-worked rungs, replays, several objectives, constraints."""

import math
import random

import pytest

from tuning.experiment import Experiment
from tuning.search.ranking import Standing
from tuning.search.scheduler import Decision, PromotingAsha, StoppingAsha
from tuning.search.strategies import make_scheduler

BOTH = pytest.mark.parametrize("kind", [PromotingAsha, StoppingAsha])


def at(*losses, violation=0.0):
    return Standing(losses, violation)


def promotions(asha):
    """All that are due now, in the order in which they are given."""
    return [trial_id for trial_id, _ in iter(asha.next_promotion, None)]


def actions(asha, epoch, losses):
    return [asha.report(f"t{i}", epoch, at(loss)).action for i, loss in enumerate(losses)]


def test_promotion_by_hand():
    """reduction_factor 2, rungs after 1, 2 and 4 epochs; Algorithm 2 of the paper, step by step.

    A rung gives floor(members / 2) promotions, to the best who wait there; the highest rung comes first.
    """
    asha = PromotingAsha(rungs=[1, 2, 4], reduction_factor=2)
    assert asha.next_promotion() is None
    asha.report("a", 1, at(0.5))
    assert asha.next_promotion() is None  # floor(1 / 2) = 0
    asha.report("b", 1, at(0.4))
    assert promotions(asha) == ["b"]  # 1 of {a, b}
    asha.report("d", 1, at(0.6))
    assert promotions(asha) == []  # floor(3 / 2) = 1, and b had it
    asha.report("c", 1, at(0.3))
    assert promotions(asha) == ["c"]  # the second of 4, and the best of a, c, d
    asha.report("b", 2, at(0.35))
    assert promotions(asha) == []  # b is alone in rung 1
    asha.report("f", 1, at(0.7))
    asha.report("e", 1, at(0.1))  # a third promotion is due in rung 0 now, and before anyone asks …
    asha.report("c", 2, at(0.2))  # … the first in rung 1
    assert promotions(asha) == ["c", "e"]
    asha.report("c", 3, at(0.15))
    asha.report("e", 2, at(0.05))
    asha.report("c", 4, at(0.1))
    assert promotions(asha) == []  # rung 2: floor(1 / 2); rung 1: floor(3 / 2), and c had it
    asha.report("g", 1, at(0.65))
    asha.report("h", 1, at(0.8))
    assert promotions(asha) == ["a"]  # 4 of 8: b, c, e, and the best of a, d, f, g, h
    asha.report("a", 2, at(0.9))
    assert promotions(asha) == ["e"]  # 2 of 4 in rung 1


def test_every_trial_is_paused_at_its_rung_whatever_its_place():
    asha = PromotingAsha(rungs=[1, 3], reduction_factor=3)
    assert asha.report("a", 1, at(0.5)) == Decision("pause", "rung 0: waits for promotion", 0)
    assert asha.report("a", 2, at(0.4)) == Decision("continue")
    assert asha.report("a", 3, at(0.3)) == Decision("pause", "rung 1: waits for promotion", 1)
    assert asha.report("a", 4, at(0.3)) == Decision("continue")


def test_a_rung_gives_no_more_than_its_share_though_its_order_changes():
    """The paper's listing would promote all of b, d, c: each was among the best floor(n / 2) at some time."""
    asha = PromotingAsha(rungs=[1], reduction_factor=2)
    asha.report("a", 1, at(0.5))
    asha.report("b", 1, at(0.4))
    assert promotions(asha) == ["b"]
    asha.report("c", 1, at(0.3))
    asha.report("d", 1, at(0.2))
    assert promotions(asha) == ["d"]


def test_of_equals_the_first_to_arrive_is_promoted():
    asha = PromotingAsha(rungs=[1], reduction_factor=2)
    for trial_id in "cab":
        asha.report(trial_id, 1, at(0.5))
    assert promotions(asha) == ["c"]


def test_a_dropped_trial_is_never_promoted_but_still_counts_as_a_member():
    asha = PromotingAsha(rungs=[1, 2], reduction_factor=2)
    asha.report("a", 1, at(0.1))
    asha.drop("a")
    asha.report("b", 1, at(0.2))
    assert promotions(asha) == ["b"]  # floor(2 / 2)
    asha.report("c", 1, at(0.3))
    asha.report("d", 1, at(0.4))
    asha.drop("c")
    asha.drop("d")
    asha.drop("never seen")
    assert promotions(asha) == []


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("objectives", [1, 2])
def test_what_is_no_number_is_stopped_and_does_not_count_in_its_rung(loss, objectives):
    asha = PromotingAsha(rungs=[1], reduction_factor=2)
    broken = at(*[0.0] * (objectives - 1), loss)
    assert asha.report("a", 1, broken) == Decision("stop", "rung 0: not a finite number", 0)
    asha.report("b", 1, at(*[0.5] * objectives))
    assert promotions(asha) == []  # it is alone
    asha.report("c", 1, at(*[0.6] * objectives))
    assert promotions(asha) == ["b"]


def test_a_report_beyond_a_rung_marks_the_promotion():
    """That is how a resumed driver learns of it: the tables have epochs, no promotions."""
    asha = PromotingAsha(rungs=[1, 3], reduction_factor=2)
    asha.report("a", 1, at(0.1))
    asha.report("b", 1, at(0.2))
    asha.report("a", 2, at(0.1))
    assert promotions(asha) == []  # the one of two was given
    asha.report("c", 1, at(0.3))
    asha.report("d", 1, at(0.4))
    assert promotions(asha) == ["b"]


def test_a_promotion_of_which_no_epoch_is_known_is_decided_again():
    asha = PromotingAsha(rungs=[1], reduction_factor=2)
    for trial_id, loss in [("a", 0.2), ("b", 0.1)]:
        asha.report(trial_id, 1, at(loss))
    assert promotions(asha) == ["b"]
    resumed = PromotingAsha(rungs=[1], reduction_factor=2)
    for trial_id, loss in [("a", 0.2), ("b", 0.1)]:
        resumed.report(trial_id, 1, at(loss))
    assert promotions(resumed) == ["b"]


def a_run(asha, *, seed, objectives=1, gangs=4, max_epochs=9, trials=60, limit=10_000):
    """Up to `limit` reports in the order in which so many gangs would make them, until nothing is left."""
    rng = random.Random(seed)
    reports, running, started = [], [], 0
    while len(reports) < limit:
        while len(running) < gangs:
            promoted = asha.next_promotion()
            if promoted is not None:
                trial_id, _ = promoted
                running.append((trial_id, next(e for t, e, _ in reversed(reports) if t == trial_id)))
            elif started < trials:
                running.append((f"t{started}", 0))
                started += 1
            else:
                break
        if not running:
            break
        trial_id, epoch = running.pop(rng.randrange(len(running)))
        losses = [rng.choice([rng.random(), 0.5]) for _ in range(objectives)]
        if rng.random() < 0.05:
            losses[-1] = math.nan
        report = (trial_id, epoch + 1, at(*losses, violation=rng.choice([0.0, 0.0, rng.random()])))
        reports.append(report)
        if asha.report(*report).action == "continue" and epoch + 1 < max_epochs:
            running.append((trial_id, epoch + 1))
    return reports


@BOTH
@pytest.mark.parametrize("objectives", [1, 2])
def test_the_same_reports_in_the_same_order_lead_to_the_same_state(kind, objectives):
    def fresh():
        return kind(rungs=[1, 3], reduction_factor=3)

    reports = a_run(fresh(), seed=objectives, objectives=objectives)
    for known in (10, 50, len(reports)):
        once, replayed = fresh(), fresh()
        for report in reports[:known]:
            once.report(*report)
        for report in reports[:known]:
            replayed.report(*report)
            replayed.report(*report)  # what comes twice counts once
        assert [once.report(*r) for r in reports[known:]] == [replayed.report(*r) for r in reports[known:]]
        assert promotions(once) == promotions(replayed)


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("limit", [20, 45, 70])
def test_the_reports_alone_lead_to_the_state_in_which_promotions_were_given(objectives, limit):
    live, resumed = (PromotingAsha(rungs=[1, 3], reduction_factor=3) for _ in range(2))
    reports = a_run(live, seed=7, objectives=objectives, gangs=1, limit=limit)
    assert max(epoch for _, epoch, _ in reports) > 1
    for report in [*reports, *((f"new{index}", 1, at(*[index / 9] * objectives)) for index in range(9))]:
        resumed.report(*report)
        if report not in reports:
            live.report(*report)
    due = promotions(live)
    assert due and promotions(resumed) == due


@pytest.mark.parametrize("objectives", [1, 2])
def test_arrivals_out_of_order_promote_one_in_three_of_every_rung(objectives):
    asha = PromotingAsha(rungs=[1, 3], reduction_factor=3)
    reports = a_run(asha, seed=5, objectives=objectives)
    at_rung = {e: {t for t, epoch, s in reports if epoch == e and s.finite} for e in (1, 3)}
    beyond = {e: {t for t, epoch, _ in reports if epoch == e + 1} for e in (1, 3)}
    for epoch in (1, 3):
        assert len(beyond[epoch]) == len(at_rung[epoch]) // 3
        assert beyond[epoch] <= at_rung[epoch]
    assert len([r for r in reports if r[1] == 1]) == 60


def test_several_objectives_are_promoted_by_front_then_by_hypervolume_contribution():
    asha = PromotingAsha(rungs=[1], reduction_factor=2)
    asha.report("worst", 1, at(1.0, 1.0))
    asha.report("left", 1, at(0.0, 0.9))
    assert promotions(asha) == ["left"]
    asha.report("crowded", 1, at(0.05, 0.85))  # in the front, but it adds little to `left`
    asha.report("middle", 1, at(0.4, 0.4))
    assert promotions(asha) == ["middle"]
    asha.report("beaten", 1, at(0.5, 0.5))
    asha.report("right", 1, at(0.9, 0.0))
    assert promotions(asha) == ["right"]
    for index in range(4):
        asha.report(f"bad{index}", 1, at(2.0, 2.0 + index))
    assert promotions(asha) == ["crowded", "beaten"]  # the last of the first front, then the second


@pytest.mark.parametrize("others", [(), (0.0,)])
def test_feasible_trials_are_promoted_before_infeasible_ones(others):
    asha = PromotingAsha(rungs=[1], reduction_factor=2)
    asha.report("broken", 1, at(0.0, *others, violation=0.5))
    asha.report("bent", 1, at(0.9, *others, violation=0.1))
    assert promotions(asha) == ["bent"]  # the smaller violation, whatever the loss
    asha.report("kept", 1, at(1.0, *others))
    asha.report("unknown", 1, at(0.0, *others, violation=math.inf))  # the constrained figure is missing
    assert promotions(asha) == ["kept"]
    for index in range(4):
        asha.report(f"{index}", 1, at(2.0 + index, *others))
    assert promotions(asha) == ["0", "1"]


def test_ten_thousand_members_cost_no_sorting_each():
    asha = PromotingAsha(rungs=[1], reduction_factor=3)
    rng, promoted = random.Random(0), 0
    for index in range(10_000):
        asha.report(f"t{index}", 1, at(rng.random()))
        promoted += asha.next_promotion() is not None
    assert promoted == 3333


def test_stopping_by_hand():
    """reduction_factor 3, smaller is better: place among those that came so far, against ceil(n / 3).

    0.5                 place 1 of 1, 1 goes on
    0.6                 place 2 of 2, 1 goes on
    0.4                 place 1 of 3, 1 goes on
    0.5 behind its equal: place 3 of 4, 2 go on
    0.45                place 2 of 5, 2 go on
    """
    asha = StoppingAsha(rungs=[1, 3], reduction_factor=3)
    assert actions(asha, 1, [0.5, 0.6, 0.4, 0.5, 0.45]) == [
        "continue",
        "stop",
        "continue",
        "stop",
        "continue",
    ]
    assert asha.next_promotion() is None


def test_reasons_are_for_people():
    asha = StoppingAsha(rungs=[1, 3], reduction_factor=3)
    asha.report("a", 1, at(0.5))
    assert asha.report("a", 3, at(0.3)) == Decision("continue", "rung 1: place 1 of 1", 1)
    assert asha.report("b", 1, at(0.6)) == Decision("stop", "rung 0: place 2 of 2", 0)


def test_in_the_long_run_one_in_reduction_factor_goes_on():
    rng = random.Random(1)
    kept = actions(StoppingAsha(rungs=[1], reduction_factor=3), 1, [rng.random() for _ in range(900)])
    assert 270 <= kept.count("continue") <= 330


def test_stopping_with_several_objectives_and_constraints():
    asha = StoppingAsha(rungs=[1], reduction_factor=2)
    assert asha.report("a", 1, at(0.0, 1.0)).action == "continue"
    assert asha.report("b", 1, at(0.5, 1.5)).action == "stop"  # a is no worse in both
    assert asha.report("c", 1, at(1.0, 0.0)).action == "continue"  # another end of the front
    assert asha.report("d", 1, at(-1.0, -1.0, violation=0.1)).action == "stop"  # last, for it is infeasible


@BOTH
def test_between_rungs_nothing_is_decided_and_nothing_remembered(kind):
    asha = kind(rungs=[2], reduction_factor=2)
    assert asha.report("a", 1, at(-100.0)) == Decision("continue")
    asha.report("b", 2, at(0.0))  # were the -100 in the rung, b would be stopped, or a promoted
    assert asha.report("c", 2, at(-1.0)).action == ("pause" if kind is PromotingAsha else "continue")
    assert promotions(asha) == (["c"] if kind is PromotingAsha else [])


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stops_and_moves_no_cut(loss):
    asha = StoppingAsha(rungs=[1], reduction_factor=3)
    assert asha.report("a", 1, at(loss)) == Decision("stop", "rung 0: not a finite number", 0)
    assert asha.report("b", 1, at(0.1)).action == "continue"


def test_a_repeated_epoch_gets_the_first_answer_and_counts_once():
    asha = StoppingAsha(rungs=[1], reduction_factor=2)
    first = asha.report("a", 1, at(0.5))
    asha.report("b", 1, at(0.1))
    assert asha.report("a", 1, at(0.5)) is first  # afresh it would now be in the worse half
    once = StoppingAsha(rungs=[1], reduction_factor=2)
    once.report("a", 1, at(0.5))
    once.report("b", 1, at(0.1))
    assert once.report("c", 1, at(0.4)) == asha.report("c", 1, at(0.4))


@BOTH
def test_without_rungs_nothing_ends_early(kind):
    never = kind(rungs=[], reduction_factor=3)
    assert {never.report(f"t{i}", e, at(float(i))).action for i in range(9) for e in range(1, 10)} == {
        "continue"
    }
    assert never.next_promotion() is None


@pytest.mark.parametrize(
    ("settings", "kind", "rungs"),
    [
        ({"algorithm": "asha", "min_epochs": 1}, PromotingAsha, [1, 3]),
        ({"algorithm": "asha_stopping", "min_epochs": 2, "reduction_factor": 2}, StoppingAsha, [2, 4, 8]),
        ({"algorithm": "none", "min_epochs": 1}, StoppingAsha, []),
    ],
)
def test_settings_reach_the_scheduler(settings, kind, rungs):
    tree = {
        "name": "test",
        "search_space": {"x": {"float": [0, 1]}},
        "objectives": [{"metric": "score", "mode": "max"}],
        "scheduler": {"max_epochs": 9, **settings},
        "budget": {"trials": 1},
    }
    scheduler = make_scheduler(Experiment.from_dict(tree))
    assert type(scheduler) is kind
    decisions = {epoch: scheduler.report("a", epoch, at(1.0)) for epoch in range(1, 10)}
    assert [epoch for epoch, decision in decisions.items() if decision.rung is not None] == rungs


@BOTH
@pytest.mark.parametrize("rungs", [(3, 1), (1, 1)])
def test_rungs_must_ascend(kind, rungs):
    with pytest.raises(ValueError, match="must ascend, but got"):
        kind(rungs=rungs, reduction_factor=3)
