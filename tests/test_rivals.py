"""The rivals of the search benchmark run in virtual time: within budget, repeatably, each by its own rule."""

import math

import numpy as np
import pytest

from benchmarks.simulated import driving
from benchmarks.simulated.driving import Start
from benchmarks.simulated.problem import Problem
from benchmarks.simulated.reported_set import REPORTED
from benchmarks.simulated.rivals import MULTI_OBJECTIVE_RIVALS, RIVALS, tenth
from benchmarks.simulated.tuning_set import TUNING
from search_spaces import Choice, Space

PROBLEM = next(problem for problem in TUNING if problem.name == "recurrent-misleading")
TWO_OBJECTIVES = REPORTED[-1]
TRAININGS = 30


def drive(*arguments):
    return list(driving.drive(*arguments))


def made(name, problem, seed):
    if "syne tune" in name:
        pytest.importorskip("syne_tune")
    rivals = RIVALS if len(problem.objectives) == 1 else MULTI_OBJECTIVE_RIVALS
    return rivals[name](problem, seed)


def run(name, problem=PROBLEM, seed=1, gangs=4):
    return drive(made(name, problem, seed), problem, gangs, TRAININGS * problem.max_epochs, seed)


def last_epochs(reports):
    """Trial -> the last epoch that it trained, and whether it diverged there."""
    return {report.trial_id: (report.epoch, math.isnan(report.losses[0])) for report in reports}


@pytest.mark.timeout(60)  # imports Ray
@pytest.mark.parametrize(
    "name, problem",
    [
        *((name, PROBLEM) for name in RIVALS),
        *(
            # Its non-dominated sorting of hundreds of trials takes ten seconds.
            pytest.param(name, TWO_OBJECTIVES, marks=[pytest.mark.slow] * ("moasha, grace 1" in name))
            for name in MULTI_OBJECTIVE_RIVALS
        ),
    ],
)
def test_a_rival_spends_its_budget_and_repeats_itself(name, problem):
    reports = run(name, problem)
    assert len(reports) == TRAININGS * problem.max_epochs
    assert [report.epochs_spent for report in reports] == list(range(1, len(reports) + 1))
    assert all(earlier.time_s <= later.time_s for earlier, later in zip(reports, reports[1:], strict=False))
    for trial_id in {report.trial_id for report in reports}:
        epochs = [report.epoch for report in reports if report.trial_id == trial_id]
        assert epochs == list(range(1, len(epochs) + 1))
    assert all(problem.space.contains(report.config) for report in reports)
    assert any(report.epoch == problem.max_epochs for report in reports)
    assert repr(run(name, problem)) == repr(reports)
    other = drive(made(name, problem, 2), problem, 4, 20, 1)
    assert repr(other) != repr(reports[:20])


@pytest.mark.parametrize("name", ["random", "optuna tpe"])
def test_full_trainings_end_early_only_where_they_diverge_or_the_budget_ends(name):
    reports = run(name)
    unfinished = [
        epoch
        for epoch, diverged in last_epochs(reports).values()
        if epoch < PROBLEM.max_epochs and not diverged
    ]
    assert len(unfinished) <= 4  # one per gang


@pytest.mark.timeout(60)  # imports Ray
@pytest.mark.parametrize("name", [name for name in RIVALS if "asha" in name or "successive" in name])
def test_successive_halving_stops_most_trials_at_its_rungs(name):
    ends = last_epochs(run(name, gangs=1))
    stopped = [epoch for epoch, diverged in ends.values() if not diverged and epoch < PROBLEM.max_epochs]
    grace = 1 if name.endswith("grace 1") else tenth(PROBLEM)
    rungs = {grace * 3**k for k in range(4)}
    assert len(stopped) > len(ends) / 3
    assert set(stopped[:-1]) <= rungs  # the last may be where the budget ended
    assert grace in stopped


@pytest.mark.timeout(60)  # imports Ray
def test_documented_pairing_tells_optuna_stopped_trials_as_complete():
    method = RIVALS["ray asha + optuna"](PROBLEM, 0)
    drive(method, PROBLEM, 4, 300, 0)
    trials = method._searcher._ot_study.trials
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert any(len(trial.intermediate_values) < PROBLEM.max_epochs - 1 for trial in complete)
    assert any(trial.state.name == "FAIL" for trial in trials), "divergent ones"


def test_global_random_numbers_of_others_are_left_alone():
    pytest.importorskip("syne_tune")
    np.random.seed(5)
    expected = np.random.random(3).tolist()
    np.random.seed(5)
    drive(RIVALS["syne tune asha"](PROBLEM, 0), PROBLEM, 2, 60, 0)
    assert np.random.random(3).tolist() == expected


def problem(max_epochs=3, seconds=None):
    """Two configurations, `a` and `b`; the loss is the epoch, negative for `b`."""
    sign = {"a": 1.0, "b": -1.0}
    return Problem(
        name="two",
        space=Space({"kind": Choice(["a", "b"])}),
        max_epochs=max_epochs,
        curve=lambda config, seed: sign[config["kind"]] * np.arange(1.0, max_epochs + 1)[:, None],
        truth=lambda config: np.array([sign[config["kind"]] * max_epochs]),
        seconds_per_epoch=lambda config: (seconds or {}).get(config["kind"], 1.0),
    )


class Script:
    """A method that starts what it is told, and answers by (trial, epoch)."""

    def __init__(self, starts, answers=None):
        self.starts, self.answers, self.heard = list(starts), answers or {}, []

    def next(self):
        return self.starts.pop(0) if self.starts else None

    def report(self, trial_id, epoch, losses):
        self.heard.append((trial_id, epoch, losses))
        return self.answers.get((trial_id, epoch), "continue")


def times(reports):
    return [(report.time_s, report.trial_id, report.epoch) for report in reports]


A, B = {"kind": "a"}, {"kind": "b"}


def test_gangs_train_side_by_side_each_at_its_own_pace():
    script = Script([Start("0", A), Start("1", B), Start("2", A)])
    reports = drive(script, problem(2, {"a": 2.0, "b": 3.0}), 2, 100, 0)
    assert times(reports) == [
        (2.0, "0", 1),
        (3.0, "1", 1),
        (4.0, "0", 2),
        (6.0, "1", 2),
        (6.0, "2", 1),
        (8.0, "2", 2),
    ]
    assert script.heard[:2] == [("0", 1, (1.0,)), ("1", 1, (-1.0,))]


def test_a_paused_trial_goes_on_where_it_was():
    script = Script([Start("0", A), Start("1", B), Start("0", A, 1)], {("0", 1): "pause", ("1", 1): "stop"})
    assert times(drive(script, problem(), 1, 100, 0)) == [
        (1.0, "0", 1),
        (2.0, "1", 1),
        (3.0, "0", 2),
        (4.0, "0", 3),
    ]


def test_no_epoch_begins_beyond_the_budget():
    script = Script([Start("0", A), Start("1", B), Start("2", A)])
    assert times(drive(script, problem(), 2, 3, 0)) == [(1.0, "0", 1), (1.0, "1", 1), (2.0, "0", 2)]


def test_a_gang_without_work_is_asked_again_after_each_report():
    class Later(Script):
        def next(self):
            return (
                super().next() if not self.heard and len(self.starts) == 2 or len(self.heard) == 2 else None
            )

    assert times(drive(Later([Start("0", A), Start("1", B)]), problem(), 2, 100, 0)) == [
        (1.0, "0", 1),
        (2.0, "0", 2),
        (3.0, "0", 3),
        (3.0, "1", 1),
        (4.0, "1", 2),
        (5.0, "1", 3),
    ]


def test_a_divergent_training_ends_whatever_is_answered():
    lost = problem()
    object.__setattr__(lost, "curve", lambda config, seed: np.array([[1.0], [math.nan], [math.nan]]))
    assert [epoch for _, _, epoch in times(drive(Script([Start("0", A)]), lost, 1, 100, 0))] == [1, 2]
