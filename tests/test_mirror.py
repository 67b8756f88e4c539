"""The copy at a URL follows the driver's folder: in order, through failures, to another machine and back."""

import json
import threading

import fsspec
import pyarrow.fs
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_results import ended, epoch, experiment, started

from trainables.store import Store
from tuning.tables import mirror as mirrors
from tuning.tables.checkpoints import CheckpointKeeper
from tuning.tables.copies import BEST_IS_WHOLE
from tuning.tables.lease import LEASE, ExperimentBusy
from tuning.tables.mirror import Mirror, StorageAway
from tuning.tables.results_writer import ResultsWriter


class FlakyStore(Store):
    """A store in memory that fails when it is told to, and writes down what is done to it."""

    def __init__(self):
        fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)
        memory = MemoryFileSystem(skip_instance_cache=True)
        memory.store, memory.pseudo_dirs = {}, [""]
        super().__init__("s3://bucket/x", pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(memory)))
        self._base = "/"
        self.away, self.done, self.die_after = False, [], None
        self.refusals, self.refused_again = 0, threading.Event()

    def _act(self, what, name):
        if self.away or self.die_after == len(self.done):
            self.refusals += 1
            if self.refusals == 3:
                self.refused_again.set()
            raise OSError("the store is away")
        self.done.append((what, name))

    def put(self, name, content):
        self._act("put", name)
        super().put(name, content)

    def upload(self, path, name):
        self._act("put", name)
        self._filesystem.open_output_stream(self._base + name).write(path.read_bytes())

    def delete(self, name):
        self._act("delete", name)
        super().delete(name)

    def read(self, name):
        if self.away:
            raise OSError("the store is away")
        return super().read(name)

    @property
    def content(self):
        return {name: self.read(name) for name in self.files()}


@pytest.fixture
def store():
    return FlakyStore()


def mirror_of(folder, store, **options):
    mirror = Mirror(folder, store, **{"interval_s": 0.01, "patience_s": 0.0} | options)
    mirror.take_over()
    store.done.clear()
    return mirror


def fill(folder, version):
    for name in ("trials.parquet", "epochs.parquet", "study.journal", "experiment.yaml"):
        (folder / name).write_text(f"{name} {version}")


def sent(store):
    return {name: content for name, content in store.content.items() if name != LEASE}


def test_what_changes_is_sent_the_study_first_and_the_trials_last(store, tmp_path):
    mirror = mirror_of(tmp_path, store)
    fill(tmp_path, 1)
    (tmp_path / ".lock").touch()
    (tmp_path / "study.journal.lock").symlink_to(tmp_path / "study.journal")
    (tmp_path / ".ray").mkdir()
    mirror.send()
    names = [name for _, name in store.done]
    assert names[-2:] == ["epochs.parquet", "trials.parquet"]
    assert set(names) == {"study.journal", "experiment.yaml", "epochs.parquet", "trials.parquet"}
    store.done.clear()
    mirror.send()
    assert store.done == []
    (tmp_path / "epochs.parquet").write_text("another")
    mirror.send()
    assert store.done == [("put", "epochs.parquet")]


@pytest.mark.parametrize("number", range(5))
def test_a_kill_between_any_two_files_leaves_no_trial_without_its_epochs(number, store, tmp_path):
    mirror = mirror_of(tmp_path, store)
    fill(tmp_path, 1)
    mirror.send()
    fill(tmp_path, 2)
    store.done.clear()
    store.die_after = number
    if number < 4:
        with pytest.raises(OSError):
            mirror.send()
    else:
        mirror.send()
    versions = [
        int(store.content[name][-1:]) for name in ("trials.parquet", "epochs.parquet", "study.journal")
    ]
    assert versions == sorted(versions), "the study is never behind the epochs, nor these behind the trials"
    assert set(versions) <= {1, 2}


def test_nothing_is_lost_while_the_store_is_away(store, tmp_path, monkeypatch):
    said, away, back = [], threading.Event(), threading.Event()

    def say(line):
        said.append(line)
        (away if "is away" in line else back).set()

    monkeypatch.setattr(mirrors, "FIRST_PAUSE_S", 0.01)
    mirror = mirror_of(tmp_path, store, say=say)
    fill(tmp_path, 1)
    mirror.start()
    store.away = True
    fill(tmp_path, 2)
    assert away.wait(3)
    assert store.refused_again.wait(3)
    fill(tmp_path, 3)
    store.away = False
    assert back.wait(3)
    mirror.close()
    assert {content[-1:] for content in sent(store).values()} == {b"3"}
    assert len(said) == 2, "said once, not at every attempt"


def test_a_store_that_stays_away_at_the_end_is_told_and_the_next_run_here_sends_the_rest(store, tmp_path):
    mirror = mirror_of(tmp_path, store)
    fill(tmp_path, 1)
    mirror.start()
    store.away = True
    fill(tmp_path, 2)
    with pytest.raises(StorageAway, match="with --resume. sends them from this machine"):
        mirror.close()
    store.away = False
    again = mirror_of(tmp_path, store)
    assert (tmp_path / "trials.parquet").read_text() == "trials.parquet 2", "what is here is newer"
    again.start()
    again.close()
    assert {content[-1:] for content in sent(store).values()} == {b"2"}


def test_another_machine_goes_on_and_the_first_one_takes_what_it_did(store, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    first = mirror_of(here, store)
    fill(here, 1)
    (here / "best" / "deep").mkdir(parents=True)
    (here / "best" / "deep" / "model").write_text("weights")
    first.start()
    first.close()

    second = mirror_of(there, store)
    assert (there / "trials.parquet").read_text() == "trials.parquet 1"
    assert (there / "best" / "deep" / "model").read_text() == "weights"
    assert not (there / LEASE).exists()
    second.send()
    assert store.done == [], "what has just come from there is not sent back"
    fill(there, 2)
    second.start()
    second.close()

    (here / "left over").touch()
    mirror_of(here, store)
    assert (here / "study.journal").read_text() == "study.journal 2" and not (here / "left over").exists()


def test_where_the_experiment_was_deleted_at_the_url_it_is_gone_here(store, tmp_path):
    fill(tmp_path, 1)
    mirror_of(tmp_path, store)
    assert not (tmp_path / "trials.parquet").exists()


def test_a_second_driver_is_refused_while_the_first_is_alive(store, tmp_path):
    first = mirror_of(tmp_path / "a", store)
    with pytest.raises(ExperimentBusy, match="process .* is running this experiment"):
        mirror_of(tmp_path / "b", store)
    first.start()
    first.close()
    mirror_of(tmp_path / "b", store)


def test_who_holds_an_experiment_holds_what_is_in_it_and_waits_for_the_store(store, tmp_path, monkeypatch):
    outer = mirror_of(tmp_path / "outer", store)
    inside = FlakyStore()
    mirror_of(tmp_path / "killed", inside)  # its lease is a moment old
    monkeypatch.setattr(mirrors, "Store", lambda url: inside)
    with pytest.raises(ExperimentBusy), mirrors.mirrored(tmp_path / "in", inside.url, print):
        pass
    inside.away = True
    back = threading.Timer(0.7, setattr, (inside, "away", False))
    back.start()
    with mirrors.mirrored(tmp_path / "in", inside.url, print, within=outer) as inner:
        inner.check()
    back.join()
    outer._lease.lost_to = "process 7 on other"
    again = mirrors.mirrored(tmp_path / "in", inside.url, print, within=outer)
    with pytest.raises(ExperimentBusy, match="process 7 on other has taken over"), again:
        pass


def test_a_driver_that_was_killed_long_ago_is_no_obstacle(store, tmp_path):
    mirror_of(tmp_path / "a", store)
    driver = json.loads(store.read(LEASE)) | {"at": "2020-01-01T00:00:00+00:00"}
    store.put(LEASE, json.dumps(driver).encode())
    mirror_of(tmp_path / "b", store)


def test_who_was_taken_for_dead_writes_no_more(store, tmp_path, monkeypatch):
    monkeypatch.setattr("tuning.tables.lease.BEAT_S", 0.0)
    first = mirror_of(tmp_path / "a", store)
    store.put(LEASE, json.dumps({"started": "later", "pid": 7, "host": "other"}).encode())
    fill(tmp_path / "a", 1)
    first.send()
    assert sent(store) == {}
    with pytest.raises(ExperimentBusy, match="process 7 on other has taken over"):
        first.clear("00000", [], ["0001"], False)
    with pytest.raises(ExperimentBusy, match="process 7"):
        first.close()
    assert json.loads(store.read(LEASE))["pid"] == 7


def test_a_model_is_whole_or_not_there(store, tmp_path):
    mirror = mirror_of(tmp_path, store)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "old").write_text("1")
    mirror.send()
    assert BEST_IS_WHOLE in store.content
    (tmp_path / "best" / "old").unlink()
    (tmp_path / "best" / "new").write_text("2")
    store.done.clear()
    store.die_after = 2
    with pytest.raises(OSError):
        mirror.send()
    assert BEST_IS_WHOLE not in store.content
    store.die_after = None
    mirror.send()
    assert sorted(sent(store)) == [BEST_IS_WHOLE, "best/new"]


def test_a_checkpoint_goes_when_the_tables_at_the_url_need_it_no_more(store, tmp_path):
    store.put("checkpoints/a/0007.tar", b"left by a gang that was killed")
    store.put("checkpoints/b/0001.tar", b"of a trial that the tables do not know")
    wanted = experiment(tmp_path)
    mirror = mirror_of(wanted.folder, store)
    writer = ResultsWriter(wanted)
    keeper = CheckpointKeeper(mirror, writer)

    def handle(event):
        writer.handle(event)
        keeper.handle(event)

    def there():
        return sorted(name.split("/")[-1] for name in store.files("checkpoints/a"))

    handle(started("a"))
    for number, cider in enumerate([0.1, 0.3, 0.2], 1):
        store.put(f"checkpoints/a/{number}.tar", b"")
        handle(epoch("a", number, cider=cider))
        writer.write()
        keeper.tick()
    assert there() == ["0007.tar", "1.tar", "2.tar", "3.tar"], "the tables at the URL do not say so yet"
    mirror.send()
    assert there() == ["0007.tar", "2.tar", "3.tar"]
    handle(ended("a"))
    writer.write()
    keeper.tick()
    mirror.send()
    assert there() == ["2.tar"]


def test_a_fork_gets_a_copy_and_one_of_nothing_gets_nothing(store, tmp_path):
    mirror = mirror_of(tmp_path, store)
    store.put("checkpoints/a/0002.tar", b"weights")
    mirror.hand_on("a", 2, "b")
    mirror.hand_on("a", 3, "c")
    assert store.read("checkpoints/b/0002.tar") == b"weights" and not store.files("checkpoints/c")
