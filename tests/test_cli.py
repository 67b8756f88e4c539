"""The command: what it prints, what it refuses, and its exit codes. No Ray: the runner is a fake."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import filelock
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from trainables.patience import StorageFailed
from tuning.cli import main
from tuning.events import EpochReported, TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.experiment_file import ExperimentError
from tuning.plan import expected_epochs, grid_size
from tuning.runner import CannotGoOn, ExportFailed, GivenUp
from tuning.tables.query import QueryError, where
from tuning.tables.results import load
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import note, write_description, write_table
from tuning.tables.summaries import experiment_state

AT = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = {
    "name": "birds",
    "trainable": "curves",
    "search_space": {"learning_rate": {"float": [1e-4, 1.0], "log": True}},
    "objectives": [{"metric": "cider", "mode": "max"}],
    "constraints": [{"metric": "size_mb", "max": 20.0}],
    "scheduler": {"min_epochs": 1, "max_epochs": 9, "reduction_factor": 3},
    "budget": {"trials": 4},
}


def trial(number, rate, ciders, state="completed", **metrics):
    name = f"{number:05}"
    yield TrialStarted(trial_id=name, config={"learning_rate": rate}, at=AT + timedelta(minutes=number))
    for epoch, cider in enumerate(ciders, 1):
        yield EpochReported(
            trial_id=name,
            epoch=epoch,
            attempt=1,
            metrics={"cider": cider, "size_mb": 1.5, "seconds": 2.0, "worker_s": 2.0} | metrics,
            checkpoint=f"checkpoints/{name}/{epoch:04}",
            gang="gang-0",
            node="here",
            at=AT + timedelta(hours=1),
        )
    yield TrialEnded(trial_id=name, state=state, reason=f"why {state}", at=AT + timedelta(hours=2))


TRIALS = [
    *trial(0, 0.01, [0.1, 0.2]),
    *trial(1, 0.1, [0.3, 0.4]),
    *trial(2, 0.5, [0.05], "stopped"),
    *trial(3, 0.9, [], "diverged"),
]


def record(experiment, events, listeners=(), say=print):
    """What a run leaves behind."""
    write_description(experiment, command=["captune"])
    everyone = [ResultsWriter(experiment), *listeners]
    for event in events:
        for listener in everyone:
            listener.handle(event)
    for listener in everyone:
        listener.close()
    return load(experiment.folder)


@pytest.fixture
def captune(tmp_path, monkeypatch):
    """The command, in an empty folder; returns its result."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("tuning.commands.running._this_machine", lambda: {"CPU": 2.0, "GPU": 0.0})
    # curves has hyperparameters of its own; what they are is not these tests' business
    monkeypatch.setattr(Experiment, "check_trainable", lambda self, **_: None)
    (tmp_path / "birds.yaml").write_text(yaml.safe_dump(SPEC))
    return lambda *words: CliRunner().invoke(main, words)


@pytest.fixture
def birds(captune):
    return record(Experiment.from_dict(SPEC), TRIALS)


@pytest.fixture
def runner(monkeypatch):
    """Replaces the real runner; set `.events` or `.error`."""
    fake = SimpleNamespace(events=TRIALS, error=None, calls=[])

    def run(experiment, *, resume=False, listeners=(), follow_variants=None, say=print):
        fake.calls.append((experiment, resume))
        if fake.error:
            raise fake.error
        return record(experiment, fake.events, listeners)

    names = {"run": run, "ExportFailed": ExportFailed, "GivenUp": GivenUp, "CannotGoOn": CannotGoOn}
    monkeypatch.setitem(sys.modules, "tuning.runner", SimpleNamespace(**names))
    return fake


def said(result, code):
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.output


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, tuning.cli, tuning; "
        "heavy = {'ray', 'torch', 'optuna', 'pandas', 'rich'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize(
    "command",
    ["run", "check", "results", "best", "compress", "pareto", "compare", "export", "caption", "list"],
)
def test_every_command_has_examples(captune, command):
    assert f"captune {command} " in said(captune(command, "--help"), 0).split("Examples:")[1]


def test_run_ends_with_the_table_and_the_best(captune, runner):
    output = said(captune("run", "birds.yaml", "--set", "budget.trials=5", "--storage", "elsewhere"), 0)
    (experiment, resume) = runner.calls[0]
    assert (experiment.budget.trials, experiment.storage, resume) == (5, "elsewhere", False)
    assert "00001 completed" in output  # the line of progress
    rows = [line.split()[0] for line in output.splitlines() if line.startswith("0000")]
    assert rows == ["00001", "00000", "00002", "00003"]  # the best first
    assert "trial 00001 (completed, epoch 2 of 2)" in output
    assert "elsewhere/birds/checkpoints/00001/0002" in output


def test_run_without_one_good_trial_fails(captune, runner):
    ends = [(0, [0.4], "failed"), (1, [], "failed"), (2, [], "diverged")]
    runner.events = [event for n, ciders, end in ends for event in trial(n, 0.1, ciders, end)]
    output = said(captune("run", "birds.yaml"), 1)
    assert "no trial of 'birds' came to an end" in output
    assert "2 x why failed" in output and "1 x why diverged" in output
    runner.events = []
    assert "there were none" in said(captune("run", "birds.yaml", "--set", "name=none"), 1)


@pytest.mark.parametrize("error", [None, GivenUp("all of the first 10 trials went wrong")])
def test_commands_that_are_printed_work_as_typed(captune, runner, error):
    runner.events = trial(0, 0.1, [0.4], "failed")
    elsewhere = ["--storage", "my results"]
    output = said(captune("run", "birds.yaml", *elsewhere), 1)
    if error:
        runner.error = error
        output = said(captune("run", "birds.yaml", *elsewhere), 1)
    (printed,) = re.findall(r"captune (results .*--columns all)", output)
    assert "why failed" in said(captune(*shlex.split(printed)), 0)
    absent = said(captune("results", "birds", "variants", *elsewhere), 2)
    assert "captune compress 'my results/birds' makes them" in absent


def test_ctrl_c_says_how_to_go_on(captune, runner):
    runner.error = KeyboardInterrupt()
    output = said(captune("run", "birds.yaml", "--set", "search.seed=3", "--storage", "my results"), 130)
    assert "captune run birds.yaml --resume --set search.seed=3 --storage 'my results'" in output
    runner.error = None
    said(captune("run", "birds.yaml", "--resume"), 0)
    assert runner.calls[-1][1] is True


def test_mistakes_are_told_without_a_traceback(captune, runner):
    assert "does not exist" in said(captune("run", "brids.yaml"), 2)
    assert "trials" in said(captune("run", "birds.yaml", "--set", "budget.trials=none"), 2)
    assert "unknown key" in said(captune("check", "birds.yaml", "--set", "serach.seed=1"), 2)
    for command in (["run"], ["check"], ["submit", "--address", "http://head:8265"]):
        assert "storage: got '': " in said(captune(*command, "birds.yaml", "--storage", ""), 2)
    runner.error = ExperimentError(["captune-results/birds has results already: go on with --resume"])
    assert "go on with --resume" in said(captune("run", "birds.yaml"), 2)


def test_a_full_disk_is_told_without_a_traceback(captune, runner):
    runner.error = OSError(28, "No space left on device", "trials.parquet")
    assert "No space left on device: 'trials.parquet'" in said(captune("run", "birds.yaml"), 1)
    runner.error = StorageFailed("storage was away for 300 s: no route", full=False)
    assert "storage was away for 300 s: no route" in said(captune("run", "birds.yaml"), 1)


def test_a_failed_export_shows_what_was_found_and_fails(captune, runner, birds):
    runner.error = ExportFailed("the run is done, but ...")
    output = said(captune("run", "birds.yaml"), 1)
    assert "trial 00001 (completed, epoch 2 of 2)" in output
    assert "the run is done, but ...; --resume tries again" in output


def test_a_run_whose_first_trials_all_went_wrong_fails_with_the_last_reason(captune, runner, birds):
    runner.error = GivenUp("all of the first 10 trials went wrong; the last, 00009: no words.txt")
    output = said(captune("run", "birds.yaml"), 1)
    assert "the first 10 trials went wrong; the last, 00009: no words.txt" in output
    assert "captune results birds --columns all" in output and "--resume tries one more" in output


def test_a_run_that_cannot_go_on_fails_with_the_command_for_going_on(captune, runner, birds):
    runner.error = CannotGoOn("all gangs failed")
    output = said(captune("run", "birds.yaml", "--set", "search.seed=1"), 1)
    assert "all gangs failed" in output
    assert "Go on with: captune run birds.yaml --resume --set search.seed=1" in output


def test_a_bug_is_not_hidden_as_a_mistake(captune, runner):
    runner.error = ValueError("something of our own")
    result = captune("run", "birds.yaml")
    assert result.exit_code == 1 and result.exception is runner.error


def test_check_tells_the_plan_and_starts_nothing(captune, runner, tmp_path):
    output = said(captune("check", "birds.yaml"), 0)
    for part in (
        "2 of 1 worker with 1 CPU each (here: 2 CPU)",
        "learning_rate  0.0001 … 1, log",
        "after epoch 1, 3; the best go on, at most to 9",
        "4 trials (about 9 epochs, 36 at most)",
        "size_mb <= 20",
    ):
        assert part in output
    assert runner.calls == [] and not (tmp_path / "captune-results").exists()
    growing = captune("check", "birds.yaml", "--set", "training.max_gangs=3")
    assert "(here: 2 CPU), asks for up to 3" in said(growing, 0)
    assert "largest possible value is 2" in said(
        captune("check", "birds.yaml", "--set", "training.workers=3"), 2
    )


TWO = {
    "objectives": [
        {"metric": "cider", "mode": "max", "reference": 0.0},
        {"metric": "size_mb", "mode": "min", "reference": 10.0},
    ],
    "constraints": [],
}


def test_check_tells_starting_points_sources_budgets_and_references(captune, tmp_path):
    swans = record(Experiment.from_dict(SPEC | {"name": "swans"}), TRIALS)
    swans.trials.to_parquet(tmp_path / "t.parquet")
    spec = SPEC | TWO
    spec["search"] = {
        "start": [{"learning_rate": 0.1}, {"learning_rate": 0.2}],
        "from": ["swans", "t.parquet"],
    }
    spec["scheduler"] = {"algorithm": "asha_stopping"}
    spec["budget"] = {"epochs": 90, "worker_hours": 2, "money": 5, "price_per_hour": 2.5, "plateau": 7}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(spec))
    output = " ".join(said(captune("check", "two.yaml"), 0).split())
    for part in (
        "cider, maximal, reference 0",
        "size_mb, minimal, reference 10",
        "auto, a model of",
        "starts with 2 configurations of the file",
        "learns from swans, t.parquet",
        "from swans: 4 of 4 trials; learning_rate matched",
        "from t.parquet: 4 of 4 trials; learning_rate matched",
        "the others end there (asha_stopping)",
        "90 epochs in all, 2 worker-hours, 5 in money, at 2.5 per worker-hour, "
        "until 7 trials in a row bring nothing better",
    ):
        assert part in output
    for algorithm, trials, told in (
        ("auto", 16, "a model of configuration and epoch that promotes, too, seed"),
        ("auto", 15, "a model of configuration and epoch; of fewer than 16 trials, asha promotes, seed"),
        ("asha", 16, "a model of configuration and epoch, seed"),
    ):
        asked = ("--set", f"scheduler.algorithm={algorithm}", "--set", f"budget.trials={trials}")
        promoting = " ".join(said(captune("check", "birds.yaml", *asked), 0).split())
        assert f"the others pause and may go on later ({algorithm})" in promoting
        assert told in promoting


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ("[birrds]", "search.from.0: got 'birrds': no experiment 'birrds' in storage 'captune-results'"),
        ("[gone.parquet]", "search.from.0: got 'gone.parquet': gone.parquet is not a readable Parquet table"),
        ("[birds.yaml]", "search.from.0: got 'birds.yaml': no experiment"),
        ("[others]", "search.from.0: got 'others': its trials reported no 'cider', which is"),
    ],
)
def test_check_refuses_sources_as_the_run_would(captune, birds, sources, told):
    other = trial(0, 0.1, [0.1])
    events = [replace(e, metrics={"bleu4": 0.1}) if isinstance(e, EpochReported) else e for e in other]
    objectives = [{"metric": "bleu4", "mode": "max"}]
    record(Experiment.from_dict(SPEC | {"name": "others", "objectives": objectives}), events)
    words = ("birds.yaml", "--set", "name=eagles", "--set", f"search.from={sources}")
    assert f"--set search.from={sources}: {told}" in said(captune("check", *words), 2)


def test_a_grid_is_told_with_its_size(captune, tmp_path):
    spec = SPEC | {"search": {"algorithm": "grid"}}
    spec["search_space"] = {
        "width": {"int": [64, 256], "step": 64},
        "dropout": {"float": [0.0, 0.3], "step": 0.1},
        "method": {"choice": ["none", "int8", "low_rank"]},
        "ratio": {"choice": [0.25, 0.5], "when": {"method": ["low_rank"]}},
        "deep": {"choice": [1, 2, 3], "when": {"ratio": [0.5]}},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(spec))
    experiment = Experiment.from_dict(spec)
    assert grid_size(experiment.space) == 4 * 4 * (2 + 1 + 3) == len(list(experiment.space.grid()))
    assert "grid of 96 configurations, seed 0" in said(captune("check", "grid.yaml"), 0)


def test_with_several_objectives_results_are_ranked_front_by_front(captune):
    flock = Experiment.from_dict(SPEC | TWO | {"name": "flock"})
    ciders_and_sizes = [(0.5, 8.0), (0.4, 9.0), (0.25, 2.0), (0.2, 3.0), (0.9, 1.0)]
    events = [
        event
        for number, (cider, size) in enumerate(ciders_and_sizes)
        for event in trial(number, 0.1, [cider], "diverged" if cider == 0.9 else "completed", size_mb=size)
    ]
    record(flock, events)
    lines = said(captune("results", "flock"), 0).splitlines()
    shown = [line[:5] for line in lines if line[:4] == "0000"]
    assert set(shown[:2]) == {"00000", "00002"} and shown[-1] == "00004"
    lines = said(captune("best", "flock"), 0).splitlines()
    assert [line[:5] for line in lines if line[:4] == "0000"] == ["00000", "00002"]
    text = " ".join(" ".join(lines).split())
    assert "best trial 00000 (completed, epoch 1 of 1)" in text and "by cider, the first objective" in text
    assert "front 2 trials, hypervolume" in text
    assert "cider 0.5 (trial 00000), front of 2" in said(captune("list"), 0)
    assert "hypervolume" in said(captune("results", "flock", "epochs"), 0).splitlines()[0]


def test_expected_epochs_without_rungs_are_all():
    no_rungs = Experiment.from_dict(SPEC | {"scheduler": {"algorithm": "none", "max_epochs": 5}})
    assert expected_epochs(no_rungs, 4) == 20
    asha = Experiment.from_dict(SPEC)
    assert expected_epochs(asha, 9) == pytest.approx(9 * 1 + 3 * 2 + 1 * 6)


def test_results_sorted_filtered_limited(captune, birds):
    output = said(captune("results", "birds", "--sort", "cider", "--where", "state == completed"), 0)
    assert [line.split()[0] for line in output.splitlines() if line.startswith("0")] == ["00001", "00000"]
    assert "2 rows" in output and "learning_rate" in output and "0.4" in output
    output = said(captune("results", "birds", "epochs", "--limit", "3", "--format", "csv"), 0)
    assert output.count("\n") == 4 and output.startswith("trial_id,epoch,")
    rows = json.loads(
        said(captune("results", "birds", "--columns", "trial_id,learning_rate", "--format", "json"), 0)
    )
    assert rows[1] == {"trial_id": "00001", "config/learning_rate": 0.1}
    assert json.loads(said(captune("results", "birds", "--format", "json"), 0))[3]["cider"] is None
    small = record(Experiment.from_dict(SPEC | {"name": "small"}), trial(0, 1.23456789012e-11, [0.3]))
    (row,) = json.loads(said(captune("results", "small", "--columns", "all", "--format", "json"), 0))
    assert row["config/learning_rate"] == small.trials["config/learning_rate"][0] == 1.23456789012e-11


def test_results_on_screen_are_ranked_and_narrow(captune):
    big = trial(4, 0.2, [0.9, 0.9], rouge_l=0.5, size_mb=99.0)  # good, but breaks the constraint
    record(Experiment.from_dict(SPEC), [*TRIALS, *big])
    lines = said(captune("results", "birds"), 0).splitlines()
    assert lines[0].split() == [
        "trial_id",
        "state",
        "epochs",
        "learning_rate",
        "cider",
        "size_mb",
        "worker_s",
    ]
    assert [line[:5] for line in lines if line[:1] == "0"] == ["00001", "00000", "00002", "00004", "00003"]
    assert "more columns with --columns all or --format csv" in lines[-1]
    last_first = said(captune("results", "birds", "--reverse"), 0).splitlines()
    assert last_first[2].startswith("00003")
    assert "rouge_l" in said(captune("results", "birds", "--columns", "all"), 0).splitlines()[0]
    assert said(captune("results", "birds", "--format", "csv"), 0).splitlines()[1].startswith("00000")


def test_results_to_files_keep_their_dtypes(captune, birds, tmp_path):
    said(captune("results", "birds", "--format", "parquet", "--output", "t.parquet"), 0)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), birds.trials)
    said(captune("results", "birds", "--format", "csv", "--output", "t.csv"), 0)
    assert len(pd.read_csv(tmp_path / "t.csv")) == 4
    assert "--output" in said(captune("results", "birds", "--format", "parquet"), 2)
    assert "--output" in said(captune("results", "birds", "--output", "t.txt"), 2)
    for output in ("nodir/t.csv", "birds.yaml/t.csv", 300 * "t"):
        told = said(captune("results", "birds", "--format", "csv", "--output", output), 2)
        assert f"--output: cannot write {output}: " in told
    assert "File name too long" in said(captune("results", 300 * "b"), 2)


@pytest.mark.parametrize(
    "words, message",
    [
        (["brids"], "did you mean 'birds'"),
        (["birds", "trails"], "trails"),
        (["birds", "--sort", "cidre"], "did you mean 'cider'"),
        (["birds", "--columns", "lerning_rate"], "did you mean 'learning_rate'"),
        (["birds", "--where", "cider > good"], "cider holds numbers, but got 'good'"),
        (["birds", "--where", "cider > 0.1 or cider < 0"], "there is no `or`"),
        (["birds", "--where", "__import__('os').remove('x')"], "conditions are like"),
        (["birds", "--where", ""], "conditions are like"),
        (["birds", "--limit", "0"], "0"),
        (["birds", "--format", "xlsx"], "xlsx"),
    ],
)
def test_results_refuses(captune, birds, words, message):
    assert message in said(captune("results", *words), 2)


def test_a_damaged_table_is_named(captune, birds):
    (birds.folder / "epochs.parquet").write_bytes(b"no table")
    assert "epochs.parquet is not a readable Parquet table" in said(captune("results", "birds"), 2)


def test_best_tells_configuration_figures_and_place(captune, birds, tmp_path):
    output = said(captune("best", "birds"), 0)
    for part in (
        "trial 00001",
        "0.4",
        "learning_rate",
        "0.1",
        "captune-results/birds/checkpoints/00001/0002",
    ):
        assert part in output
    (birds.folder / "best").mkdir()
    assert "birds/checkpoints/00001/0002" in said(captune("best", "birds"), 0), "of an earlier run, perhaps"
    note(birds.folder, "exported")
    assert "captune-results/birds/best" in said(captune("best", str(birds.folder)), 0)
    record(Experiment.from_dict(SPEC | {"name": "sad"}), trial(0, 0.1, [], "failed"))
    assert "no trial of 'sad' has a cider" in said(captune("best", "sad"), 1)


def test_best_outside_the_constraints_says_so(captune):
    record(Experiment.from_dict(SPEC | {"name": "huge"}), trial(0, 0.1, [0.3], size_mb=99.0))
    assert "no trial meets the constraints" in said(captune("best", "huge"), 0)


def test_run_and_best_say_that_early_epochs_mislead(captune, runner):
    runner.events = [
        event
        for number in range(8)
        for event in trial(number, 0.1, [number / 10, 0.5, number / 10, *[0.1] * 5, 0.9 - number / 10])
    ]
    advice = "early epochs may mislead here: raise scheduler.min_epochs above 3"
    for words in (("run", "birds.yaml"), ("best", "birds")):
        lines = said(captune(*words), 0).splitlines()
        assert lines[-3:-1] == [
            f"after epoch {n}, trials rank as at the end at -1.00 (8 trials)" for n in (1, 3)
        ]
        assert lines[-1] == advice
    record(Experiment.from_dict(SPEC | {"name": "few"}), runner.events[: 3 * 11])
    assert "rank as at the end" not in said(captune("best", "few"), 0)


class Poet:
    """A trainable that captions."""

    @classmethod
    def caption(cls, *, folder, images):
        if any(image.read_text() != "image" for image in images):
            raise ValueError("broken.jpg: not an image")
        assert folder.name == "best"
        return [f"a picture called {image.stem}" for image in images]


def test_caption(captune, birds, tmp_path, monkeypatch):
    for name in ("sea.jpg", "mountain.jpg"):
        (tmp_path / name).write_text("image")
    (tmp_path / "broken.jpg").write_text("?")
    assert "writes no captions" in said(captune("caption", "birds", "sea.jpg"), 2)
    monkeypatch.setattr("trainables.trial.resolve_trainable", lambda name: Poet)
    assert "best does not exist" in said(captune("caption", "birds", "sea.jpg"), 1)
    (birds.folder / "best").mkdir()
    assert "earlier run" in said(captune("caption", "birds", "sea.jpg"), 0)
    note(birds.folder, "exported")
    assert said(captune("caption", "birds", "sea.jpg", "mountain.jpg"), 0).splitlines() == [
        "sea.jpg       a picture called sea",
        "mountain.jpg  a picture called mountain",
    ]
    assert "lake.jpg" in said(captune("caption", "birds", "lake.jpg"), 2)
    assert "broken.jpg: not an image" in said(captune("caption", "birds", "sea.jpg", "broken.jpg"), 2)
    said(captune("caption", "birds"), 2)


def test_list_tells_how_each_stands(captune, birds):
    record(Experiment.from_dict(SPEC | {"name": "halfway"}), TRIALS[:4])
    running = record(Experiment.from_dict(SPEC | {"name": "running"}), TRIALS[:4])
    lines = {}
    with filelock.FileLock(running.folder / ".lock"):
        for line in said(captune("list"), 0).splitlines():
            lines[line.split()[0] if line.split() else ""] = line
    assert "finished" in lines["birds"] and "4/4, 1 went wrong" in lines["birds"]
    assert "cider 0.4 (trial 00001)" in lines["birds"] and "2026-01-01 00:00:00" in lines["birds"]
    assert "unfinished" in lines["halfway"] and "1/4" in lines["halfway"]
    assert "running" in lines["running"].split()[1]


def test_list_refuses_what_is_no_folder_but_for_the_default_before_the_first_run(captune, tmp_path):
    assert "no experiments in captune-results" in said(captune("list"), 0)
    for storage, reason in {"nowhere": "No such file", "birds.yaml": "Not a directory"}.items():
        output = said(captune("list", "--storage", storage), 2)
        assert f"--storage: cannot look into '{storage}': {reason}" in output
    (tmp_path / "empty").mkdir()
    assert "no experiments in empty" in said(captune("list", "--storage", "empty"), 0)


def paused(number, reason):
    *before, _ = trial(number, 0.1, [0.2])
    yield from before
    yield TrialEnded(trial_id=f"{number:05}", state="paused", reason=reason, at=AT)


WAITS, INTERRUPTED = "rung 0: waits for promotion", "the run was interrupted"


@pytest.mark.parametrize(
    ("budget", "last", "state"),
    [
        ({"trials": 3}, WAITS, "finished"),
        ({"trials": 4}, WAITS, "unfinished"),
        ({"trials": 3}, INTERRUPTED, "unfinished"),
        ({"epochs": 6}, WAITS, "finished"),
        ({"epochs": 6}, "all 6 epochs of the budget are spent", "finished"),
        ({"epochs": 7}, WAITS, "unfinished"),
        ({"epochs": 7, "trials": 3}, WAITS, "finished"),
        ({"money": 1, "price_per_hour": 300}, INTERRUPTED, "finished"),  # 12 s at 300 an hour
        ({"money": 2, "price_per_hour": 300}, WAITS, "unfinished"),
        ({"time": "1h"}, WAITS, "finished"),
        ({"time": "1h"}, "the budget's 3600 s are over", "unfinished"),  # resumed, it gets an hour again
    ],
)
def test_a_run_whose_trials_wait_at_rungs_is_finished_once_its_budget_is_used_up(
    captune, budget, last, state
):
    events = [*trial(0, 0.1, [0.1, 0.2]), *paused(1, WAITS), *paused(2, last)]
    events.insert(-1, replace(events[-2], epoch=2, checkpoint="checkpoints/00002/0002"))
    events.insert(-1, replace(events[-2], epoch=3, checkpoint="checkpoints/00002/0003"))
    found = record(Experiment.from_dict(SPEC | {"name": "waiting", "budget": budget}), events)
    assert len(found.epochs) == 6 and experiment_state(found) == state


@pytest.mark.parametrize(
    "budget", [{"trials": 100, "plateau": 2}, {"epochs": 4}, {"worker_hours": 1}, {"time": "1h", "epochs": 9}]
)
def test_a_run_that_noted_so_is_finished(captune, budget):
    """Its trials wait as in any other run, and up to one training is left of the budget."""
    spec = Experiment.from_dict(SPEC | {"name": "flat", "budget": budget})
    found = record(spec, [*trial(0, 0.1, [0.9]), *paused(1, WAITS), *paused(2, "kept for the best")])
    assert experiment_state(found) == "unfinished"
    note(found.folder, "finished")
    assert experiment_state(found) == "finished"
    write_description(spec, command=["captune"])  # resumed, and killed
    assert experiment_state(found) == "unfinished"


def test_list_goes_on_after_one_that_cannot_be_read(captune, birds):
    record(Experiment.from_dict(SPEC | {"name": "a-broken"}), []).folder.joinpath("trials.parquet").unlink()
    (record(Experiment.from_dict(SPEC | {"name": "b-broken"}), []).folder / "experiment.yaml").write_text(
        "x: ["
    )
    other = record(Experiment.from_dict(SPEC | {"name": "c-broken"}), []).folder
    write_table(pd.DataFrame({"x": [1]}), other / "trials.parquet")
    table, _, reasons = said(captune("list"), 0).partition("unreadable: a-broken: ")
    states = dict(line.split()[:2] for line in table.splitlines()[2:] if line)
    broken = dict.fromkeys(["a-broken", "b-broken", "c-broken"], "unreadable")
    assert states == broken | {"birds": "finished"}
    assert "trials.parquet does not exist" in reasons and "unreadable: b-broken: " in reasons
    assert "unreadable: c-broken: captune-results/c-broken/trials.parquet is not a table" in reasons


FRAME = pd.DataFrame(
    {
        "state": pd.array(["completed", "stopped", None], dtype="string"),
        "config/lr": pd.array([0.1, 0.2, None], dtype="Float64"),
        "epochs": pd.array([1, 2, None], dtype="Int64"),
        "flag": pd.array([True, False, None], dtype="boolean"),
        "at": pd.Series(["2026-01-01", "2026-01-02", None], dtype="datetime64[us, UTC]"),
    }
)


@pytest.mark.parametrize(
    "condition, rows",
    [
        ("state == completed", [0]),
        ("state = 'completed'", [0]),
        ("state!=completed", [1]),  # an empty cell is unknown, not different
        ("lr >= 1e-1 and config/lr<0.2", [0]),
        ("epochs > 1", [1]),
        ("epochs == 2.0 AND flag == false", [1]),
        ("at > 2026-01-01T12:00", [1]),
        ("epochs > 7", []),
        ("""state == "'completed'" """.strip(), []),
    ],
)
def test_where(condition, rows):
    assert where(FRAME, condition).index.tolist() == rows


@pytest.mark.parametrize(
    "condition", ["flag > true", "at > noon", "lr < nan", "lr", "lr ==", "== 3", "lr > 0.1 and"]
)
def test_where_refuses(condition):
    with pytest.raises(QueryError):
        where(FRAME, condition)


@pytest.fixture
def compressor(runner, monkeypatch, tmp_path):
    """Replaces the real `compress`, which gets what `captune compress` asks for."""
    fake = SimpleNamespace(asked=[], error=None)

    def compress(experiment, *, follow_variants=None, say=print):
        fake.asked.append(experiment)
        follow_variants(experiment)
        if fake.error:
            raise fake.error
        return load(experiment.folder)

    sys.modules["tuning.runner"].compress = compress
    monkeypatch.setattr("trainables.curves.Curves.variants", None, raising=False)

    return fake


def test_compress_puts_its_options_over_the_file(captune, compressor):
    said(captune("run", "birds.yaml"), 0)
    said(captune("compress", "birds", "--methods", "int8,prune", "--ratios", ".5,.25", "--parents", "3"), 0)
    (experiment,) = compressor.asked
    section = experiment.compression
    assert (section.search, section.methods, section.ratios) == ("children", ("int8", "prune"), (0.5, 0.25))
    assert (section.parents, section.epochs) == (3, 3)
    assert "--ratios takes numbers" in said(captune("compress", "birds", "--ratios", "half"), 2)
    assert "compression.ratios.0: got 1.5" in said(captune("compress", "birds", "--ratios", "1.5"), 2)


def test_compress_that_was_interrupted_says_how_to_go_on(captune, compressor):
    said(captune("run", "birds.yaml"), 0)
    compressor.error = KeyboardInterrupt()
    output = said(captune("compress", "birds", "--epochs", "2"), 130)
    assert "Go on with: captune compress birds --epochs 2 --storage captune-results" in output
    compressor.error = ExportFailed("2 variants could not be measured")
    assert "2 variants could not be measured; the same command tries again" in said(
        captune("compress", "birds"), 1
    )


def test_variants_that_are_not_there_are_asked_for(captune, runner):
    said(captune("run", "birds.yaml"), 0)
    assert "captune compress birds makes them" in said(captune("results", "birds", "variants"), 2)
