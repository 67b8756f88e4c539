"""Checkpoints under a quota: any sequence of events leaves what is needed, and no more than is allowed."""

import dataclasses
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import Clock, ended, epoch, experiment, started

from tuning.events import FINAL_STATES
from tuning.tables.checkpoints import CheckpointFolders, CheckpointKeeper
from tuning.tables.comparison import WENT_WRONG
from tuning.tables.ledger import Ledger
from tuning.tables.quota import Checkpoint, superfluous
from tuning.tables.results_writer import ResultsWriter

SIZE_MB = 10.0


def checkpoint(place, needed=False):
    return Checkpoint(name=f"{place}", size_mb=SIZE_MB, needed=needed, place=place)


def test_the_worst_trials_go_first_and_no_more_than_must():
    assert superfluous([checkpoint(place) for place in (2, 0, 1)], 20.0) == ["2"]
    assert superfluous([checkpoint(place) for place in (2, 0, 1)], 30.0) == []


def test_what_is_needed_stays_whatever_the_quota():
    assert superfluous([checkpoint(0, needed=True), checkpoint(5, needed=True), checkpoint(1)], 0.0) == ["1"]


class Run:
    """Tables, keeper and the folders that a gang would write."""

    def __init__(self, folder, objectives=(("cider", "max"),), constraints=(), **quota):
        self.folder, self.done, self.state, self.events = folder, {}, {}, []
        self.experiment = experiment(folder, objectives=objectives, constraints=constraints)
        self.writer = ResultsWriter(self.experiment, clock=Clock())
        self.keeper = CheckpointKeeper(CheckpointFolders(folder / "checkpoints"), self.writer, **quota)

    def tell(self, event):
        self.events.append(event)
        self.writer.handle(event)
        self.keeper.handle(event)

    def epoch(self, trial, cider, **figures):
        if trial not in self.done:
            self.done[trial] = 0
            self.tell(started(trial))
        self.done[trial] += 1
        (self.folder / "checkpoints" / trial / f"{self.done[trial]}").mkdir(parents=True)
        report = epoch(trial, self.done[trial], cider=cider, **figures)
        self.tell(dataclasses.replace(report, metrics=dict(report.metrics) | {"checkpoint_mb": SIZE_MB}))

    def end(self, trial, state):
        if trial in self.done and self.state.get(trial) not in FINAL_STATES:
            self.state[trial] = state
            self.tell(dataclasses.replace(ended(trial), state=state))

    def on_disk(self):
        return {f"{path.parent.name}/{path.name}" for path in self.folder.glob("checkpoints/*/*")}


TRIALS = st.sampled_from("abcde")
EVENTS = st.one_of(
    st.tuples(st.just("epoch"), TRIALS, st.sampled_from([0.1, 0.2, 0.3, 0.4])),
    st.tuples(st.just("end"), TRIALS, st.sampled_from(["paused", "stopped", "completed", "failed"])),
)


@pytest.mark.timeout(60)
@settings(max_examples=30, deadline=None)
@given(st.lists(EVENTS, max_size=30), st.sampled_from([0.0, 20.0, 40.0, float("inf")]))
def test_any_run_keeps_what_it_may_go_on_from_and_the_best(events, max_mb):
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), max_mb=max_mb)
        for kind, trial, value in events:
            if kind == "end":
                run.end(trial, value)
            elif run.state.get(trial) not in FINAL_STATES:
                run.epoch(trial, value)
        ledger, found = run.writer.ledger, run.on_disk()
        last = {f"{t}/{n}" for t, n in run.done.items() if run.state.get(t) not in FINAL_STATES}
        assert last <= found, "somebody may go on from these"
        needed = set(last)
        for trial in ledger.best_first():  # those that are not over may fail, and then the next is the best
            needed.add(ledger.trials[trial]["checkpoint"].removeprefix("checkpoints/"))
            if run.state.get(trial) in FINAL_STATES:
                break
        assert needed <= found, "never the best's"
        assert not any(run.state.get(name.split("/")[0]) in WENT_WRONG for name in found)
        assert len(found) * SIZE_MB <= max(max_mb, len(needed) * SIZE_MB)
        if max_mb == float("inf"):
            for trial, row in ledger.trials.items():
                wrong = run.state.get(trial) in WENT_WRONG
                assert wrong or row["checkpoint"].removeprefix("checkpoints/") in found


def test_when_the_best_fails_the_next_best_still_has_its_checkpoint(tmp_path):
    run = Run(tmp_path, max_mb=0.0)
    for trial, cider in (("a", 0.2), ("a", 0.1), ("b", 0.3), ("c", 0.1)):
        run.epoch(trial, cider)
    run.end("b", "failed")
    assert run.writer.ledger.best()["checkpoint"] == "checkpoints/a/1"
    assert run.on_disk() == {"a/1", "a/2", "c/1"}


def test_when_one_of_the_front_fails_those_that_it_beat_still_have_their_checkpoints(tmp_path):
    run = Run(tmp_path, objectives=(("cider", "max"), ("latency_ms", "min")), max_mb=0.0)
    for trial, cider, latency_ms in (("a", 0.4, 1.0), ("b", 0.3, 3.0), ("c", 0.2, 2.0), ("d", 0.1, 3.0)):
        run.epoch(trial, cider, latency_ms=latency_ms)
        run.end(trial, "paused" if trial == "a" else "stopped")
    assert run.on_disk() == {"a/1", "b/1", "c/1"}, "d is beaten by one that is over"
    run.end("a", "failed")
    assert run.writer.ledger.front() == ["b", "c"]
    assert run.on_disk() == {"b/1", "c/1"}


@pytest.mark.timeout(60)
@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(TRIALS, st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([1.0, 2.0, 3.0])), max_size=12
    ),
    st.dictionaries(TRIALS, st.sampled_from(["stopped", "completed", "failed"]), max_size=4),
    st.sampled_from([(), ({"metric": "size_mb", "max": 2.0},)]),
)
def test_whoever_fails_the_front_that_is_left_has_its_checkpoints(epochs, ends, constraints):
    objectives = (("cider", "max"), ("latency_ms", "min"))
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), objectives=objectives, constraints=constraints, max_mb=0.0)
        for trial, cider, size in epochs:
            run.epoch(trial, cider, latency_ms=size, size_mb=size)
        for trial, state in ends.items():
            run.end(trial, state)
        ledger = run.writer.ledger
        going = [trial for trial in run.done if trial not in run.state]
        for number in range(len(going) + 1):
            for failing in combinations(going, number):
                left = Ledger(run.experiment)
                fail = (dataclasses.replace(ended(trial), state="failed") for trial in failing)
                for event in (*run.events, *fail):
                    left.apply(event)
                best = left.best()
                for trial in {*left.front(), *([best["trial_id"]] if best else [])}:
                    assert ledger.trials[trial]["checkpoint"].removeprefix("checkpoints/") in run.on_disk()


def test_parents_keep_theirs_and_they_ran_all_their_epochs(tmp_path):
    run = Run(tmp_path, max_mb=0.0, parents=2)
    for trial, cider, state in (
        ("a", 0.4, "stopped"),
        ("b", 0.3, "completed"),
        ("c", 0.2, "stopped"),
        ("d", 0.1, "completed"),
        ("e", 0.05, "completed"),
    ):
        run.epoch(trial, cider)
        run.end(trial, state)
    assert run.on_disk() == {"a/1", "b/1", "d/1"}


def test_room_is_made_of_what_nobody_needs(tmp_path):
    run = Run(tmp_path)
    for trial, cider in (("a", 0.3), ("b", 0.2), ("c", 0.1)):
        run.epoch(trial, cider)
        run.end(trial, "stopped" if trial != "c" else "paused")
    assert run.on_disk() == {"a/1", "b/1", "c/1"}
    assert run.keeper.make_room()
    assert run.on_disk() == {"a/1", "c/1"}
    assert not run.keeper.make_room(), "there is nothing left to delete"
    run.epoch("d", 0.05)
    assert run.on_disk() == {"a/1", "c/1", "d/1"}, "what comes later is kept again"
