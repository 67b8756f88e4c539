"""The progress display: plain lines in a file, a panel in a terminal, an honest estimate of the time left."""

import io
import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from tuning.events import EpochReported, GangClosed, TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.progress import Progress
from tuning.tables.results_writer import ResultsWriter

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def experiment(tmp_path, **more):
    return Experiment.from_dict(
        {
            "name": "birds",
            "storage": str(tmp_path),
            "trainable": "curves",
            "search_space": {"learning_rate": {"float": [1e-4, 1e-1]}},
            "objectives": [{"metric": "cider", "mode": "max"}],
            "budget": {"trials": 4},
            **more,
        }
    )


def start(trial):
    return TrialStarted(trial_id=trial, config={"learning_rate": 0.0123456}, at=AT)


def epoch(trial, number, **metrics):
    return EpochReported(
        trial_id=trial, epoch=number, attempt=1, metrics=metrics, checkpoint="c", gang="g", node="n", at=AT
    )


def end(trial, state="completed", reason="all done"):
    return TrialEnded(trial_id=trial, state=state, reason=reason, at=AT)


def test_a_closed_gang_has_a_line(tmp_path, clock):
    progress, output = plain(experiment(tmp_path), clock)
    progress.handle(GangClosed(gang="birds-gang-1", reason="its workers died 5 times in a row", at=AT))
    assert "birds-gang-1 closed: its workers died 5 times in a row" in output()
    assert ResultsWriter(experiment(tmp_path)).trials.empty


def plain(spec, clock):
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    return Progress(spec, console=console, clock=clock, heartbeat_s=30), console.file.getvalue


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError()])
def test_no_run_ends_because_its_display_cannot_be_written(tmp_path, clock, monkeypatch, error, terminal):
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # rich redirects the process's own output then

    class Gone(io.StringIO):
        def write(self, text):
            raise error

    console = Console(file=Gone(), force_terminal=terminal)
    progress = Progress(experiment(tmp_path), console=console, clock=clock)
    for event in (start("00000"), epoch("00000", 1, cider=0.5), end("00000")):
        progress.handle(event)
        clock.now += 60
    progress.close()


def test_plain_lines_name_every_trial_that_ended(tmp_path, clock):
    progress, output = plain(experiment(tmp_path), clock)
    progress.handle(start("00000"))
    progress.handle(epoch("00000", 1, cider=0.25))
    clock.now += 65
    progress.handle(end("00000"))
    progress.handle(start("00001"))
    progress.handle(end("00001", "failed", "ZeroDivisionError: division by zero"))
    progress.close()
    lines = [line for line in output().splitlines() if "0000" in line]
    assert any("00000 completed" in line and "cider 0.25" in line and "1:05" in line for line in lines)
    assert any("learning_rate=0.01235" in line for line in lines)  # one long line, never wrapped
    assert any("00001 failed" in line and "division by zero" in line for line in lines)
    assert "2 of 4 trials done (1 completed · 1 failed); best cider 0.25" in output().splitlines()[-1]
    assert "\x1b" not in output()


def test_what_starts_or_goes_on_is_shown_with_its_reason(tmp_path, clock):
    progress, output = plain(experiment(tmp_path), clock)
    progress.handle(replace(start("00000"), why="drawn at random"))
    progress.handle(epoch("00000", 1, cider=0.25))
    progress.handle(end("00000", "paused", "rung 0: waits for promotion"))
    progress.handle(replace(start("00000"), why="rung 0: the best that waits, 1 of 3 promoted"))
    with progress._console.capture() as shown:
        progress._console.print(progress.panel())
    again = "00000 goes on after epoch 1: rung 0: the best that waits, 1 of 3 promoted"
    assert again[:60] in shown.get()
    assert "▸ 00000 starts: drawn at random" in output() and f"▸ {again}" in output()


def test_heartbeats_are_bounded(tmp_path, clock):
    progress, output = plain(experiment(tmp_path), clock)
    progress.handle(start("00000"))
    for _ in range(1000):
        clock.now += 0.1
        progress.tick()
    assert output().count("0 of 4 trials done (1 running)") == 3  # 100 seconds, one line in 30


def test_what_is_spent_of_each_limit_is_shown(tmp_path, clock):
    budget = {"epochs": 200, "worker_hours": 2, "money": 5, "price_per_hour": 1.5}
    spec = experiment(tmp_path, budget=budget)
    before = ResultsWriter(spec)
    for event in [start("a"), epoch("a", 1, cider=0.3, worker_s=1800.0), end("a", "paused", "rung 0")]:
        before.handle(event)
    before.close()
    progress, output = plain(spec, clock)  # a resumed run goes on counting
    progress.handle(start("a"))
    progress.handle(epoch("a", 2, cider=0.3, worker_s=1800.0))
    spent = "2 of 200 epochs, 1 of 2 worker-hours, 1.5 of 5 in money"
    with progress._console.capture() as shown:
        progress._console.print(progress.panel())
    assert f"spent {spent}" in shown.get()
    progress.close()
    assert f"(1 running), {spent}; best" in output()


def test_a_paused_trial_is_done_for_now_and_gets_a_short_line(tmp_path, clock):
    progress, output = plain(experiment(tmp_path), clock)
    progress.handle(start("00000"))
    progress.handle(epoch("00000", 1, cider=0.25))
    progress.handle(end("00000", "paused", "rung 0: waits for promotion"))
    progress.handle(start("00001"))
    progress.close()
    (line,) = [line for line in output().splitlines() if "00000 paused" in line]
    assert "cider 0.25" in line and "(rung 0: waits for promotion)" in line and "learning_rate" not in line
    assert "1 of 4 trials done (1 running · 1 paused)" in output().splitlines()[-1]


def test_several_objectives_show_the_front_and_its_hypervolume(tmp_path, clock):
    objectives = [
        {"metric": "cider", "mode": "max", "reference": 0.0},
        {"metric": "size_mb", "mode": "min", "reference": 10.0},
    ]
    progress, output = plain(experiment(tmp_path, objectives=objectives), clock)
    for trial, cider, size in [("a", 0.5, 8.0), ("b", 0.25, 2.0), ("c", 0.2, 9.0)]:
        progress.handle(start(trial))
        progress.handle(epoch(trial, 1, cider=cider, size_mb=size))
        progress.handle(end(trial))
    with progress._console.capture() as shown:
        progress._console.print(progress.panel())
    assert "front 2 trials, hypervolume 2.5" in shown.get()  # 0.5 * 2 + 0.25 * 6
    progress.close()
    ended = [line for line in output().splitlines() if "completed" in line and "trials done" not in line]
    assert ["hypervolume 1 " in ended[0], "hypervolume 2.5" in ended[1]] == [True, True]
    assert "cider 0.25" in ended[1] and "size_mb 2" in ended[1]
    assert "best cider 0.5  size_mb 8  trial a, epoch 1; front 2 trials, hypervolume 2.5" in output()


def test_best_so_far_keeps_the_constraints(tmp_path, clock):
    spec = experiment(tmp_path, constraints=[{"metric": "size_mb", "max": 20.0}])
    progress, output = plain(spec, clock)
    for trial, cider, size in [("big", 0.9, 50.0), ("small", 0.4, 10.0)]:
        progress.handle(start(trial))
        progress.handle(epoch(trial, 1, cider=cider, size_mb=size))
    assert "best so far: cider 0.4  trial small" in output()
    progress.handle(start("wild"))
    progress.handle(epoch("wild", 1, cider=0.7, size_mb=1.0))
    progress.handle(end("wild", "diverged", "loss is NaN"))
    progress.close()
    assert "best cider 0.4  trial small" in output().splitlines()[-1]


def test_a_resumed_run_counts_what_was_done_before(tmp_path, clock):
    spec = experiment(tmp_path)
    before = ResultsWriter(spec)
    for event in [start("a"), epoch("a", 1, cider=0.3), end("a"), start("b"), epoch("b", 1, cider=0.2)]:
        before.handle(event)
    before.close()
    progress, output = plain(spec, clock)
    progress.handle(start("b"))
    progress.close()
    assert "1 of 4 trials done (1 running · 1 completed); best cider 0.3" in output()


def test_how_well_early_epochs_rank_the_end_is_shown_once_known(tmp_path, clock):
    spec = experiment(tmp_path, scheduler={"min_epochs": 1, "max_epochs": 2}, budget={"trials": 5})
    before = ResultsWriter(spec)
    for number, late in enumerate((0.2, 0.1, 0.3, 0.4)):  # one pair of neighbours in the wrong order
        trial = f"{number}"
        before.handle(start(trial))
        before.handle(epoch(trial, 1, cider=number / 10))
        if number < 3:
            before.handle(epoch(trial, 2, cider=late))
    before.close()
    progress, output = plain(spec, clock)
    progress.handle(start("3"))
    clock.now += 60
    progress.tick()
    assert "ranks the end" not in output()
    progress.handle(epoch("3", 2, cider=0.4))
    with progress._console.capture() as shown:
        progress._console.print(progress.panel())
    assert "epoch 1 ranks the end at 0.80" in shown.get()
    progress.close()
    assert "; epoch 1 ranks the end at 0.80" in output().splitlines()[-1]
    for event in (start("3"), epoch("3", 2, cider=0.4)):
        before.handle(event)
    before.close()
    resumed, output = plain(spec, clock)  # all that is in the tables is known at once
    resumed.tick()
    resumed.close()
    assert "; epoch 1 ranks the end at 0.80" in output()


def test_a_terminal_gets_a_panel_that_goes_away(tmp_path, clock):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, _environ={"TERM": "xterm"})
    progress = Progress(experiment(tmp_path), console=console, clock=clock)
    progress.handle(start("00000"))
    clock.now += 1
    progress.handle(epoch("00000", 2, cider=0.25))
    with console.capture() as shown:
        console.print(progress.panel())
    text = shown.get()
    for part in (
        "birds",
        "0 of 4 trials done",
        "1 running",
        "cider 0.25",
        "epoch 2/9",
        "1 s elapsed",
        "s left",
    ):
        assert part in text
    clock.now += 1
    progress.handle(end("00000"))
    progress.close()
    progress.close()
    assert console.file.getvalue().count("✓ 00000 completed") == 1
    assert console.file.getvalue().count("1 of 4 trials done (1 completed)") == 1
    assert console.file.getvalue().endswith("\n")


def test_a_run_that_never_began_says_nothing(tmp_path, clock):
    progress, output = plain(experiment(tmp_path), clock)
    progress.close()
    assert output() == ""
