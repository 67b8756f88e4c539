"""Checkpoints on disk are always those that the tables on disk name: the driver may be killed at any time."""

import pytest
from test_results import Clock, ended, epoch, experiment, started

from tuning.tables.checkpoints import CheckpointFolders, CheckpointKeeper
from tuning.tables.results import load
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import write_table


def on_disk(folder, trial="a"):
    return sorted(path.name for path in (folder / "checkpoints" / trial).iterdir())


class Run:
    """A writer whose writes the test allows, and a keeper; `report` does what a gang does."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = Clock()
        self.writer = ResultsWriter(experiment(folder), clock=self.clock)
        self.keeper = CheckpointKeeper(CheckpointFolders(folder / "checkpoints"), self.writer)

    def handle(self, event):
        self.writer.handle(event)
        self.keeper.handle(event)

    def report(self, number, cider, trial="a"):
        (self.folder / "checkpoints" / trial / f"{number}").mkdir(parents=True)
        self.handle(epoch(trial, number, cider=cider))

    def hold_writes(self):
        self.writer._next_write = float("inf")


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_best_and_last_stay_and_of_a_finished_trial_the_best(run, tmp_path):
    run.handle(started("a"))
    for number, cider in enumerate([0.1, 0.3, 0.2, 0.2], 1):
        run.report(number, cider)
    assert on_disk(tmp_path) == ["2", "4"]
    run.handle(ended("a"))
    assert on_disk(tmp_path) == ["2"]


def test_what_the_tables_on_disk_name_is_there_whenever_the_driver_dies(run, tmp_path):
    run.handle(started("a"))
    run.report(1, 0.1)
    run.hold_writes()
    run.report(2, 0.3)
    run.report(3, 0.2)
    known = load(tmp_path).epochs["checkpoint"].tolist()
    assert known == ["checkpoints/a/1"] and (tmp_path / known[-1]).is_dir()
    run.writer.write()
    run.keeper.tick()
    assert on_disk(tmp_path) == ["2", "3"]


def test_a_resumed_run_sweeps_what_the_killed_one_left(run, tmp_path):
    run.handle(started("a"))
    run.report(1, 0.1)
    run.report(2, 0.3)
    run.writer.handle(ended("a"))
    run.writer.close()  # killed before the keeper heard of it
    (tmp_path / "checkpoints" / "a" / ".3.4711").mkdir()
    Run(tmp_path)
    assert on_disk(tmp_path) == ["2"]


def test_what_a_killed_worker_left_of_a_paused_trial_goes_at_the_end(run, tmp_path):
    run.handle(started("a"))
    run.report(1, 0.1)
    (tmp_path / "checkpoints" / "a" / ".2.4711").mkdir()
    run.report(2, 0.3)
    run.handle(ended("a", state="paused"))
    assert on_disk(tmp_path) == [".2.4711", "2"], "a gang may be writing it"
    run.writer.close()
    run.keeper.close()
    assert on_disk(tmp_path) == ["2"]


def test_what_a_gang_is_writing_is_left_alone(run, tmp_path):
    """Sweeping waits for the tables; meanwhile the next epoch may have been trained."""
    run.handle(started("a"))
    run.report(1, 0.3)
    run.hold_writes()
    run.report(2, 0.2)
    run.report(3, 0.1)
    (tmp_path / "checkpoints" / "a" / "4").mkdir()  # its report is under way
    (tmp_path / "checkpoints" / "a" / ".5.4711").mkdir()
    run.writer.write()
    run.keeper.tick()
    assert on_disk(tmp_path) == [".5.4711", "1", "3", "4"]
    run.handle(ended("a"))
    run.writer.write()
    run.keeper.tick()
    assert on_disk(tmp_path) == ["1"]


def test_what_a_trial_left_within_an_epoch_stays_until_that_epoch_is_done(run, tmp_path):
    run.handle(started("a"))
    run.report(1, 0.1)
    (tmp_path / "checkpoints" / "a" / "1.within").mkdir()
    run.keeper.tick()
    assert on_disk(tmp_path) == ["1", "1.within"]
    run.report(2, 0.3)
    assert on_disk(tmp_path) == ["2"]


def test_what_a_trial_left_within_an_epoch_outlives_the_driver_and_not_the_trial(run, tmp_path):
    run.handle(started("a"))
    run.report(1, 0.1)
    (tmp_path / "checkpoints" / "a" / "1.within").mkdir()
    run.handle(ended("a", state="paused"))
    run.writer.close()
    run.keeper.close()
    again = Run(tmp_path)
    assert on_disk(tmp_path) == ["1", "1.within"]
    again.handle(ended("a", state="diverged"))
    assert on_disk(tmp_path) == []


def test_a_trial_that_ends_without_an_epoch_leaves_nothing(run, tmp_path):
    run.handle(started("a"))
    (tmp_path / "checkpoints" / "a" / "0000.within").mkdir(parents=True)
    run.handle(ended("a", state="failed"))
    assert on_disk(tmp_path) == []


def test_checkpoints_that_somebody_deleted_are_not_missed(run, tmp_path):
    run.handle(started("a"))
    run.handle(epoch("a", 1, cider=0.1))
    assert not (tmp_path / "checkpoints").exists()


def test_tables_are_complete_after_a_kill_between_the_two_writes(run, tmp_path, monkeypatch):
    """A trial that only the table of epochs knows shows whole again once it is started."""
    run.hold_writes()
    run.handle(started("a"))
    run.report(1, 0.1)

    def killed_before_trials(frame, path):
        if path.name == "trials.parquet":
            raise SystemExit
        write_table(frame, path)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("tuning.tables.results_writer.write_table", killed_before_trials)
        run.writer.write()
    again = Run(tmp_path)
    assert again.writer.trials.empty
    again.handle(started("a"))
    row = again.writer.trials.iloc[0]
    assert (row["epochs"], row["worker_s"], row["cider"]) == (1, 4.0, 0.1)


def test_the_table_of_epochs_is_not_begun_anew(run, tmp_path):
    run.handle(started("a"))
    run.report(1, 0.1)
    (tmp_path / "epochs.parquet").unlink()
    with pytest.raises(ValueError, match="epochs.parquet"):
        Run(tmp_path)
