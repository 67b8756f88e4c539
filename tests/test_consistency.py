"""What a run has left is checked: each thing that can be wrong is seen, and nothing where all is well."""

import shutil

import pandas as pd
import pytest

from trainables.order import Report
from tuning import Experiment, load
from tuning.search.budget import BudgetGuard
from tuning.search.search import Search
from tuning.search.strategies import open_strategy
from tuning.tables.checkpoints import CheckpointFolders, CheckpointKeeper
from tuning.tables.consistency import check_folder, check_tables, main
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import write_description, write_table


@pytest.fixture
def folder(tmp_path):
    """A finished run of four trials, made without Ray; "00000" is the only one that is promoted."""
    spec = Experiment.from_dict(
        {
            "name": "run",
            "storage": str(tmp_path),
            "trainable": "curves",
            "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
            "objectives": [{"metric": "score", "mode": "max"}],
            "search": {"algorithm": "random"},
            "scheduler": {"algorithm": "asha", "min_epochs": 1, "max_epochs": 3},
            "budget": {"trials": 4},
        }
    )
    write_description(spec, command=[])
    searcher, scheduler = open_strategy(spec, path=spec.folder / "study.journal")
    writer = ResultsWriter(spec)
    listeners = [writer, CheckpointKeeper(CheckpointFolders(spec.folder / "checkpoints"), writer)]
    budget = BudgetGuard(spec.budget, workers=1, gangs=1)
    search = Search(spec, searcher=searcher, scheduler=scheduler, budget=budget, listeners=listeners)
    while (run := search.next_run()) is not None:
        epoch, leaves = run.epoch, False
        while not leaves:
            epoch += 1
            (spec.folder / "checkpoints" / run.trial_id / f"{epoch:04d}").mkdir(parents=True)
            report = Report(
                epoch=epoch,
                metrics={"score": epoch - int(run.trial_id) / 10},
                attempt=run.attempt,
                node="here",
            )
            leaves = search.report(run.trial_id, report).leaves
    search.close()
    for listener in listeners:
        listener.close()
    return spec.folder


def change(folder, name, **cells):
    """Put values into the first row of a table."""
    frame = pd.read_parquet(folder / f"{name}.parquet")
    for column, value in cells.items():
        frame.loc[0, column] = value
    write_table(frame, folder / f"{name}.parquet")


def test_a_finished_run_is_consistent(folder, capsys):
    assert set(load(folder).trials["state"]) == {"completed", "paused"}
    assert check_folder(folder) == []
    assert main([str(folder)]) == 0
    assert main([]) == main([str(folder), str(folder / "nowhere")]) == 2


def test_a_missing_checkpoint_is_seen(folder, capsys):
    shutil.rmtree(folder / "checkpoints" / "00001" / "0001")
    assert check_folder(folder) == ["trial 00001 needs checkpoints/00001/0001, which is not there"]
    assert main([str(folder)]) == 1
    assert f"{folder}: trial 00001 needs" in capsys.readouterr().out


def test_a_trial_that_one_side_lacks_is_seen(folder):
    for name in ("trials", "epochs"):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        write_table(frame[frame["trial_id"] != "00003"], folder / f"{name}.parquet")
    assert check_folder(folder) == ["trial 00003 is in the study only"]


def test_another_state_or_configuration_than_the_studys_is_seen(folder):
    change(folder, "trials", **{"state": "stopped", "config/learning_rate": 0.5})
    state, rate = check_folder(folder)
    assert state == "trial 00000 is stopped, the study says completed"
    assert rate.startswith("trial 00000 has learning_rate 0.5, the study says 0.0")


def test_an_interrupted_run_leaves_paused_trials_open_in_the_study_and_no_others(folder):
    journal = folder / "study.journal"
    closing = [line for line in journal.read_text().splitlines(True) if '{"state":' not in line]
    journal.write_text("".join(closing))
    assert check_folder(folder) == ["trial 00000 is completed, the study says open"]


def test_what_was_written_aside_and_left_is_seen(folder):
    (folder / "checkpoints" / "00002" / ".0002.4711").mkdir()
    assert check_folder(folder) == ["checkpoints/00002/.0002.4711 was left behind"]


def test_attempts_that_go_back_or_were_not_counted_are_seen(folder):
    change(folder, "epochs", attempt=2)
    found = load(folder)
    back, uncounted = check_tables(found.trials, found.epochs)
    assert back == "trial 00000 went back to an earlier attempt: [2, 1, 1]"
    assert uncounted == "trial 00000 says 0 restarts, its epochs are of attempts [2, 1, 1]"


def test_a_checkpoint_that_nobody_needs_may_be_gone_where_not_all_are_kept(folder):
    frame = pd.read_parquet(folder / "trials.parquet")
    frame.loc[frame["trial_id"] == "00001", ["state", "finished_at"]] = [
        "stopped",
        frame.loc[0, "started_at"],
    ]
    write_table(frame, folder / "trials.parquet")
    shutil.rmtree(folder / "checkpoints" / "00001")
    study = "trial 00001 is stopped, the study says paused"
    assert check_folder(folder) == ["trial 00001 needs checkpoints/00001/0001, which is not there", study]
    file = folder / "experiment.yaml"
    file.write_text(file.read_text().replace("keep: all", "keep: needed"))
    assert check_folder(folder) == [study]
    shutil.rmtree(folder / "checkpoints" / "00000")
    assert check_folder(folder) == ["trial 00000 needs checkpoints/00000/0003, which is not there", study]
