"""Tables written from events: right values, fixed dtypes, no half table, and the best trial."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.domains import Choice, Float, Int
from search_spaces.space import Space
from tuning.events import EpochReported, TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.forecast import Forecast
from tuning.resuming import history, refuse_changes
from tuning.search import ranking
from tuning.tables.consistency import check_tables
from tuning.tables.ledger import Ledger
from tuning.tables.results import load
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.schema import epochs_dtypes, searched_columns, trials_dtypes
from tuning.tables.storage import (
    UnknownExperiment,
    UnreadableResults,
    find_folder,
    read_table,
    write_description,
    write_table,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
SPACE = Space(
    {
        "learning_rate": Float(1e-4, 1e-1, log=True),
        "width": Int(8, 64),
        "method": Choice(["none", "low_rank"]),
        "ratio": Float(0.1, 0.9, when={"method": ["low_rank"]}),
        "batch_size": Choice([16, 32]),
        "augment": Choice([True, False]),
    }
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def experiment(folder, *, objectives=(("cider", "max"),), constraints=()):
    spec = Experiment.from_dict(
        {
            "name": folder.name,
            "storage": str(folder.parent),
            "trainable": "curves",
            "search_space": SPACE.to_dict(),
            "objectives": [
                dict(zip(("metric", "mode", "reference"), objective, strict=False))
                for objective in objectives
            ],
            "constraints": list(constraints),
            "budget": {"trials": 8},
            "search": {"seed": 7},
        }
    )
    write_description(spec, command=["captune"])
    return spec


def started(trial, minute=0, **config):
    return TrialStarted(trial_id=trial, config=config or CONFIG, at=START + timedelta(minutes=minute))


CONFIG = {"learning_rate": 0.01, "width": 16, "method": "none", "batch_size": 32, "augment": True}


def epoch(trial, number, *, attempt=1, rung=None, gang="gang-0", **metrics):
    return EpochReported(
        trial_id=trial,
        epoch=number,
        attempt=attempt,
        metrics=metrics | {"seconds": 2.0, "worker_s": 4.0, "peak_memory_mb": 100.0},
        checkpoint=f"checkpoints/{trial}/{number}",
        gang=gang,
        node="here",
        at=START + timedelta(minutes=number),
        rung=rung,
    )


def ended(trial, state="completed", reason="all epochs done", error=""):
    return TrialEnded(trial_id=trial, state=state, reason=reason, at=START + timedelta(hours=1), error=error)


def play(writer, *events):
    for event in events:
        writer.handle(event)
    return writer


def one_trial(trial, ciders, **more):
    reports = [epoch(trial, n, rung=n - 1, cider=c, val_loss=1 / n, **more) for n, c in enumerate(ciders, 1)]
    return [started(trial), *reports, ended(trial)]


def results(writer, folder):
    """The tables as a reader finds them."""
    writer.close()
    return load(folder)


def test_tables_tell_what_happened(tmp_path):
    writer = ResultsWriter(experiment(tmp_path))
    play(
        writer,
        started(
            "a", learning_rate=0.01, width=16, method="low_rank", ratio=0.5, batch_size=32, augment=False
        ),
        epoch("a", 1, rung=0, cider=0.2, val_loss=3.0, size_mb=4.5, params=1000.0),
        epoch("a", 2, val_loss=2.5),
        epoch("a", 3, rung=1, cider=0.5, val_loss=2.2, size_mb=4.5, params=1000.0),
        started("b", minute=3),
        epoch("b", 1, rung=0, cider=0.1, val_loss=3.3, size_mb=5.5, params=1100.0, gang="gang-1"),
        ended("b", "stopped", "rung 0: 0.1 is below the cut"),
        epoch("a", 4, rung=2, cider=0.4, val_loss=2.1, size_mb=4.5, params=1000.0),
        ended("a"),
    )
    writer.close()
    trials, epochs = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("trials", "epochs"))
    a, b = trials.to_dict("records")
    assert (a["trial_id"], a["state"], a["epochs"], a["rung"], a["best_epoch"]) == ("a", "completed", 4, 2, 3)
    assert (a["cider"], a["val_loss"], a["size_mb"], a["params"]) == (0.5, 2.2, 4.5, 1000)
    assert a["checkpoint"] == "checkpoints/a/3"
    assert (a["worker_s"], a["restarts"], a["node"], a["gang"]) == (16.0, 0, "here", "gang-0")
    assert (a["config/ratio"], a["config/augment"]) == (0.5, False)
    assert (b["state"], b["reason"], b["gang"]) == ("stopped", "rung 0: 0.1 is below the cut", "gang-1")
    assert pd.isna(b["config/ratio"]) and pd.isna(b["error"])
    assert b["started_at"] == pd.Timestamp(START + timedelta(minutes=3))
    assert b["finished_at"] == pd.Timestamp(START + timedelta(hours=1))
    assert epochs["trial_id"].tolist() == ["a", "a", "a", "a", "b"]
    assert epochs["cider"].isna().tolist() == [False, True, False, False, False]
    assert "seconds" not in trials and "seconds" in epochs
    assert check_tables(trials, epochs) == []


def test_the_best_epoch_is_a_fully_evaluated_one(tmp_path):
    # val_loss is there in every epoch, yet only a rung has captions and sizes to go with it
    writer = ResultsWriter(experiment(tmp_path, objectives=[("val_loss", "min")]))
    play(writer, started("a"), epoch("a", 1, rung=0, val_loss=3.0, cider=0.2), epoch("a", 2, val_loss=2.0))
    row = results(writer, tmp_path).trials.iloc[0]
    assert (row["best_epoch"], row["val_loss"], row["cider"]) == (1, 3.0, 0.2)


def test_a_trial_without_its_objective_has_no_best_epoch(tmp_path):
    writer = ResultsWriter(experiment(tmp_path))
    play(writer, started("a"), epoch("a", 1, train_loss=3.0, cider=float("nan")), ended("a", "diverged"))
    row = results(writer, tmp_path).trials.iloc[0]
    assert row[["cider", "best_epoch", "checkpoint"]].isna().all()
    assert row["epochs"] == 1


@pytest.mark.parametrize("events", [[], one_trial("a", [0.1, 0.3], own_figure=1.0)])
def test_dtypes_are_those_of_the_schema_after_a_round_trip(tmp_path, events):
    play(ResultsWriter(experiment(tmp_path)), *events).close()
    found = load(tmp_path)
    figures = ["cider", *(["val_loss", "own_figure"] if events else [])]
    config = searched_columns(SPACE)
    assert config == {
        "config/learning_rate": "Float64",
        "config/width": "Int64",
        "config/method": "string",
        "config/ratio": "Float64",
        "config/batch_size": "Int64",
        "config/augment": "boolean",
    }
    for frame, expected in [
        (found.trials, trials_dtypes(config, figures)),
        (found.epochs, epochs_dtypes(figures)),
    ]:
        assert list(frame.columns) == list(expected)
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == expected


def test_whether_times_were_noisy_is_yes_no_or_unknown(tmp_path):
    spec = experiment(tmp_path, constraints=[{"metric": "latency_noisy", "max": 0}])
    writer = ResultsWriter(spec)
    for trial, figures in [
        ("quiet", {"latency_noisy": 0.0}),
        ("noisy", {"latency_noisy": 1.0}),
        ("none", {}),
    ]:
        play(writer, *one_trial(trial, [0.5], **figures))
    found = results(writer, tmp_path)
    assert found.trials["latency_noisy"].tolist() == [False, True, pd.NA]
    assert found.feasible().tolist() == [True, False, False]
    resumed = results(ResultsWriter(spec), tmp_path)
    assert resumed.trials["latency_noisy"].tolist() == [False, True, pd.NA]


def test_a_repeated_epoch_replaces_the_lost_one(tmp_path):
    writer = ResultsWriter(experiment(tmp_path))
    play(writer, started("a"), epoch("a", 1, cider=0.1), epoch("a", 2, cider=0.9))
    play(writer, epoch("a", 2, attempt=2, cider=0.3), epoch("a", 3, attempt=2, cider=0.2), ended("a"))
    found = results(writer, tmp_path)
    trials, epochs = found.trials, found.epochs
    assert check_tables(trials, epochs) == []
    assert epochs["attempt"].tolist() == [1, 2, 2]
    assert (trials["cider"][0], trials["best_epoch"][0], trials["restarts"][0]) == (0.3, 2, 1)
    assert trials["worker_s"][0] == 16.0  # the lost epoch cost time too


def test_writes_are_spaced_by_what_they_take(tmp_path, monkeypatch):
    clock = Clock()
    written = []

    def slow_write(frame, path):
        clock.now += 0.5  # two tables: a second per write
        written.append(path.name)

    monkeypatch.setattr("tuning.tables.results_writer.write_table", slow_write)
    writer = ResultsWriter(experiment(tmp_path), clock=clock)
    assert written == ["epochs.parquet", "trials.parquet"]
    for _ in range(200):
        clock.now += 0.5
        play(writer, started("a"))
        writer.tick()
    assert clock.now == pytest.approx(106, abs=2)
    assert len(written) // 2 <= 1 + 106 / 20  # at most a twentieth of the time
    play(writer, started("b"))
    before = len(written)
    writer.tick()
    assert len(written) == before
    clock.now += 21
    writer.tick()  # nothing happens any more, and yet the last event gets to the disk
    assert len(written) == before + 2
    writer.tick()
    writer.close()
    assert len(written) == before + 2  # nothing new to write


def test_a_resumed_run_goes_on_with_the_same_tables(tmp_path):
    spec = experiment(tmp_path)
    first = play(ResultsWriter(spec), *one_trial("a", [0.1, 0.3], own=1.0))
    play(first, started("b"), epoch("b", 1, attempt=2, cider=0.2, val_loss=1.0, own=2.0)).close()
    before = load(tmp_path)

    second = ResultsWriter(spec)
    again = load(tmp_path)  # written anew when the writer took it up
    pd.testing.assert_frame_equal(again.trials, before.trials)
    pd.testing.assert_frame_equal(again.epochs, before.epochs)
    play(
        second,
        started("b", minute=30),
        epoch("b", 2, attempt=2, cider=0.6, val_loss=0.9, own=2.0),
        ended("b"),
    )
    found = results(second, tmp_path)
    trials = found.trials
    assert trials.iloc[0].equals(before.trials.iloc[0])
    assert trials["started_at"][1] == pd.Timestamp(START)
    assert trials.loc[1, ["state", "epochs", "cider", "restarts", "worker_s"]].tolist() == [
        "completed", 2, 0.6, 1, 8.0,
    ]  # fmt: skip
    assert check_tables(trials, found.epochs) == []


def test_why_a_trial_was_chosen_stays_and_why_it_runs_is_the_reason(tmp_path):
    writer = ResultsWriter(experiment(tmp_path))
    random = "drawn at random"
    play(writer, replace(started("a"), why="taken up again", chosen=random), epoch("a", 1, cider=0.2))
    play(writer, ended("a", "paused", "rung 0: waits for promotion"))
    assert writer.trials.at[0, "reason"] == "rung 0: waits for promotion"
    writer.close()
    resumed = ResultsWriter(experiment(tmp_path))
    play(resumed, replace(started("a"), why="rung 0: the best that waits, 1 of 3 promoted"))
    row = results(resumed, tmp_path).trials.iloc[0]
    assert row["chosen"] == random
    assert (row["state"], row["reason"]) == ("running", "rung 0: the best that waits, 1 of 3 promoted")


def test_a_kill_between_the_two_writes_loses_nothing(tmp_path):
    spec = experiment(tmp_path)
    writer = play(ResultsWriter(spec), started("a"), epoch("a", 1, cider=0.1))
    writer.write()
    old_trials = (tmp_path / "trials.parquet").read_bytes()
    play(writer, epoch("a", 2, cider=0.4), started("b"), epoch("b", 1, cider=0.2)).write()
    (tmp_path / "trials.parquet").write_bytes(old_trials)

    resumed = ResultsWriter(spec)
    found = load(tmp_path)
    assert check_tables(found.trials, found.epochs) == []
    assert found.trials["epochs"].tolist() == [2]
    play(resumed, started("b"), epoch("b", 2, cider=0.3))
    found = results(resumed, tmp_path)
    assert check_tables(found.trials, found.epochs) == []
    assert found.trials["epochs"].tolist() == [2, 2]


def test_taking_a_trial_up_again_clears_why_it_was_put_aside(tmp_path):
    writer = ResultsWriter(experiment(tmp_path))
    play(writer, started("a"), epoch("a", 1, cider=0.1), ended("a", "paused", "interrupted"))
    assert results(writer, tmp_path).trials.loc[0, ["state", "finished_at"]].tolist() == ["paused", pd.NaT]
    play(writer, started("a", minute=5))
    assert results(writer, tmp_path).trials.loc[0, "state"] == "running"
    assert results(writer, tmp_path).trials["reason"].isna().all()


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    table = tmp_path / "t.parquet"
    old = pd.DataFrame({"a": [1]})
    write_table(old, table)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_table(pd.DataFrame({"a": [2]}), table)
    pd.testing.assert_frame_equal(pd.read_parquet(table), old)
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_a_figure_named_like_a_column_gets_a_column_of_its_own(tmp_path):
    spec = experiment(tmp_path, objectives=[("error", "min")])
    writer = play(
        ResultsWriter(spec), started("a"), epoch("a", 1, error=0.5), ended("a", "failed", "x", "Trace")
    )
    trials = results(writer, tmp_path).trials
    assert (trials["metric/error"][0], trials["error"][0]) == (0.5, "Trace")
    play(writer, started("b"), epoch("b", 1, error=0.7), ended("b"))
    assert results(writer, tmp_path).best()["trial_id"] == "b"


def test_best_honours_mode_state_and_gaps(tmp_path):
    spec = experiment(tmp_path)
    writer = play(ResultsWriter(spec), *one_trial("a", [0.3]), *one_trial("b", [0.5]), *one_trial("nan", []))
    play(writer, started("wild"), epoch("wild", 1, cider=0.9, val_loss=0.1), ended("wild", "diverged"))
    found = results(writer, tmp_path)
    assert found.best()["trial_id"] == "b"
    assert found.best("cider", mode="min")["trial_id"] == "a"
    play(writer, *one_trial("c", [0.1, 0.2]))
    assert results(writer, tmp_path).best("val_loss")["trial_id"] == "c"
    with pytest.raises(ValueError, match="'sider'.*did you mean 'cider'"):
        found.best("sider")
    with pytest.raises(ValueError, match="is a small or a large 'epochs' better"):
        found.best("epochs")


def test_best_prefers_trials_within_the_constraints(tmp_path):
    spec = experiment(tmp_path, constraints=[{"metric": "size_mb", "max": 20.0}])
    writer = play(
        ResultsWriter(spec),
        *one_trial("far", [0.9], size_mb=60.0),
        *one_trial("near", [0.8], size_mb=21.0),
        *one_trial("unknown", [0.95]),
    )
    assert results(writer, tmp_path).best()["trial_id"] == "near"  # none fits: the one that misses least
    assert not results(writer, tmp_path).feasible().any()
    play(writer, *one_trial("small", [0.2], size_mb=20.0))
    found = results(writer, tmp_path)
    assert found.best()["trial_id"] == "small"
    assert found.feasible().tolist() == [False, False, False, True]


def test_no_best_says_why(tmp_path):
    spec = experiment(tmp_path)
    writer = ResultsWriter(spec)
    with pytest.raises(ValueError, match="no trial of .* has a cider to compare .trials: none"):
        results(writer, tmp_path).best()
    play(writer, started("a"), ended("a", "failed"))
    with pytest.raises(ValueError, match="trials: 1 failed"):
        results(writer, tmp_path).best()


def test_load_by_name_and_by_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "captune-results" / "birds"
    play(ResultsWriter(experiment(folder)), *one_trial("a", [0.3])).close()
    assert load("birds").trials["cider"].tolist() == [0.3]
    assert load(folder).epochs["epoch"].tolist() == [1]
    assert find_folder("birds", tmp_path / "captune-results") == folder
    with pytest.raises(UnknownExperiment, match="'brids' in storage.*did you mean 'birds'"):
        load("brids")
    with pytest.raises(UnknownExperiment, match="there are none"):
        load("birds", storage=tmp_path / "nowhere")
    write_table(pd.DataFrame({"x": [1]}), folder / "trials.parquet")
    with pytest.raises(UnreadableResults, match="trials.parquet is not a table that Captune"):
        load("birds")
    (folder / "trials.parquet").write_bytes(b"half a ta")
    with pytest.raises(UnreadableResults, match="trials.parquet is not a readable Parquet table"):
        load("birds")


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", ":1: an experiment file holds keys and values"),
        (b"name: \xe9", ": cannot read the experiment file: not a text file in UTF-8"),
        (b"name: !!int x", ":1: not valid YAML: 'x' is no int"),
        (b"nmae: birds", ":1: nmae: unknown key; did you mean 'name'?"),
    ],
)
def test_a_damaged_experiment_is_named(tmp_path, content, problem):
    play(ResultsWriter(experiment(tmp_path / "birds")), *one_trial("a", [0.3])).close()
    file = tmp_path / "birds" / "experiment.yaml"
    file.write_bytes(content)
    with pytest.raises(UnreadableResults) as refusal:
        load(tmp_path / "birds").ranked()
    assert f"{file}{problem}" in str(refusal.value)


def test_description_keeps_the_first_start_and_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "hunter2-env")
    spec = experiment(tmp_path / "x")
    (tmp_path / "x" / "environment.json").unlink()
    write_description(spec, command=["captune", "run", "a.yaml", "--storage", "s3://me:hunter2@bucket/x"])
    write_description(spec, command=["captune", "run", "a.yaml", "--resume"])
    text = (tmp_path / "x" / "environment.json").read_text()
    record = json.loads(text)
    assert "hunter2" not in text
    assert record["command"][-1] == "s3://***@bucket/x"
    assert record["seed"] == 7 and record["cores"] >= 1 and record["versions"]["pandas"] == pd.__version__
    assert [later["command"][-1] for later in record["resumed"]] == ["--resume"]
    assert "name: x" in (tmp_path / "x" / "experiment.yaml").read_text()


def test_a_text_that_looks_like_a_number_comes_back_as_text(tmp_path):
    spec = Experiment.from_dict(experiment(tmp_path / "1e5").to_dict() | {"model": {"mean": "1e-4"}})
    play(ResultsWriter(spec)).close()
    write_description(spec, command=["captune"])
    assert load(spec.folder).experiment == spec
    refuse_changes(spec, spec.folder)


def test_check_tables_sees_what_is_wrong(tmp_path):
    writer = play(ResultsWriter(experiment(tmp_path)), *one_trial("a", [0.3, 0.4]), *one_trial("b", [0.3]))
    found = results(writer, tmp_path)
    trials, epochs = found.trials, found.epochs
    assert check_tables(trials, epochs) == []
    assert any("its epochs are [2]" in line for line in check_tables(trials, epochs[1:]))
    assert any("there twice" in line for line in check_tables(pd.concat([trials, trials]), epochs))
    assert any("not in trials" in line for line in check_tables(trials[:1], epochs))
    trials.loc[0, "state"] = "lost"
    assert any("state 'lost'" in line for line in check_tables(trials, epochs))


TWO = (("cider", "max"), ("size_mb", "min"))
TWO_FROM = (("cider", "max", 0.0), ("size_mb", "min", 10.0))


def shot(trial, cider, size, minute=1, state="completed"):
    """A trial of one epoch."""
    report = epoch(trial, 1, rung=0, cider=cider, size_mb=size)
    return [started(trial), replace(report, at=START + timedelta(minutes=minute)), ended(trial, state)]


def test_the_front_has_what_nothing_beats_within_the_constraints(tmp_path):
    spec = experiment(tmp_path, objectives=TWO, constraints=[{"metric": "latency_ms", "max": 9.0}])
    writer = ResultsWriter(spec)
    assert len(results(writer, tmp_path).front()) == 0
    for trial, cider, size, latency in [
        ("small", 0.2, 1.0, 5.0),
        ("beaten", 0.4, 6.0, 5.0),
        ("large", 0.6, 9.0, 5.0),
        ("middle", 0.4, 5.0, 5.0),
        ("slow", 0.9, 0.1, 50.0),
        ("equal", 0.4, 5.0, 5.0),
    ]:
        play(writer, *one_trial(trial, [cider], size_mb=size, latency_ms=latency))
    play(
        writer,
        started("wild"),
        epoch("wild", 1, cider=1.0, size_mb=0.1, latency_ms=1.0),
        ended("wild", "failed"),
    )
    play(writer, *one_trial("sizeless", [0.99], latency_ms=1.0))
    found = results(writer, tmp_path)
    assert found.front()["trial_id"].tolist() == ["large", "middle", "small"]
    assert writer.ledger.front_size() == 3
    assert found.best()["trial_id"] == writer.ledger.best()["trial_id"] == "large"
    ranked = found.ranked()["trial_id"].tolist()
    assert set(ranked[:3]) == {"large", "middle", "small"} and set(ranked[3:5]) == {"beaten", "equal"}
    assert ranked[5] == "slow" and set(ranked[6:]) == {"wild", "sizeless"}


def test_one_objective_has_a_front_of_one_and_no_hypervolume(tmp_path):
    writer = play(ResultsWriter(experiment(tmp_path)), *one_trial("a", [0.2, 0.3]), *one_trial("b", [0.1]))
    found = results(writer, tmp_path)
    assert found.front()["trial_id"].tolist() == ["a"]
    assert found.epochs["hypervolume"].isna().all() and writer.ledger.hypervolume is None


def test_the_row_of_a_trial_is_its_best_epoch_by_the_first_objective_then_the_others(tmp_path):
    writer = ResultsWriter(experiment(tmp_path, objectives=TWO))
    play(writer, started("a"), epoch("a", 1, cider=0.4, size_mb=3.0), epoch("a", 2, cider=0.4, size_mb=2.0))
    play(writer, epoch("a", 3, cider=0.3, size_mb=1.0), epoch("a", 4, cider=0.9, size_mb=float("nan")))
    assert results(writer, tmp_path).trials.loc[0, ["best_epoch", "cider", "size_mb"]].tolist() == [
        2,
        0.4,
        2.0,
    ]


def test_hypervolume_grows_from_the_reference_report_by_report(tmp_path):
    writer = ResultsWriter(experiment(tmp_path, objectives=TWO_FROM))
    play(writer, *shot("a", 0.5, 8.0, 1), *shot("b", 0.25, 2.0, 2), *shot("c", 0.2, 9.0, 3))
    play(writer, started("d"), epoch("d", 4, cider=0.9))  # between rungs: nothing new
    play(writer, *shot("e", 0.5, 2.0, 5), *shot("f", 0.9, 11.0, 6))  # beyond the reference
    volumes = results(writer, tmp_path).epochs.set_index("trial_id")["hypervolume"].to_dict()
    expected = {"a": 0.5 * 2, "b": 0.5 * 2 + 0.25 * 6, "c": 2.5, "d": 2.5, "e": 4.0, "f": 4.0}
    assert volumes == pytest.approx(expected)


def test_a_reference_that_nobody_gave_is_the_worst_of_the_first_ten_results(tmp_path):
    writer = ResultsWriter(experiment(tmp_path, objectives=(TWO[0], TWO_FROM[1])))
    for number in range(9):
        play(writer, *shot(f"{number}", 0.2 + number / 100, 8.0 + number / 10, number))
    assert results(writer, tmp_path).epochs["hypervolume"].isna().all()
    play(writer, *shot("9", 0.7, 6.0, 9), *shot("worse", 0.1, 5.0, 10))
    volumes = results(writer, tmp_path).epochs["hypervolume"].tolist()
    assert volumes[9:] == pytest.approx([0.5 * 4.0, 0.5 * 4.0])  # from cider 0.2; `worse` lies below it


def test_what_misses_the_constraints_adds_no_hypervolume(tmp_path):
    spec = experiment(tmp_path, objectives=TWO_FROM, constraints=[{"metric": "size_mb", "max": 5.0}])
    writer = play(ResultsWriter(spec), *shot("a", 0.5, 8.0, 1), *shot("b", 0.25, 2.0, 2))
    assert results(writer, tmp_path).epochs["hypervolume"].tolist() == pytest.approx([0.0, 0.25 * 8])


points = st.tuples(st.integers(0, 5).map(lambda n: n / 5), st.integers(0, 5).map(float))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), points, st.booleans()), max_size=24), st.integers(0, 24))
def test_a_resumed_run_has_the_same_best_trial_and_the_same_hypervolumes(reports, cut):
    """Reports of four trials in any order, some of them of an epoch that was lost and is repeated."""
    with TemporaryDirectory() as folder:
        spec = experiment(Path(folder) / "x", objectives=TWO)
        ledger, done = Ledger(spec), {}
        for number, (trial, (cider, size), repeated) in enumerate(reports):
            if number == cut:  # the run is killed after a write and resumed
                write_table(ledger.trials_table(), spec.folder / "trials.parquet")
                write_table(ledger.epochs_table(), spec.folder / "epochs.parquet")
                earlier, ledger = ledger, Ledger(spec)
                ledger.take_up(spec.folder)
                assert ledger.hypervolume == earlier.hypervolume
                pd.testing.assert_frame_equal(ledger.epochs_table(), earlier.epochs_table())
            name = f"{trial}"
            if name not in done:
                ledger.apply(started(name))
            done[name] = max(1, done.get(name, 0) + (not repeated))
            report = epoch(name, done[name], cider=cider, size_mb=size)
            ledger.apply(replace(report, at=START + timedelta(minutes=number)))
        told = ledger.epochs_table().sort_values("at")
        growing = told["hypervolume"].dropna()
        assert growing.is_monotonic_increasing and len(growing) == max(0, len(told) - 9)
        write_table(ledger.trials_table(), spec.folder / "trials.parquet")
        write_table(ledger.epochs_table(), spec.folder / "epochs.parquet")
        found, again = load(spec.folder), Ledger(spec)
        again.take_up(spec.folder)
        pd.testing.assert_frame_equal(again.epochs_table(), ledger.epochs_table())
        if len(found.trials):
            assert found.best()["trial_id"] == ledger.best()["trial_id"] == again.best()["trial_id"]
            assert ledger.front_size() == len(found.front())
        if len(growing):
            losses = np.column_stack([-told["cider"].astype(float), told["size_mb"].astype(float)])
            worst = losses[:10].max(axis=0)
            assert growing.iloc[-1] == pytest.approx(ranking.hypervolume(losses, worst))


def test_an_infinite_figure_is_never_the_best(tmp_path):
    writer = play(
        ResultsWriter(experiment(tmp_path)), *one_trial("a", [0.2]), *one_trial("b", [0.1, float("inf")])
    )
    found = results(writer, tmp_path)
    assert found.best()["trial_id"] == "a"
    assert found.trials.set_index("trial_id").loc["b", "best_epoch"] == 1
    assert list(found.ranked()["trial_id"]) == ["a", "b"]


def test_a_reader_meets_no_half_table_while_it_is_replaced(tmp_path):
    path, stop = tmp_path / "t.parquet", threading.Event()
    frames = [pd.DataFrame({"a": range(n), "b": [f"{n}"] * n}) for n in (10, 4000)]
    write_table(frames[0], path)

    def replace():
        while not stop.is_set():
            for frame in frames:
                write_table(frame, path)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(100):
            read = read_table(path)
            pd.testing.assert_frame_equal(read, frames[len(read) == 4000], check_dtype=False)
    finally:
        stop.set()
        writer.join()


def test_a_writer_that_was_killed_leaves_the_old_table_and_nothing_beside_the_next_one(tmp_path):
    path = tmp_path / "epochs.parquet"
    write_table(pd.DataFrame({"epoch": [1]}), path)
    dying = """
        import os, signal, sys
        from pathlib import Path
        from tuning.tables.storage import write_table
        class Frame:
            def to_parquet(self, file, index):
                file.write(b"PAR1")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        write_table(Frame(), Path(sys.argv[1]))
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(dying), str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert list(read_table(path)["epoch"]) == [1]
    assert len(list(tmp_path.iterdir())) == 2
    write_table(pd.DataFrame({"epoch": [1, 2]}), path)
    assert list(tmp_path.iterdir()) == [path]


def test_work_that_came_to_no_epoch_is_in_the_row_of_its_trial_and_told_to_who_goes_on(tmp_path):
    spec = experiment(tmp_path)
    again = replace(epoch("a", 2, attempt=2, cider=0.1), lost_worker_s=2.0)
    lost = replace(ended("a", "failed", "no luck"), lost_worker_s=3.0)
    play(ResultsWriter(spec), started("a"), epoch("a", 1, cider=0.1), again, lost).close()
    assert load(tmp_path).trials["worker_s"][0] == 2 * 4.0 + 2.0 + 3.0
    trials, epochs = history(spec, ResultsWriter(spec).ledger)
    assert trials[0]["worker_s"] == 13.0 and sum(row["metrics"]["worker_s"] for row in epochs) == 8.0
    forecast = Forecast(spec, ResultsWriter(spec).ledger, clock=lambda: 0.0)
    assert forecast.spent.worker_s == 13.0
    for event in (again, lost):
        forecast.handle(event)
    assert forecast.spent.worker_s == 13.0 + 4.0 + 2.0 + 3.0
