"""Curves of an earlier experiment: whose, how far, and what of them is made up. And those of a formula."""

import math

import pytest
from recorded import describe, record

import trainables.seeding  # noqa: F401  slow to import, and not a test's fault
from trainables.order import Failure
from tuning.experiment_file import ExperimentError
from tuning.search.verdicts import NOT_FINITE
from tuning.simulation.curve_tables import CurveTable
from tuning.simulation.trainable_curves import TrainableCurves

SPACE = {
    "learning_rate": {"float": [1e-4, 1e-1], "log": True},
    "method": {"choice": ["none", "low_rank"]},
    "ratio": {"float": [0.0, 1.0], "when": {"method": ["low_rank"]}},
}


def scores(curves, trial_id, config, epochs):
    return [curves(trial_id, config, epoch)["score"] for epoch in range(1, epochs + 1)]


def rates(tmp_path, trials, **changes):
    """Curves of trials over one learning rate."""
    earlier = record(describe(tmp_path, name="earlier"), trials)
    return CurveTable(earlier, describe(tmp_path, **changes)).open()


def test_a_configuration_of_the_table_gets_its_own_curve(tmp_path):
    curves = rates(
        tmp_path, [({"learning_rate": 1e-2}, [1, 2, 4], "stopped"), ({"learning_rate": 1e-3}, [9], "stopped")]
    )
    assert scores(curves, "00007", {"learning_rate": 1e-2}, 3) == [1, 2, 4]
    assert (curves.epochs, curves.estimated, curves.borrowed) == (3, 0, 0)


def test_another_one_gets_the_curve_that_is_nearest_on_the_domains_own_scale(tmp_path):
    curves = rates(
        tmp_path, [({"learning_rate": 1e-4}, [1], "stopped"), ({"learning_rate": 1e-1}, [2], "stopped")]
    )
    assert scores(curves, "00000", {"learning_rate": 0.01}, 1) == [2]  # on a linear scale 1e-4 is nearer
    assert curves.borrowed == 1


def test_what_only_one_of_two_configurations_has_counts_as_different(tmp_path):
    low_rank = {"learning_rate": 1e-2, "method": "low_rank", "ratio": 0.4}
    plain = {"learning_rate": 1e-4, "method": "none"}
    earlier = record(
        describe(tmp_path, name="earlier", search_space=SPACE),
        [(low_rank, [1], "stopped"), (plain, [2], "stopped")],
    )
    curves = CurveTable(earlier, describe(tmp_path, search_space=SPACE)).open()
    # Two thirds of the learning rate's range apart, against two differences.
    assert scores(curves, "00000", {"learning_rate": 1e-2, "method": "none"}, 1) == [2]
    assert scores(curves, "00001", {"learning_rate": 1e-4, "method": "low_rank", "ratio": 1.0}, 1) == [1]


def test_of_choices_true_is_not_one(tmp_path):
    earlier = record(
        describe(tmp_path, name="earlier", search_space={"n": {"choice": [0, 1]}}),
        [({"n": 0}, [1], "stopped"), ({"n": 1}, [2], "stopped")],
    )
    curves = CurveTable(earlier, describe(tmp_path, search_space={"n": {"choice": [True]}})).open()
    assert scores(curves, "00000", {"n": True}, 1) == [1], "both are as far, and the first is taken first"


def test_trials_of_one_configuration_are_taken_in_turns(tmp_path):
    twin = {"learning_rate": 1e-2}
    curves = rates(tmp_path, [(twin, [1], "stopped"), (twin, [2], "stopped")])
    assert [scores(curves, f"0000{n}", twin, 1) for n in range(3)] == [[1], [2], [1]]
    assert scores(curves, "00001", twin, 1) == [2], "a trial keeps its curve"


def test_beyond_its_end_a_trial_changes_as_the_others_did_on_average(tmp_path):
    curves = rates(
        tmp_path,
        [
            ({"learning_rate": 1e-4}, [0.0], "stopped"),
            ({"learning_rate": 1e-3}, [1.0, 2.0, 3.0], "stopped"),
            ({"learning_rate": 1e-2}, [1.0, 4.0], "stopped"),
        ],
    )
    # To epoch 2: +1 and +3; to epoch 3: only the second went there, +2; nobody went further.
    assert scores(curves, "00000", {"learning_rate": 1e-4}, 5) == [0, 2, 2, 2, 2]
    assert (curves.epochs, curves.estimated) == (5, 4)


def test_what_is_made_up_is_never_better_than_what_was_measured(tmp_path):
    curves = rates(
        tmp_path,
        [({"learning_rate": 1e-4}, [2.0], "stopped"), ({"learning_rate": 1e-3}, [0.0, 2.5], "stopped")],
    )
    assert scores(curves, "00000", {"learning_rate": 1e-4}, 3) == [2.0, 2.5, 2.5]


def test_seconds_beyond_the_end_grow_by_the_others_ratio(tmp_path):
    slow, fast = {"learning_rate": 1e-3}, {"learning_rate": 1e-2}
    curves = rates(
        tmp_path,
        [
            (slow, [{"score": 1.0, "seconds": 10.0}, {"score": 1.0, "seconds": 5.0}], "stopped"),
            (fast, [{"score": 1.0, "seconds": 1.0}], "stopped"),
        ],
    )
    assert curves("00000", fast, 2)["seconds"] == pytest.approx(0.5)


def test_a_figure_that_is_measured_now_and_then_is_reported_at_rungs_and_drawn_between(tmp_path):
    figures = [{"cider": 1.0, "score": 0.0}, {"score": 0.0}, {"cider": 3.0, "score": 0.0}]
    cider = {"objectives": [{"metric": "cider", "mode": "max"}]}
    earlier = record(
        describe(tmp_path, name="earlier", **cider), [({"learning_rate": 1e-3}, figures, "completed")]
    )
    here = describe(tmp_path, scheduler={"min_epochs": 2, "max_epochs": 3}, **cider)
    curves = CurveTable(earlier, here).open()
    reported = [curves("00000", {"learning_rate": 1e-3}, epoch).get("cider") for epoch in (1, 2, 3)]
    assert reported == [None, 2.0, 3.0]
    assert curves.estimated == 1


def test_a_trial_that_diverged_does_so_again_and_is_no_example_for_others(tmp_path):
    curves = rates(
        tmp_path,
        [
            ({"learning_rate": 1e-1}, [1.0, -1e9], "diverged"),
            ({"learning_rate": 1e-3}, [1.0, 2.0], "stopped"),
            ({"learning_rate": 1e-4}, [0.0], "stopped"),
        ],
    )
    assert scores(curves, "00000", {"learning_rate": 1e-1}, 2) == [1.0, -1e9]
    failure = curves("00000", {"learning_rate": 1e-1}, 3)
    assert isinstance(failure, Failure) and failure.state == "diverged"
    assert scores(curves, "00001", {"learning_rate": 1e-4}, 2) == [0.0, 1.0]


def test_a_trial_whose_figure_is_none_diverges_in_that_epoch(tmp_path):
    broken = ({"learning_rate": 1e-1}, [1.0, math.nan], "diverged", f"score after epoch 2: {NOT_FINITE}")
    curves = rates(tmp_path, [broken, ({"learning_rate": 1e-3}, [1.0, 2.0], "stopped")])
    assert scores(curves, "00000", {"learning_rate": 1e-1}, 1) == [1.0]
    failure = curves("00000", {"learning_rate": 1e-1}, 2)
    assert isinstance(failure, Failure) and failure.state == "diverged"


def test_a_trial_that_failed_before_it_was_evaluated_fails_in_that_epoch(tmp_path):
    """Its figures are those of the others until then: NaN would end it in the first epoch, as diverged."""
    failed = ({"learning_rate": 1e-1}, [math.nan, math.nan], "failed")
    others = [({"learning_rate": 1e-3}, [1.0, 2.0]), ({"learning_rate": 1e-2}, [3.0, 6.0])]
    curves = rates(tmp_path, [failed, *((*other, "stopped") for other in others)])
    assert scores(curves, "00000", {"learning_rate": 1e-1}, 2) == [2.0, 4.0]
    failure = curves("00000", {"learning_rate": 1e-1}, 3)
    assert isinstance(failure, Failure) and failure.state == "failed"


def test_another_space_is_refused_by_name(tmp_path):
    earlier = record(
        describe(tmp_path, name="earlier", search_space=SPACE),
        [({"learning_rate": 1e-3, "method": "none"}, [1], "stopped")],
    )
    space = {"learning_rat": {"float": [1e-4, 1e-1]}, "method": {"choice": ["none"]}}
    with pytest.raises(ExperimentError) as refused:
        CurveTable(earlier, describe(tmp_path, search_space=space, model={"ratio": 0.5}))
    assert "learning_rat: 'earlier' did not search it" in str(refused.value)
    assert "did you mean 'learning_rate'?" in str(refused.value)
    assert "searched 'learning_rate'; search it here, too, or fix it" in str(refused.value)
    assert "'ratio'" not in str(refused.value), "what is fixed here is a coordinate like any other"


def test_an_objective_that_the_table_lacks_is_refused_with_the_nearest(tmp_path):
    earlier = record(describe(tmp_path, name="earlier"), [({"learning_rate": 1e-3}, [1], "stopped")])
    with pytest.raises(ExperimentError, match="'scorre' is no figure of 'earlier'; did you mean 'score'"):
        CurveTable(earlier, describe(tmp_path, objectives=[{"metric": "scorre", "mode": "max"}]))


def test_a_formula_is_run_in_this_process_without_its_waiting(tmp_path):
    curves = TrainableCurves(describe(tmp_path, model={"seconds_per_epoch": 3600.0, "noise": 0.1}))
    first = curves("00003", {"learning_rate": 1e-3}, 1)
    assert first["seconds"] == 3600
    again = TrainableCurves(describe(tmp_path, model={"noise": 0.1}))("00003", {"learning_rate": 1e-3}, 1)
    assert again["score"] == first["score"]
    assert again["seconds"] == 1


def test_a_formula_that_diverges_or_raises_fails_its_trial(tmp_path):
    diverging = TrainableCurves(describe(tmp_path, model={"diverge_at_epoch": 2}))
    assert not isinstance(diverging("00000", {"learning_rate": 1e-3}, 1), Failure)
    assert diverging("00000", {"learning_rate": 1e-3}, 2).state == "diverged"
    raising = TrainableCurves(describe(tmp_path, model={"fail_at_epoch": 1}))
    failure = raising("00000", {"learning_rate": 1e-3}, 1)
    assert failure.state == "failed" and "RuntimeError" in failure.reason and failure.error
