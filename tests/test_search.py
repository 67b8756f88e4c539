"""The search under a loop of a few lines: no Ray, no waiting."""

import math

import pytest

from trainables.order import Failure, Report
from tuning.budget import BudgetGuard
from tuning.events import EpochReported, TrialEnded, TrialStarted
from tuning.experiment import Experiment, ExperimentError
from tuning.search import Search
from tuning.searcher import Searcher


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
        "scheduler": {"min_epochs": 1, "max_epochs": 9, "reduction_factor": 3},
        "budget": {"trials": 6},
    }
    return Experiment.from_dict(tree | changes)


@pytest.fixture
def recorder():
    return Recorder()


def open_search(tmp_path, recorder, clock=None, **changes):
    described = experiment(**changes)
    searcher = Searcher(
        path=tmp_path / "study.journal", name="test", space=described.space, mode="max", algorithm="random"
    )
    budget = BudgetGuard(
        trials=described.budget.trials, time_s=described.budget.time_s, clock=clock or Clock()
    )
    return Search(described, searcher=searcher, budget=budget, listeners=[recorder])


def score(run, epoch):
    return math.log10(run.config["learning_rate"]) + 0.1 * epoch


def report(run, epoch, **metrics):
    metrics = metrics or {"score": score(run, epoch)}
    return Report(epoch=epoch, metrics=metrics, attempt=run.attempt, node="here")


def run_trial(search, run, epochs=9):
    for epoch in range(run.epoch + 1, epochs + 1):
        if search.report(run.trial_id, report(run, epoch)).ends:
            return


def test_the_budget_of_trials_is_spent_and_not_more(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    while (run := search.next_run()) is not None:
        run_trial(search, run)
    assert search.finished
    assert len(recorder.of(TrialStarted)) == 6
    assert len(recorder.of(TrialEnded)) == 6
    states = {event.state for event in recorder.of(TrialEnded)}
    assert states == {"completed", "stopped"}


def test_a_stopped_trial_says_where_and_why(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    first, second = search.next_run(), search.next_run()
    search.report(first.trial_id, report(first, 1, score=0.5))
    decision = search.report(second.trial_id, report(second, 1, score=0.1))
    assert decision.ends
    assert recorder.of(EpochReported)[-1].rung == 0
    ended = recorder.of(TrialEnded)[-1]
    assert (ended.trial_id, ended.state) == (second.trial_id, "stopped")
    assert "rung 0" in ended.reason


def test_a_trial_that_was_lost_is_run_again_from_its_last_epoch(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
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


def test_an_epoch_that_is_reported_again_counts_once(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    run = search.next_run()
    search.report(run.trial_id, report(run, 1))
    search.report(run.trial_id, report(run, 1))
    assert len(recorder.of(EpochReported)) == 1


def test_a_failure_of_one_trial_leaves_the_others_alone(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    bad, good = search.next_run(), search.next_run()
    search.fail(bad.trial_id, Failure(state="diverged", reason="loss is nan"))
    run_trial(search, good)
    states = [event.state for event in recorder.of(TrialEnded)]
    assert states == ["diverged", "completed"]


def test_when_time_is_up_running_epochs_are_kept_and_trials_paused(tmp_path, recorder):
    clock = Clock()
    search = open_search(tmp_path, recorder, clock, budget={"time": 60})
    run = search.next_run()
    clock.now = 61
    assert search.next_run() is None
    decision = search.report(run.trial_id, report(run, 1))
    assert decision.ends
    assert recorder.of(EpochReported)[-1].epoch == 1
    assert recorder.of(TrialEnded)[-1].state == "paused"
    assert search.finished


def test_a_missing_objective_fails_the_trial_with_the_nearest_name(tmp_path, recorder):
    search = open_search(tmp_path, recorder, objectives=[{"metric": "scor", "mode": "max"}])
    run = search.next_run()
    decision = search.report(run.trial_id, report(run, 1))
    assert decision.ends
    ended = recorder.of(TrialEnded)[-1]
    assert ended.state == "failed"
    assert "'scor'" in ended.reason and "did you mean 'score'" in ended.reason


def as_tables(events, epoch_events=None):
    """What the tables hold after `events`; `epoch_events`: the epochs table, which is written first."""
    ends = {event.trial_id: event.state for event in events if isinstance(event, TrialEnded)}
    trials = {
        event.trial_id: {"trial_id": event.trial_id, "state": ends.get(event.trial_id, "running")}
        for event in events
        if isinstance(event, TrialStarted)
    }
    epochs = [
        {"trial_id": e.trial_id, "epoch": e.epoch, "attempt": e.attempt, "metrics": e.metrics}
        for e in (events if epoch_events is None else epoch_events)
        if isinstance(e, EpochReported)
    ]
    return list(trials.values()), epochs


def drive(search, limit=None):
    """Run trial after trial, up to `limit` epochs in all."""
    done = 0
    while (run := search.next_run()) is not None:
        for epoch in range(run.epoch + 1, 10):
            decision = search.report(run.trial_id, report(run, epoch))
            done += 1
            if done == limit:
                return
            if decision.ends:
                break


def outcome(events):
    """Final states, and the score of every epoch."""
    states = {e.trial_id: e.state for e in events if isinstance(e, TrialEnded)}
    epochs = {(e.trial_id, e.epoch): e.metrics["score"] for e in events if isinstance(e, EpochReported)}
    return states, epochs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What happens when nobody is killed."""
    recorder = Recorder()
    drive(open_search(tmp_path_factory.mktemp("whole"), recorder))
    return outcome(recorder.events)


@pytest.mark.parametrize("killed_after", range(1, 16))
def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path, whole, killed_after):
    """Whenever the driver dies, the resumed one makes the decisions that the first would have made."""
    before, after = Recorder(), Recorder()
    drive(open_search(tmp_path, before), limit=killed_after)
    resumed = open_search(tmp_path, after)
    resumed.replay(*as_tables(before.events))
    drive(resumed)
    assert outcome(before.events + after.events) == whole


@pytest.mark.parametrize("unwritten", [0, 3, 8])
@pytest.mark.parametrize("behind", range(1, 20))
def test_tables_that_were_behind_the_study_lose_no_trial(tmp_path, whole, behind, unwritten):
    """The study is written at once, the tables from time to time, epochs before trials."""
    before, after = Recorder(), Recorder()
    drive(open_search(tmp_path, before), limit=14)
    epochs_until = len(before.events) - unwritten
    trials_until = max(0, epochs_until - behind)
    resumed = open_search(tmp_path, after)
    resumed.replay(*as_tables(before.events[:trials_until], before.events[:epochs_until]))
    drive(resumed)
    known = [e for e in before.events[:trials_until] if not isinstance(e, EpochReported)]
    known += [e for e in before.events[:epochs_until] if isinstance(e, EpochReported)]
    assert outcome(known + after.events) == whole


def test_tables_without_their_study_are_refused(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    with pytest.raises(ExperimentError, match="study.journal does not know: 00007"):
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


def test_a_nan_at_a_rung_stops_the_trial_also_when_read_from_the_table(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    run = search.next_run()
    resumed = open_search(tmp_path, recorder)
    row = {"trial_id": run.trial_id, "epoch": 1, "attempt": 1, "metrics": {}}
    resumed.replay([{"trial_id": run.trial_id, "state": "running"}], [row])
    assert recorder.of(TrialEnded)[-1].state == "stopped"
    assert resumed.next_run().trial_id == "00001"


def test_a_suggestion_that_no_table_knows_is_run_as_suggested(tmp_path, recorder):
    search = open_search(tmp_path, recorder)
    lost = search.next_run()  # the driver dies before a table is written
    again = open_search(tmp_path, recorder)
    again.replay([], [])
    run = again.next_run()
    assert (run.trial_id, run.config) == (lost.trial_id, lost.config)
