"""Storage that is away for a moment, or full: tried again, made room on, or told of; without Ray."""

import errno

import pytest
from test_results import Clock, ended, epoch, experiment, started

from trainables import patience
from trainables.patience import StorageFailed, is_full, patiently
from tuning.search.journal import open_journal
from tuning.tables.results import load
from tuning.tables.results_writer import ResultsWriter

AWAY, FULL = OSError(errno.ESTALE, "stale handle"), OSError(errno.ENOSPC, "No space left on device")


class Sleeper(Clock):
    """A clock that sleeping moves."""

    def __init__(self):
        self.waits = []

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


def failing(*errors):
    """An action that raises these, one each time, and then works."""
    left = list(errors)

    def action():
        if left:
            raise left.pop(0)
        return "done"

    return action


@pytest.fixture
def sleeper():
    return Sleeper()


def test_what_is_away_is_tried_again_less_and_less_often(sleeper):
    assert patiently(failing(*[AWAY] * 7), clock=sleeper, sleep=sleeper.sleep) == "done"
    assert sleeper.waits == [0.5, 1, 2, 4, 8, 10, 10]


def test_patience_ends(sleeper):
    with pytest.raises(StorageFailed, match="storage was away for .*stale handle") as caught:
        patiently(failing(*[AWAY] * 99), patience_s=60, clock=sleeper, sleep=sleeper.sleep)
    assert not caught.value.full and sleeper.now <= 60


def test_a_full_disk_is_not_waited_for(sleeper):
    with pytest.raises(StorageFailed, match="storage is full") as caught:
        patiently(failing(FULL), sleep=sleeper.sleep)
    assert caught.value.full and sleeper.waits == []


def test_other_errors_are_left_alone():
    with pytest.raises(PermissionError):
        patiently(failing(PermissionError(errno.EACCES, "no")))


def test_full_disks_are_known_by_the_words_of_other_libraries():
    assert is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_full(RuntimeError("enough space"))


@pytest.fixture
def sleepless(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)


class Disk:
    """Makes `write_table` fail with these errors, one each time."""

    def __init__(self, monkeypatch):
        from tuning.tables import results_writer

        self.errors, self._write = [], results_writer.write_table
        monkeypatch.setattr(results_writer, "write_table", self.write)

    def write(self, frame, path):
        if self.errors:
            raise self.errors.pop(0)
        self._write(frame, path)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_tables_are_written_once_the_storage_is_back(tmp_path, disk, sleepless):
    writer = ResultsWriter(experiment(tmp_path), clock=Clock())
    disk.errors = [AWAY, AWAY]
    writer.handle(started("a"))
    assert list(load(tmp_path).trials["trial_id"]) == ["a"]


def test_a_full_disk_is_made_room_on_once(tmp_path, disk):
    writer = ResultsWriter(experiment(tmp_path), clock=Clock())
    asked = []
    writer.make_room = lambda: bool(asked.append("room") or True)
    disk.errors = [FULL]
    writer.handle(started("a"))
    assert asked == ["room"] and len(load(tmp_path).trials) == 1


def test_a_disk_that_stays_full_leaves_the_tables_as_they_were(tmp_path, disk):
    writer = ResultsWriter(experiment(tmp_path), clock=Clock())
    writer.handle(started("a"))
    writer.handle(epoch("a", 1, cider=0.1))
    disk.errors = [FULL]
    with pytest.raises(StorageFailed):
        writer.handle(ended("a"))
    assert list(load(tmp_path).trials["state"]) == ["running"]
    assert list(tmp_path.glob(".*.tmp")) == []


def test_what_failed_once_is_tried_again_without_patience_and_fails_as_before(
    tmp_path, disk, sleepless, monkeypatch
):
    monkeypatch.setattr("tuning.tables.results_writer.PATIENCE_S", 0.02)
    writer = ResultsWriter(experiment(tmp_path), clock=Clock())
    disk.errors = [AWAY] * 1000
    with pytest.raises(StorageFailed) as first:
        writer.handle(started("a"))
    left = len(disk.errors)
    with pytest.raises(StorageFailed) as again:
        writer.close()
    assert again.value is first.value and len(disk.errors) == left - 1
    assert isinstance(again.value.__cause__, OSError)
    disk.errors = []
    writer.close()
    assert len(load(tmp_path).trials) == 1


def test_a_line_of_the_journal_is_there_once_however_often_it_was_tried(tmp_path, monkeypatch, sleepless):
    import os

    path = tmp_path / "study.journal"
    open_journal(path).create_new_study([], "first")
    whole, tries = path.read_bytes(), []

    def sync(descriptor):
        tries.append(descriptor)
        if len(tries) < 3:
            raise AWAY

    monkeypatch.setattr(os, "fsync", sync)
    open_journal(path).create_new_study([], "second")
    lines = path.read_bytes().removeprefix(whole).splitlines()
    assert len(tries) == 3 and len(lines) == 1 and b"second" in lines[0]
