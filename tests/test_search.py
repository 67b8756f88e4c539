"""The search under a loop of a few lines: no Ray, no waiting."""

import math
import os
from collections import deque
from datetime import UTC, datetime, timedelta

import pytest

from trainables.order import Failure, Report
from tuning.events import EpochReported, TrialEnded, TrialStarted
from tuning.experiment import Experiment, ExperimentError
from tuning.search.auto import TO_THE_END
from tuning.search.budget import BudgetGuard
from tuning.search.incumbent import Incumbent
from tuning.search.open_trials import INTERRUPTED
from tuning.search.ranking import Standing
from tuning.search.search import Search
from tuning.search.strategies import open_strategy
from tuning.search.verdicts import KEPT_FOR_THE_BEST

STOPPING = {"algorithm": "asha_stopping", "min_epochs": 1, "max_epochs": 9, "reduction_factor": 3}
PROMOTING = STOPPING | {"algorithm": "asha"}
BOTH = pytest.mark.parametrize("scheduler", [PROMOTING, STOPPING], ids=["promoting", "stopping"])


class Recorder:
    def __init__(self):
        self.events = []

    def handle(self, event):
        self.events.append(event)

    def tick(self):
        pass

    def close(self):
        pass

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def experiment(**changes):
    tree = {
        "name": "test",
        "trainable": "curves",
        "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
        "objectives": [{"metric": "score", "mode": "max"}],
        "search": {"algorithm": "random"},
        "scheduler": PROMOTING,
        "budget": {"trials": 6},
    }
    return Experiment.from_dict(tree | changes)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture(autouse=True)
def unsafe_but_fast(monkeypatch):
    """Most of a suggestion's time is waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def open_search(
    folder,
    recorder,
    clock=None,
    gangs=1,
    can_halve=lambda *_: False,
    now=lambda: datetime.now(UTC),
    **changes,
):
    described = experiment(**changes)
    searcher, scheduler = open_strategy(described, path=folder / "study.journal")
    budget = BudgetGuard(described.budget, gangs=gangs, clock=clock or Clock())
    return Search(
        described,
        searcher=searcher,
        scheduler=scheduler,
        budget=budget,
        listeners=[recorder],
        can_halve=can_halve,
        now=now,
    )


def score(run, epoch):
    return math.log10(run.config["learning_rate"]) + 0.1 * epoch


def figures(run, epoch):
    return {"score": score(run, epoch), "worker_s": 60.0, "seconds": 60.0}


def report(run, epoch, **metrics):
    return Report(epoch=epoch, metrics=metrics or figures(run, epoch), attempt=run.attempt, node="here")


def run_trial(search, run, epochs=9):
    for epoch in range(run.epoch + 1, epochs + 1):
        if search.report(run.trial_id, report(run, epoch)).leaves:
            return


def drive(search, limit=None, *, gangs=1, curve=figures):
    """Run the search on so many gangs, epoch by epoch in turn, for up to `limit` epochs in all."""
    running, done = deque(), 0
    while True:
        while len(running) < gangs and (run := search.next_run()) is not None:
            assert run.trial_id not in [other.trial_id for other, _ in running], "runs already"
            running.append((run, run.epoch + 1))
        if not running:
            assert search.finished
            return
        run, epoch = running.popleft()
        outcome = curve(run, epoch)
        done += 1
        if isinstance(outcome, Failure):
            search.fail(run.trial_id, outcome)
        elif not search.report(run.trial_id, report(run, epoch, **outcome)).leaves:
            running.append((run, epoch + 1))
        if done == limit:
            return


def states(recorder):
    """Of every trial, the last."""
    return {event.trial_id: event.state for event in recorder.of(TrialEnded)}


def epochs_of(recorder):
    """Reported epochs by trial_id."""
    epochs = {}
    for event in recorder.of(EpochReported):
        epochs.setdefault(event.trial_id, []).append(event.epoch)
    return epochs


# One trial after another.


def test_the_budget_of_trials_is_spent_and_not_more(tmp_path, recorder):
    search = open_search(tmp_path, recorder, scheduler=STOPPING)
    while (run := search.next_run()) is not None:
        run_trial(search, run)
    assert search.finished
    assert len(recorder.of(TrialStarted)) == 6
    assert len(recorder.of(TrialEnded)) == 6
    assert set(states(recorder).values()) == {"completed", "stopped"}


def test_promotion_trains_the_best_further_and_leaves_the_others_paused(tmp_path, recorder):
    """Of 6 trials rung 0 promotes 2; rung 1 would need 3 to promote one, but the best is finished."""
    search = open_search(tmp_path, recorder)
    drive(search)
    epochs = {trial_id: max(done) for trial_id, done in epochs_of(recorder).items()}
    ended = states(recorder)
    assert sorted(epochs.values()) == [1, 1, 1, 1, 3, 9]
    assert {epochs[trial_id] for trial_id, state in ended.items() if state == "completed"} == {9}
    assert sorted(ended.values()) == ["completed", *["paused"] * 5]
    at_first_rung = {e.trial_id: e.metrics["score"] for e in recorder.of(EpochReported) if e.epoch == 1}
    assert epochs[max(at_first_rung, key=at_first_rung.get)] == 9


def test_a_promoted_trial_goes_on_from_its_rung_and_is_shown_as_started_again(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    for value in (0.1, 0.3, 0.2):
        run = search.next_run()
        decision = search.report(run.trial_id, report(run, 1, score=value))
        assert (decision.action, decision.leaves) == ("pause", True)
        assert recorder.of(EpochReported)[-1].rung == 0
    promoted = search.next_run()
    assert (promoted.trial_id, promoted.epoch, promoted.attempt) == ("00001", 1, 1)
    assert [event.trial_id for event in recorder.of(TrialStarted)] == ["00000", "00001", "00002", "00001"]
    assert search.report("00001", report(promoted, 2)).action == "continue"
    assert search.next_run().trial_id == "00003"  # rung 0 has given its one of three


def test_a_stopped_trial_says_where_and_why(tmp_path, recorder):
    search = open_search(tmp_path, recorder, scheduler=STOPPING)
    first, second = search.next_run(), search.next_run()
    search.report(first.trial_id, report(first, 1, score=0.5))
    decision = search.report(second.trial_id, report(second, 1, score=0.1))
    assert decision.action == "stop"
    assert recorder.of(EpochReported)[-1].rung == 0
    ended = recorder.of(TrialEnded)[-1]
    assert (ended.trial_id, ended.state) == (second.trial_id, "stopped")
    assert "rung 0" in ended.reason


def test_a_trial_that_was_lost_is_run_again_from_its_last_epoch(tmp_path, recorder):
    search = open_search(tmp_path, recorder, scheduler=STOPPING)
    run = search.next_run()
    search.report(run.trial_id, report(run, 1))
    search.lose(run.trial_id, "its actor died")
    again = search.next_run()
    assert (again.trial_id, again.epoch, again.attempt) == (run.trial_id, 1, 2)
    assert again.config == run.config


def test_a_trial_that_is_lost_too_often_fails(tmp_path, recorder):
    search = open_search(tmp_path, recorder, training={"max_failures": 1})
    run = search.next_run()
    search.lose(run.trial_id, "once")
    search.next_run()
    search.lose(run.trial_id, "twice")
    ended = recorder.of(TrialEnded)[-1]
    assert ended.state == "failed"
    assert "max_failures" in ended.reason


@BOTH
def test_an_epoch_that_is_reported_again_counts_once(tmp_path, recorder, scheduler):
    search = open_search(tmp_path, recorder, scheduler=scheduler)
    run = search.next_run()
    search.report(run.trial_id, report(run, 1))
    search.report(run.trial_id, report(run, 1))
    assert len(recorder.of(EpochReported)) == 1


def test_a_report_of_a_trial_that_left_its_gang_is_answered_with_stop(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    run = search.next_run()
    assert search.report(run.trial_id, report(run, 1)).action == "pause"
    assert search.report(run.trial_id, report(run, 2)).action == "stop"
    assert search.report("00077", report(run, 1)).action == "stop"
    assert len(recorder.of(EpochReported)) == 1 and states(recorder) == {run.trial_id: "paused"}


def test_a_failure_of_one_trial_leaves_the_others_alone(tmp_path, recorder):
    search = open_search(tmp_path, recorder, scheduler=STOPPING)
    bad, good = search.next_run(), search.next_run()
    search.fail(bad.trial_id, Failure(state="diverged", reason="loss is nan"))
    run_trial(search, good)
    assert [event.state for event in recorder.of(TrialEnded)] == ["diverged", "completed"]


def test_a_failed_trial_is_not_promoted_and_the_best_of_the_others_is_finished(tmp_path, recorder):
    search = open_search(tmp_path, recorder, budget={"trials": 3})
    for value in (0.1, 0.3, 0.2):
        run = search.next_run()
        search.report(run.trial_id, report(run, 1, score=value))
    search.fail(search.next_run().trial_id, Failure(state="out_of_memory", reason="after its promotion"))
    drive(search)
    assert states(recorder) == {"00000": "paused", "00001": "out_of_memory", "00002": "completed"}


def test_when_time_is_up_running_epochs_are_kept_and_trials_paused(tmp_path, recorder):
    clock = Clock()
    search = open_search(tmp_path, recorder, clock, budget={"time": 60}, scheduler=STOPPING)
    run = search.next_run()
    clock.now = 61
    assert search.next_run() is None
    decision = search.report(run.trial_id, report(run, 1))
    assert decision.leaves
    assert recorder.of(EpochReported)[-1].epoch == 1
    assert recorder.of(TrialEnded)[-1].state == "paused"
    assert search.finished


@BOTH
@pytest.mark.parametrize(
    "wrong",
    [
        {"objectives": [{"metric": "scor", "mode": "max"}]},
        {"constraints": [{"metric": "scor", "max": 1}]},
    ],
    ids=["objective", "constraint"],
)
def test_a_missing_figure_fails_the_trial_with_the_nearest_name(tmp_path, recorder, scheduler, wrong):
    search = open_search(tmp_path, recorder, scheduler=scheduler, **wrong)
    run = search.next_run()
    decision = search.report(run.trial_id, report(run, 1))
    assert decision.leaves
    ended = recorder.of(TrialEnded)[-1]
    assert ended.state == "failed"
    assert "'scor'" in ended.reason and "did you mean 'score'" in ended.reason


def test_between_rungs_an_objective_may_be_absent(tmp_path, recorder):
    search = open_search(tmp_path, recorder, scheduler=STOPPING)
    run = search.next_run()
    assert search.report(run.trial_id, report(run, 1)).action == "continue"
    assert search.report(run.trial_id, report(run, 2, loss=0.5)).action == "continue"
    assert search.report(run.trial_id, report(run, 3, loss=0.5)).action == "stop"


def test_infeasible_trials_are_promoted_last_and_are_best_only_among_themselves(tmp_path, recorder):
    constraints = [{"metric": "size_mb", "max": 20}]
    search = open_search(tmp_path, recorder, constraints=constraints, budget={"trials": 3})
    for value, size in [(0.9, 25.0), (0.5, 30.0), (0.1, 20.0)]:
        run = search.next_run()
        search.report(run.trial_id, report(run, 1, score=value, size_mb=size))
    drive(search, curve=lambda run, epoch: figures(run, epoch) | {"size_mb": 20.0})
    assert states(recorder) == {"00000": "paused", "00001": "paused", "00002": "completed"}


def test_several_objectives_are_promoted_by_front(tmp_path, recorder):
    objectives = [{"metric": "score", "mode": "max"}, {"metric": "size_mb", "mode": "min"}]
    search = open_search(tmp_path, recorder, objectives=objectives, budget={"trials": 6})
    for value, size in [(0.1, 9.0), (0.9, 9.0), (0.5, 9.5)]:
        run = search.next_run()
        search.report(run.trial_id, report(run, 1, score=value, size_mb=size))
    run = search.next_run()
    assert run.trial_id == "00001"
    search.fail(run.trial_id, Failure(state="failed", reason="so that something else is next"))
    for value, size in [(0.1, 1.0), (0.4, 9.9), (0.0, 9.9)]:
        run = search.next_run()
        search.report(run.trial_id, report(run, 1, score=value, size_mb=size))
    assert search.next_run().trial_id == "00003"  # the other end of the front


# The end of the budget.


def completed_best(recorder):
    """(trial_id, its state) of the best of all reported epochs among trials that did not go wrong."""
    ended = states(recorder)
    fine = [
        e for e in recorder.of(EpochReported) if ended.get(e.trial_id) in ("completed", "paused", "stopped")
    ]
    best = max(fine, key=lambda event: event.metrics["score"])
    return best.trial_id, ended[best.trial_id]


@BOTH
@pytest.mark.parametrize("gangs", [1, 2, 4])
@pytest.mark.parametrize(
    "budget", [{"trials": 1}, {"trials": 7}, {"epochs": 40}, {"epochs": 61}, {"worker_hours": 0.75}]
)
def test_the_best_trial_is_complete_at_the_end(tmp_path, recorder, scheduler, gangs, budget):
    search = open_search(tmp_path, recorder, gangs=gangs, scheduler=scheduler, budget=budget)
    drive(search, gangs=gangs)
    assert completed_best(recorder)[1] == "completed"
    if "epochs" in budget:
        assert len(recorder.of(EpochReported)) <= budget["epochs"] + gangs - 1


def test_what_is_left_is_kept_for_the_best_and_its_rivals_wait(tmp_path, recorder):
    budget, rungless = {"epochs": 12}, PROMOTING | {"algorithm": "none"}
    search = open_search(tmp_path, recorder, gangs=2, scheduler=rungless, budget=budget)
    best, other = search.next_run(), search.next_run()
    for epoch in (1, 2):
        assert search.report(best.trial_id, report(best, epoch, score=0.9)).action == "continue"
        assert search.report(other.trial_id, report(other, epoch, score=0.1)).action == "continue"
    # Six are left beside the one that runs, and if that takes the lead it needs them all.
    kept = ("pause", KEPT_FOR_THE_BEST)
    decision = search.report(best.trial_id, report(best, 3, score=0.9))
    assert (decision.action, decision.reason) == kept
    assert search.next_run() is None and not search.finished
    decision = search.report(other.trial_id, report(other, 3, score=0.1))
    assert (decision.action, decision.reason) == kept
    assert (again := search.next_run()).trial_id == best.trial_id and search.next_run() is None
    run_trial(search, again)
    assert states(recorder) == {best.trial_id: "completed", other.trial_id: "paused"}
    assert len(recorder.of(EpochReported)) == 12 and search.finished


@pytest.mark.parametrize("gangs", [1, 3, 8])
@pytest.mark.parametrize("epochs", [1, 2, 10, 33])
@BOTH
def test_epochs_are_overspent_by_no_more_than_what_runs(tmp_path, recorder, scheduler, epochs, gangs):
    search = open_search(tmp_path, recorder, gangs=gangs, scheduler=scheduler, budget={"epochs": epochs})
    drive(search, gangs=gangs)
    spent = len(recorder.of(EpochReported))
    assert epochs - 9 < spent <= epochs + gangs - 1, "less only by what the end of one trial may have needed"
    assert set(states(recorder).values()) <= {"completed", "stopped", "paused"}


def test_a_plateau_ends_the_search(tmp_path, recorder):
    search = open_search(tmp_path, recorder, budget={"trials": 99, "plateau": 4})
    drive(search, curve=lambda run, epoch: {"score": 0.5 if run.trial_id != "00001" else 0.6})
    assert len(states(recorder)) < 15
    assert search.finished
    assert states(recorder)["00001"] == "completed", "the best is trained to the end"


def test_a_better_figure_of_the_best_trial_is_a_gain():
    incumbent = Incumbent()
    for trial, loss, gain in [("0", 1.0, True), ("1", 2.0, False), ("0", 0.5, True), ("0", 0.7, False)]:
        incumbent.compare(trial, Standing((loss,)))
        assert incumbent.take_gain() is gain and incumbent.trial_id == "0"


def test_what_a_trial_that_failed_had_beaten_is_on_the_front_again():
    incumbent = Incumbent()
    for trial, losses in [("0", (0.0, 0.0)), ("1", (1.0, 1.0)), ("2", (2.0, 0.5)), ("0", (3.0, 0.1))]:
        incumbent.compare(trial, Standing(losses))
    incumbent.forget("0")
    incumbent.take_gain()
    for losses, gain in [((1.5, 1.5), False), ((2.0, 0.6), False), ((1.5, 0.7), True), ((3.0, 0.2), True)]:
        incumbent.compare("3", Standing(losses))
        assert incumbent.take_gain() is gain


@pytest.mark.parametrize("gangs", [1, 2, 4, 8])
@pytest.mark.parametrize("budget", [{"epochs": 20}, {"worker_hours": 20 / 60}, {"epochs": 5}])
def test_where_only_the_last_epoch_has_a_result_some_trials_come_to_it(tmp_path, recorder, budget, gangs):
    """A minute an epoch: two trainings fit into the first budgets, none into the last."""

    def curve(run, epoch):
        return figures(run, epoch) if epoch == 9 else {"worker_s": 60.0, "seconds": 60.0}

    scheduler = {"algorithm": "none", "max_epochs": 9}
    search = open_search(tmp_path, recorder, gangs=gangs, scheduler=scheduler, budget=budget)
    drive(search, gangs=gangs, curve=curve)
    spent = len(recorder.of(EpochReported))
    if budget == {"epochs": 5}:
        assert 5 <= spent < 5 + gangs
    else:
        assert list(states(recorder).values()).count("completed") >= 1 and spent < 20 + gangs


def test_paused_trials_are_pruned_in_the_study_when_the_search_is_closed(tmp_path, recorder):
    described = experiment()
    searcher, scheduler = open_strategy(described, path=None)
    budget = BudgetGuard(described.budget, clock=Clock())
    search = Search(described, searcher=searcher, scheduler=scheduler, budget=budget)
    drive(search)
    told = searcher._study.trials
    assert sorted(trial.state.name for trial in told) == ["COMPLETE", *["RUNNING"] * 5]
    search.close()
    told = searcher._study.trials
    assert sorted(trial.state.name for trial in told) == ["COMPLETE", *["PRUNED"] * 5]
    assert [trial.user_attrs["state"] for trial in told].count("paused") == 5
    assert all(trial.value is not None for trial in told)


# Going on after a driver died.


def as_tables(events, epoch_events=None):
    """What the tables hold after `events`; `epoch_events`: the epochs table, which is written first."""
    trials = {}
    for event in events:
        if isinstance(event, TrialStarted):
            known = trials.get(event.trial_id, {"trial_id": event.trial_id, "worker_s": 0.0})
            trials[event.trial_id] = known | {"state": "running"}
        elif isinstance(event, EpochReported):
            trials[event.trial_id]["worker_s"] += event.metrics.get("worker_s", 0.0) + event.lost_worker_s
        elif isinstance(event, TrialEnded):
            trials[event.trial_id] |= {"state": event.state, "reason": event.reason, "finished_at": event.at}
            trials[event.trial_id]["worker_s"] += event.lost_worker_s
    epochs = [
        {"trial_id": e.trial_id, "epoch": e.epoch, "attempt": e.attempt, "metrics": e.metrics, "at": e.at}
        for e in (events if epoch_events is None else epoch_events)
        if isinstance(e, EpochReported)
    ]
    return list(trials.values()), epochs


def outcome(events):
    """Final states, and the score of every epoch."""
    ended = {}
    for event in events:
        if isinstance(event, TrialEnded):
            ended[event.trial_id] = event.state
    return ended, {(e.trial_id, e.epoch): e.metrics for e in events if isinstance(e, EpochReported)}


def two_figures(run, epoch):
    return figures(run, epoch) | {"size_mb": 1e3 * run.config["learning_rate"]}


def failing(run, epoch):
    if int(run.trial_id) % 4 == epoch:
        return Failure(state="diverged", reason="loss is nan")
    return figures(run, epoch)


def failing_once_promoted(run, epoch):
    if int(run.trial_id) % 3 and epoch == 2:
        return Failure(state="failed", reason="no memory")
    return figures(run, epoch)


def leader_fails(run, epoch):
    """The first is the best by far until it fails; the others are better and better."""
    if run.trial_id == "00000":
        return figures(run, epoch) | {"score": 99.0} if epoch < 5 else Failure(state="failed", reason="x")
    return figures(run, epoch) | {"score": float(run.trial_id) if int(run.trial_id) < 6 else 0.0}


def broken(run, epoch):
    return figures(run, epoch) | ({"score": math.nan} if int(run.trial_id) % 3 == 1 else {})


TWO = [{"metric": "score", "mode": "max"}, {"metric": "size_mb", "mode": "min"}]
SCENARIOS = {
    "promoting": ({}, figures),
    "stopping": ({"scheduler": STOPPING}, figures),
    "no rungs": ({"scheduler": PROMOTING | {"algorithm": "none"}, "budget": {"trials": 3}}, figures),
    "epochs": ({"budget": {"epochs": 31}}, figures),
    "worker-hours": ({"budget": {"worker_hours": 0.4}}, figures),
    "plateau": ({"budget": {"trials": 30, "plateau": 5}}, figures),
    "two objectives": ({"objectives": TWO, "budget": {"trials": 9}}, two_figures),
    "constraint": ({"constraints": [{"metric": "size_mb", "max": 9}]}, two_figures),
    "failures": ({"budget": {"trials": 9}}, failing),
    "plateau and failures": ({"budget": {"trials": 30, "plateau": 7}}, failing),
    "the leader fails": ({"budget": {"trials": 30, "plateau": 4}, "scheduler": STOPPING}, leader_fails),
    "auto and failures": (
        {"search": {"startup_trials": 3}, "scheduler": {"max_epochs": 9}, "budget": {"epochs": 40}},
        failing,
    ),
    "failures after a promotion": ({"budget": {"trials": 18}}, failing_once_promoted),
    "auto and trials": (
        {"search": {"algorithm": "auto"}, "scheduler": {"max_epochs": 4}, "budget": {"trials": 16}},
        failing,
    ),
    "NaN": ({"budget": {"trials": 9}}, broken),
    "NaN and a plateau": ({"budget": {"trials": 30, "plateau": 6}}, broken),
    "tpe": ({"search": {"algorithm": "tpe", "startup_trials": 3}, "budget": {"trials": 9}}, figures),
    "nsga2": (
        {"search": {"algorithm": "nsga2"}, "objectives": TWO, "budget": {"trials": 20}},
        two_figures,
    ),
}


def killed_and_resumed(folder, killed_after, *, gangs=1, curve=figures, **changes):
    """What happens, before and after, where the driver dies after so many epochs and another goes on."""
    folder.mkdir()
    before, after, both = Recorder(), Recorder(), Recorder()
    drive(open_search(folder, before, gangs=gangs, **changes), killed_after, gangs=gangs, curve=curve)
    resumed = open_search(folder, after, gangs=gangs, **changes)
    resumed.replay(*as_tables(before.events))
    drive(resumed, gangs=gangs, curve=curve)
    both.events = before.events + after.events
    return both


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What happens when nobody is killed, by the name of the scenario."""
    known = {}

    def of(name):
        if name not in known:
            recorder, (changes, curve) = Recorder(), SCENARIOS[name]
            drive(open_search(tmp_path_factory.mktemp("whole"), recorder, **changes), curve=curve)
            known[name] = outcome(recorder.events)
        return known[name]

    return of


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path, whole, name):
    """Whenever the driver dies, the resumed one makes the decisions that the first would have made."""
    changes, curve = SCENARIOS[name]
    for killed_after in range(1, min(30, len(whole(name)[1]))):
        both = killed_and_resumed(tmp_path / f"{killed_after}", killed_after, curve=curve, **changes)
        assert outcome(both.events) == whole(name), killed_after


def test_a_search_killed_while_it_trains_the_last_to_its_end_goes_on_with_it(tmp_path, recorder):
    """The tables do not say that it was the last."""
    changes = {
        "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}, "x": {"float": [0, 1]}},
        "search": {"algorithm": "auto", "seed": 2},
        "scheduler": {"max_epochs": 9},
        "budget": {"trials": 16},
    }

    def curve(run, epoch):
        off = (math.log10(run.config["learning_rate"]) + 2.5) ** 2 + (run.config["x"] - 0.6) ** 2
        return figures(run, epoch) | {"score": -off - 1 / epoch}

    (tmp_path / "whole").mkdir()
    drive(open_search(tmp_path / "whole", recorder, **changes), curve=curve)
    whole, reported = outcome(recorder.events), recorder.of(EpochReported)
    last = next(event for event in recorder.of(TrialStarted) if event.why == TO_THE_END)
    its_first = next(n for n, e in enumerate(reported) if e.trial_id == last.trial_id and e.epoch == 2)
    for killed_after in range(its_first, len(reported) + 1):
        both = killed_and_resumed(tmp_path / f"{killed_after}", killed_after, curve=curve, **changes)
        assert outcome(both.events) == whole, killed_after


@pytest.mark.parametrize("budget", [{"trials": 32}, {"epochs": 99}])
def test_with_a_larger_budget_what_waits_at_its_rung_is_not_taken_up_unchosen(tmp_path, recorder, budget):
    """More of the first trials would have passed it, had the budget been that from the start."""
    changes = {"search": {"algorithm": "auto", "seed": 0}, "scheduler": {"max_epochs": 9}}
    drive(open_search(tmp_path, recorder, budget={"trials": 16}, **changes))
    after = Recorder()
    resumed = open_search(tmp_path, after, budget=budget, **changes)
    resumed.replay(*as_tables(recorder.events))
    drive(resumed)
    started = after.of(TrialStarted)
    assert {event.trial_id for event in started} > {"00016"}
    assert "taken up again" not in [event.why for event in started]


def test_epochs_whose_figures_are_none_are_counted_once_by_a_resumed_run(tmp_path):
    """Between full epochs, too, where the table has an empty cell and nothing but the reason tells."""

    def curve(run, epoch):
        wrong = int(run.trial_id) % 2 and epoch == 2
        return figures(run, epoch) | ({"score": math.nan} if wrong else {})

    whole, before, after = Recorder(), Recorder(), Recorder()
    changes = {"scheduler": STOPPING, "budget": {"epochs": 40}}
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    drive(open_search(tmp_path / "whole", whole, **changes), curve=curve)
    drive(open_search(tmp_path / "killed", before, **changes), 25, curve=curve)
    trials, epochs = as_tables(before.events)
    for row in epochs:
        row["metrics"] = {name: value for name, value in row["metrics"].items() if not math.isnan(value)}
    resumed = open_search(tmp_path / "killed", after, **changes)
    resumed.replay(trials, epochs)
    drive(resumed, curve=curve)
    assert len(before.of(EpochReported)) + len(after.of(EpochReported)) == len(whole.of(EpochReported))


@pytest.mark.parametrize("unwritten", [0, 3, 8])
def test_tables_that_were_behind_the_study_lose_no_trial(tmp_path, whole, unwritten):
    """The study is written at once, the tables from time to time, epochs before trials."""
    for behind in range(1, 20):
        folder = tmp_path / f"{behind}"
        folder.mkdir()
        before, after = Recorder(), Recorder()
        drive(open_search(folder, before, scheduler=STOPPING), limit=14)
        epochs_until = len(before.events) - unwritten
        trials_until = max(0, epochs_until - behind)
        resumed = open_search(folder, after, scheduler=STOPPING)
        resumed.replay(*as_tables(before.events[:trials_until], before.events[:epochs_until]))
        drive(resumed)
        known = [e for e in before.events[:trials_until] if not isinstance(e, EpochReported)]
        known += [e for e in before.events[:epochs_until] if isinstance(e, EpochReported)]
        assert outcome(known + after.events) == whole("stopping"), behind


@pytest.mark.parametrize("unwritten", [0, 3, 8])
def test_under_promotion_too_tables_behind_the_study_lose_no_trial(tmp_path, unwritten):
    """Epochs that were lost are trained again, so others may be promoted; but every trial is known."""
    for behind in range(1, 20):
        folder = tmp_path / f"{behind}"
        folder.mkdir()
        before, after = Recorder(), Recorder()
        drive(open_search(folder, before), limit=14)
        epochs_until = len(before.events) - unwritten
        trials_until = max(0, epochs_until - behind)
        resumed = open_search(folder, after)
        resumed.replay(*as_tables(before.events[:trials_until], before.events[:epochs_until]))
        drive(resumed)
        known = [e for e in before.events[:trials_until] if not isinstance(e, EpochReported)]
        known += [e for e in before.events[:epochs_until] if isinstance(e, EpochReported)]
        both = Recorder()
        both.events = known + after.events
        assert sorted(states(both)) == [f"{number:05d}" for number in range(6)], behind
        assert all(done == list(range(1, len(done) + 1)) for done in epochs_of(both).values()), behind
        assert completed_best(both)[1] == "completed", behind


@pytest.mark.parametrize("killed_after", [5, 17, 30])
@pytest.mark.parametrize("name", ["promoting", "stopping", "two objectives", "failures"])
def test_killed_with_several_gangs_nothing_is_lost_or_done_twice(tmp_path, name, killed_after):
    changes, curve = SCENARIOS[name]
    changes = changes | {"budget": {"trials": 20}}
    both = killed_and_resumed(tmp_path / "run", killed_after, gangs=2, curve=curve, **changes)
    assert len(states(both)) == 20
    assert all(done == list(range(1, len(done) + 1)) for done in epochs_of(both).values())


@pytest.mark.parametrize("everywhere", [False, True], ids=["figures at rungs", "figures everywhere"])
@pytest.mark.parametrize("algorithm", ["asha", "front", "auto"])
def test_who_went_on_from_its_rung_is_not_promoted_again_by_a_resumed_run(tmp_path, algorithm, everywhere):
    """Between rungs captioning has no objective, so no result tells the scheduler that a trial went on."""

    def curve(run, epoch):
        told = everywhere or epoch in (1, 3, 9)
        return figures(run, epoch) if told else {"worker_s": 60.0, "seconds": 60.0}

    changes = {"scheduler": PROMOTING | {"algorithm": algorithm}}
    if algorithm == "auto":
        changes |= {"search": {"algorithm": "auto"}, "budget": {"epochs": 60}}
    for limit in range(30, 50, 4) if algorithm == "auto" else range(4, 16):
        folder = tmp_path / f"{limit}"
        folder.mkdir()
        before, after = Recorder(), Recorder()
        drive(open_search(folder, before, **changes), limit, curve=curve)
        resumed = open_search(folder, after, **changes)
        resumed.replay(*as_tables(before.events))
        drive(resumed, gangs=2, curve=curve)  # asserts that nothing runs twice


@pytest.mark.parametrize("limit", [20, 27, 34, 38])
@pytest.mark.parametrize("diverge", [False, True])
def test_a_resumed_run_spends_the_budget_that_is_left_no_more_and_no_less(tmp_path, limit, diverge):
    """One that was interrupted near the limit is finished, and an epoch that diverged was one."""

    def curve(run, epoch):
        value = math.nan if diverge and int(run.trial_id) % 2 and epoch == 3 else -float(run.trial_id)
        return {"score": value, "seconds": 1.0}

    changes = {"scheduler": {"algorithm": "none", "max_epochs": 9}, "budget": {"epochs": 40}}
    (tmp_path / "whole").mkdir()
    whole = Recorder()
    drive(open_search(tmp_path / "whole", whole, **changes), curve=curve)
    both = killed_and_resumed(tmp_path / "resumed", limit, curve=curve, **changes)
    done = [(event.trial_id, event.epoch) for event in both.of(EpochReported)]
    assert done == [(event.trial_id, event.epoch) for event in whole.of(EpochReported)]


def test_why_a_trial_began_and_went_on_is_told_and_survives_a_kill(tmp_path, recorder):
    asked = {"algorithm": "random", "start": [{"learning_rate": 0.01}]}
    open_search(tmp_path, recorder, search=asked).next_run()
    resumed = open_search(tmp_path, recorder, search=asked)
    resumed.replay([], [])  # killed before the tables were written: only the study knows the trial
    drive(resumed)
    first, again, *others = [event.why for event in recorder.of(TrialStarted)]
    assert first == again == "number 1 of search.start"
    assert "drawn at random" in others and "rung 0: the best that waits, 1 of 3 promoted" in others


def test_a_resumed_search_has_the_rungs_and_the_paused_trials_of_the_first(tmp_path):
    before, after = Recorder(), Recorder()
    first = open_search(tmp_path, before)
    for value in (0.1, 0.3, 0.2):
        run = first.next_run()
        first.report(run.trial_id, report(run, 1, score=value))
    first.report(first.next_run().trial_id, report(run, 2))  # killed while the promoted one goes on
    resumed = open_search(tmp_path, after)
    resumed.replay(*as_tables(before.events))
    assert [(event.trial_id, event.state, event.reason) for event in after.of(TrialEnded)] == [
        ("00001", "paused", INTERRUPTED)
    ]
    again = resumed.next_run()
    assert (again.trial_id, again.epoch) == ("00001", 2)
    for value in (0.0, 0.0):
        run = resumed.next_run()
        resumed.report(run.trial_id, report(run, 1, score=value))
    run = resumed.next_run()
    assert run.trial_id == "00005"  # rung 0 has 5 members and gave its one promotion before the kill
    resumed.report(run.trial_id, report(run, 1, score=0.0))
    assert resumed.next_run().trial_id == "00002"  # the best of those who were paused in the first run


@pytest.mark.parametrize("more", [{"trials": 12}, {"epochs": 60}])
def test_a_finished_search_goes_on_under_a_larger_budget(tmp_path, more):
    before, after = Recorder(), Recorder()
    first = open_search(tmp_path, before)
    drive(first)
    first.close()
    resumed = open_search(tmp_path, after, budget=more)
    resumed.replay(*as_tables(before.events))
    drive(resumed)
    both = Recorder()
    both.events = before.events + after.events
    assert len(states(both)) > 6
    assert all(done == list(range(1, len(done) + 1)) for done in epochs_of(both).values())
    assert completed_best(both)[1] == "completed"


def test_tables_without_their_study_are_refused(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    with pytest.raises(ExperimentError, match=r"study.journal does not know: 00007"):
        search.replay([{"trial_id": "00007", "state": "running"}], [])


def test_an_interrupted_or_lost_trial_is_paused_until_it_runs_again(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    lost, running = search.next_run(), search.next_run()
    search.lose(lost.trial_id, "its actor died")
    search.interrupt()
    paused = [(event.trial_id, event.state) for event in recorder.of(TrialEnded)]
    assert paused == [(lost.trial_id, "paused"), (running.trial_id, "paused")]
    after = Recorder()
    resumed = open_search(tmp_path, after)
    resumed.replay([{"trial_id": "00000", "state": "paused"}, {"trial_id": "00001", "state": "running"}], [])
    assert [(event.trial_id, event.state) for event in after.of(TrialEnded)] == [("00001", "paused")]
    assert [resumed.next_run().trial_id for _ in range(2)] == ["00000", "00001"]


def test_a_start_that_not_all_heard_of_is_no_start(tmp_path, recorder):
    """A second Ctrl-C strikes, or storage is full, while the first listener writes it down."""

    class Struck(Recorder):
        def handle(self, event):
            super().handle(event)
            if len(self.events) == 2:
                raise KeyboardInterrupt

    search = open_search(tmp_path, recorder)
    search._listeners.insert(0, Struck())
    first = search.next_run()
    with pytest.raises(KeyboardInterrupt):
        search.next_run()
    search.interrupt()
    assert [event.trial_id for event in recorder.events] == [first.trial_id] * 2
    resumed = open_search(tmp_path, Recorder())
    resumed.replay([{"trial_id": "00000", "state": "paused"}], [])
    assert [resumed.next_run().trial_id for _ in range(2)] == ["00000", "00001"]


@BOTH
def test_a_nan_at_a_rung_stops_the_trial_also_when_read_from_the_table(tmp_path, recorder, scheduler):
    search = open_search(tmp_path, recorder, scheduler=scheduler)
    run = search.next_run()
    resumed = open_search(tmp_path, recorder, scheduler=scheduler)
    at = recorder.of(TrialStarted)[-1].at
    row = {"trial_id": run.trial_id, "epoch": 1, "attempt": 1, "metrics": {}, "at": at}
    resumed.replay([{"trial_id": run.trial_id, "state": "running"}], [row])
    assert recorder.of(TrialEnded)[-1].state == "diverged"
    assert resumed.next_run().trial_id == "00001"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@BOTH
def test_an_objective_that_is_no_number_is_a_divergence_and_a_false_start(
    tmp_path, recorder, scheduler, value
):
    search = open_search(tmp_path, recorder, scheduler=scheduler, budget={"trials": 30})
    while not search.finished:
        run = search.next_run()
        search.report(run.trial_id, report(run, 1, seconds=1.0, score=value))
    ends = recorder.of(TrialEnded)
    assert {(end.state, end.reason) for end in ends} == {
        ("diverged", "score after epoch 1: not a finite number")
    }
    assert len(ends) == 10 and search.given_up.startswith("all of the first 10 trials went wrong")


def test_a_suggestion_that_no_table_knows_is_run_as_suggested(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    lost = search.next_run()  # the driver dies before a table is written
    again = open_search(tmp_path, recorder)
    again.replay([], [])
    run = again.next_run()
    assert (run.trial_id, run.config) == (lost.trial_id, lost.config)


def test_work_that_came_to_no_epoch_is_told_and_counted_by_a_resumed_run_too(tmp_path, recorder):
    """An epoch takes two workers 60 s; each mishap comes 30 s into the next one."""
    clock = Clock()

    def now():
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=clock.now)

    def worked(run, epoch, attempt=1):
        metrics = {"score": 1.0, "worker_s": 120.0, "seconds": 60.0}
        clock.now += 60
        search.report(run.trial_id, Report(epoch=epoch, metrics=metrics, attempt=attempt, node="here"))

    changes = {"training": {"workers": 2}, "scheduler": {"algorithm": "none", "max_epochs": 9}}
    search = open_search(tmp_path, recorder, now=now, can_halve=lambda *_: True, **changes)
    first = search.next_run()
    worked(first, 1)
    clock.now += 30
    search.fail(first.trial_id, Failure(state="out_of_memory", reason="much"))  # and is tried with less
    clock.now += 1000  # nobody's work
    search.next_run()
    clock.now += 30
    search.lose(first.trial_id, "its gang left")
    search.next_run()
    clock.now += 30
    worked(first, 2, attempt=4)  # its workers had died, and others did it again
    clock.now += 30
    search.fail(first.trial_id, Failure(state="failed", reason="broken"))
    second = search.next_run()
    worked(second, 1)
    clock.now += 30
    search.halt()
    clock.now += 1000  # gangs are being ended
    search.interrupt()
    ended = [event.lost_worker_s for event in recorder.of(TrialEnded)]
    assert ended == [60.0, 60.0, 60.0, 60.0]
    assert [event.lost_worker_s for event in recorder.of(EpochReported)] == [0.0, 60.0, 0.0]
    assert search._budget.worker_s == 3 * 120 + 5 * 60
    resumed = open_search(tmp_path, recorder, **changes)
    resumed.replay(*as_tables(recorder.events))
    assert resumed._budget.worker_s == search._budget.worker_s


def test_a_budget_of_worker_hours_ends_where_trials_fail(tmp_path, recorder):
    clock = Clock()

    def failing_late(run, epoch):
        clock.now += 600
        return figures(run, epoch) if int(run.trial_id) < 3 else Failure(state="failed", reason="late")

    def now():
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=clock.now)

    changes = {"budget": {"worker_hours": 2}, "scheduler": {"algorithm": "none", "max_epochs": 1}}
    drive(open_search(tmp_path, recorder, now=now, **changes), curve=failing_late)
    assert 7200 - 3 * 60 <= 600 * (len(states(recorder)) - 3) <= 7200 + 600
