"""A worker's dealings with its owner, in one process: ranks are threads, the owner is a mailbox."""

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorUnavailableError

from trainables import gang as gangs
from trainables.order import Failure, Moved, Order
from trainables.trial import GANG_METRICS, LeftEarly, SettingsError, TrialDiverged
from tuning.gangs.mailbox import Mailbox
from tuning.gangs.watchdog import Watchdog


class Tester:
    """A trainable that raises what it is told."""

    trouble = None

    def setup(self, config, context):
        self.context = context

    def train_epoch(self):
        if self.trouble is not None:
            raise self.trouble
        return {"loss": np.float32(0.5)}

    def evaluate(self, full):
        return {"score": torch.tensor(2.0)}

    def save(self, folder):
        (folder / "state").touch()

    def load(self, folder):
        pass

    def close(self):
        pass


@pytest.fixture
def mailbox():
    return Mailbox(max_failures=1)


@pytest.fixture
def member(mailbox, monkeypatch):
    """Makes the member of a gang; what it asks of its owner is answered at once."""
    monkeypatch.setattr(gangs.ray, "get", lambda answer: answer)
    monkeypatch.setattr(gangs, "resolve_trainable", lambda name: Tester)
    monkeypatch.setattr(Tester, "trouble", None)

    def make(*, rank=0, world_size=1, control=None):
        made = object.__new__(gangs.Gang)
        names = ("next_order", "push", "may_go_on", "fail", "suspect", "alive")
        made.owner = SimpleNamespace(
            **{name: SimpleNamespace(remote=getattr(mailbox, name)) for name in names}
        )
        made.cpus, made.device, made.node, made.control = 1, torch.device("cpu"), "here", control
        made.rank, made.world_size = rank, world_size
        return made

    return make


@pytest.fixture
def order(tmp_path):
    return Order(
        run_id="0-a", trial_id="0", trainable="t", config={}, max_epochs=1, folder=str(tmp_path / "0")
    )


def begin(mailbox, order):
    assert mailbox.await_report(order, 1, 0.0) is None
    return mailbox.next_order(None, 0.0)


def test_figures_are_reported_as_plain_floats(mailbox, member, order):
    member().run(*begin(mailbox, order))
    metrics = mailbox.await_report(order, 1, 0.0).metrics
    assert metrics["loss"] == 0.5 and metrics["score"] == 2.0
    assert metrics.keys() - {"loss", "score"} == GANG_METRICS
    assert {type(value) for value in metrics.values()} == {float}


@pytest.mark.parametrize(
    "returned, message",
    [
        ({"score": None}, "evaluate must return numbers, but 'score' is None"),
        ({"score": "good"}, "'score' is 'good'"),
        ({"score": torch.zeros(2)}, "'score' is tensor"),
        (None, "evaluate must return figures by name, {'val_loss': 0.3}, but got None"),
    ],
)
def test_what_is_no_figure_fails_the_trial_with_its_name(
    mailbox, member, order, monkeypatch, returned, message
):
    monkeypatch.setattr(Tester, "evaluate", lambda self, full: returned)
    member().run(*begin(mailbox, order))
    failure = mailbox.await_report(order, 1, 0.0)
    assert failure.state == "failed" and message in failure.reason


def test_an_error_that_speaks_of_gloo_is_the_trials_own_where_there_is_no_peer(mailbox, member, order):
    Tester.trouble = RuntimeError("my gloo loss")
    member().run(*begin(mailbox, order))
    assert mailbox.await_report(order, 1, 0.0).reason == "RuntimeError: my gloo loss"


def test_a_path_with_gloo_in_it_is_no_peer(mailbox, member, order):
    Tester.trouble = FileNotFoundError("/data/igloo.jpg")
    with pytest.raises(FileNotFoundError):
        member(world_size=2).run(*begin(mailbox, order))
    assert mailbox.await_report(order, 1, 0.0).state == "failed"


@pytest.mark.parametrize(
    "trouble",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_memory_that_is_refused_ends_the_trial_as_out_of_memory(mailbox, member, order, trouble):
    Tester.trouble = trouble
    member().run(*begin(mailbox, order))
    failure = mailbox.await_report(order, 1, 0.0)
    assert failure.state == "out_of_memory" and type(trouble).__name__ in failure.reason


def test_an_error_that_always_speaks_of_gloo_fails_the_trial_with_its_own_words(mailbox, member, order):
    Tester.trouble = RuntimeError("my gloo loss")
    mailbox.await_report(order, 1, 0.0)
    for _ in range(2):  # max_failures is 1
        with pytest.raises(RuntimeError):
            member(world_size=2).run(*mailbox.next_order(None, 0.0))
    assert mailbox.next_order(None, 0.0) is None
    assert "my gloo loss" in mailbox.await_report(order, 1, 0.0).reason


def test_an_owner_out_of_reach_is_no_fault_of_the_trial(mailbox, member, order):
    lease, sent = begin(mailbox, order)
    lonely = member()
    lonely.owner.push.remote = _unreachable
    with pytest.raises(ActorUnavailableError):
        lonely.run(lease, sent)
    assert mailbox.await_report(order, 1, 0.0) is None


def _unreachable(*_):
    raise ActorUnavailableError("no answer", b"0" * 16)


def test_a_rank_that_diverges_alone_is_heard_and_does_not_wait_for_the_others(
    mailbox, member, order, monkeypatch, tmp_path
):
    """Rank 0 may be stuck in a collective; it is for Ray Train to build the gang anew."""
    monkeypatch.setattr(gangs, "MEET_S", 0.3)
    Tester.trouble = TrialDiverged("loss is nan")
    lease, sent = begin(mailbox, order)

    def met(self, timeout):
        raise RuntimeError(f"rank 0 did not come within {timeout}")

    monkeypatch.setattr(dist, "monitored_barrier", met)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda answers, src, group: None)
    with pytest.raises(RuntimeError, match="rank 0"):
        member(rank=1, world_size=2, control="group").run(lease, sent)
    assert mailbox.await_report(order, 1, 0.0) == Failure(state="diverged", reason="loss is nan")


def test_monitored_barrier_lets_those_pass_who_all_come_and_nobody_else():
    """What `Gang._meet` relies on, with real gloo groups of two ranks in two threads."""
    store = dist.HashStore()
    came = []

    def rank(number, comes):
        group = dist.ProcessGroupGloo(store, number, 2)
        if not comes:
            event.wait(4)
            return
        try:
            group.monitored_barrier(timeout=gangs.datetime.timedelta(seconds=0.5))
            came.append("passed")
        except RuntimeError:
            came.append("alone")
        event.set()

    for other_comes in (True, False):
        event = threading.Event()
        threads = [threading.Thread(target=rank, args=(n, n == 1 or other_comes)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4)
        store = dist.HashStore()
    assert came == ["passed", "passed", "alone"]


def test_a_full_disk_is_no_failure_of_the_trial(mailbox, member, order, monkeypatch):
    def save(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tester, "save", save)
    member().run(*begin(mailbox, order))
    told = mailbox.await_report(order, 1, 0.0)
    assert isinstance(told, Moved) and told.storage == "full" and told.deaths == 0


def test_a_checkpoint_is_written_once_the_storage_is_back(mailbox, member, order, monkeypatch, tmp_path):
    tries = []

    def save(self, folder):
        tries.append(folder)
        if len(tries) == 1:
            raise OSError(116, "stale file handle")
        (folder / "state").write_bytes(b"x" * 1000)

    monkeypatch.setattr(Tester, "save", save)
    monkeypatch.setattr("trainables.patience.FIRST_WAIT_S", 0.001)
    member().run(*begin(mailbox, order))
    assert mailbox.await_report(order, 1, 0.0).metrics["checkpoint_mb"] == 0.001
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["0001"]


def test_a_trial_that_leaves_within_an_epoch_goes_on_there(mailbox, member, order, monkeypatch, tmp_path):
    loaded = []

    def train_epoch(self):
        self.epochs = getattr(self, "epochs", 0) + 1
        if self.epochs == 2 and self.context.leaving():
            raise LeftEarly
        return {"loss": 0.5}

    monkeypatch.setattr(Tester, "train_epoch", train_epoch)
    monkeypatch.setattr(Tester, "load", lambda self, folder: loaded.append(folder.name))
    monkeypatch.setattr(gangs, "leaving", lambda: True)
    order = dataclasses.replace(order, max_epochs=2)
    worker = run_beside(member(), *begin(mailbox, order))
    assert mailbox.await_report(order, 1, 10.0).epoch == 1
    assert mailbox.await_report(order, 2, 10.0) == Moved(
        reason="its node is taken away, in the middle of an epoch"
    )
    worker.join(10.0)
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["0001", "0001.within"]

    monkeypatch.setattr(gangs, "leaving", lambda: False)
    elsewhere = Mailbox(max_failures=1)
    again = dataclasses.replace(order, run_id="0-b", epoch=1)
    assert elsewhere.await_report(again, 2, 0.0) is None
    for name in ("push", "may_go_on", "fail", "alive"):
        monkeypatch.setattr(mailbox, name, getattr(elsewhere, name))
    member().run(*elsewhere.next_order(None, 0.0))
    assert elsewhere.await_report(again, 2, 0.0).epoch == 2 and loaded == ["0001.within"]


@pytest.fixture
def uploads(monkeypatch):
    """What workers do with a storage that is a URL: "begun N" and "up N", as it happens."""
    happened, lock = [], threading.Condition()

    def note(what):
        with lock:
            happened.append(what)
            lock.notify_all()

    def save_for_upload(save, url):
        epoch = int(url[-4:])

        def upload():
            with lock:  # until the next epoch has begun, or as it seems does not before
                lock.wait_for(lambda: f"begun {epoch + 1}" in happened, 1.0)
            note(f"up {epoch}")

        return upload

    def train_epoch(self):
        self.epoch = getattr(self, "epoch", 0) + 1
        note(f"begun {self.epoch}")
        return {"loss": 0.5}

    monkeypatch.setattr("trainables.checkpoint_files.saved_for_upload", save_for_upload)
    monkeypatch.setattr(gangs, "has_checkpoint", lambda place: False)
    monkeypatch.setattr(Tester, "train_epoch", train_epoch)
    return happened


def run_beside(member, lease, order):
    worker = threading.Thread(target=member.run, args=(lease, order))
    worker.start()
    return worker


def test_an_upload_goes_on_behind_the_next_epoch_but_not_where_a_decision_is_due(
    mailbox, member, order, uploads
):
    order = dataclasses.replace(order, folder="s3://x/0", max_epochs=5, full_epochs=frozenset({3, 5}))
    worker = run_beside(member(), *begin(mailbox, order))
    for epoch in range(1, 6):
        assert mailbox.await_report(order, epoch, 10.0).epoch == epoch
        assert f"up {epoch}" in uploads
    worker.join(10.0)
    assert not worker.is_alive()
    assert uploads == [
        *("begun 1", "begun 2", "up 1", "begun 3", "up 2", "up 3"),
        *("begun 4", "begun 5", "up 4", "up 5"),
    ]


def test_an_epoch_that_began_behind_an_upload_counts_for_nothing_if_the_trial_stops_before_it(
    mailbox, member, order, uploads
):
    order = dataclasses.replace(order, folder="s3://x/0", max_epochs=5)
    worker = run_beside(member(), *begin(mailbox, order))
    assert mailbox.await_report(order, 1, 10.0).epoch == 1
    mailbox.take_back(order.run_id)
    worker.join(10.0)
    assert not worker.is_alive() and uploads == ["begun 1", "begun 2", "up 1"]


def test_a_trial_that_fails_behind_an_upload_has_told_of_the_epoch_before(
    mailbox, member, order, uploads, monkeypatch
):
    order = dataclasses.replace(order, folder="s3://x/0", max_epochs=5)
    train_epoch = Tester.train_epoch

    def diverge(self):
        train_epoch(self)
        if self.epoch == 2:
            raise TrialDiverged("NaN")
        return {"loss": 0.5}

    monkeypatch.setattr(Tester, "train_epoch", diverge)
    worker = run_beside(member(), *begin(mailbox, order))
    assert mailbox.await_report(order, 1, 10.0).epoch == 1
    assert mailbox.await_report(order, 2, 10.0) == Failure(state="diverged", reason="NaN")
    worker.join(10.0)


def test_data_that_its_node_lacks_fail_the_trial_with_node_path_and_remedy(
    mailbox, member, order, monkeypatch, tmp_path
):
    def setup(self, config, context):
        raise SettingsError(("data", "path"), "photos does not exist; did you mean 'photo'?")

    monkeypatch.setattr(Tester, "setup", setup)
    absent = dataclasses.replace(order, data={"path": str(tmp_path / "photos")})
    member().run(*begin(mailbox, absent))
    failure = mailbox.await_report(absent, 1, 0.0)
    assert failure.state == "failed"
    assert failure.reason.startswith(
        f"data.path: {tmp_path / 'photos'} is not there on node here: put the data"
    )


def test_settings_that_a_trial_refuses_are_told_as_they_are(mailbox, member, order, monkeypatch, tmp_path):
    def setup(self, config, context):
        raise SettingsError(("data", "path"), "too few images")

    monkeypatch.setattr(Tester, "setup", setup)
    there = dataclasses.replace(order, data={"path": str(tmp_path)})
    member().run(*begin(mailbox, there))
    assert mailbox.await_report(there, 1, 0.0).reason == "data.path: too few images"


@pytest.mark.parametrize("slow", ["setup", "upload"])
def test_a_setup_or_an_upload_that_takes_long_is_not_taken_for_a_hang(member, order, monkeypatch, slow):
    """The first trial on a node builds its cache, though its epochs elsewhere were short."""
    now = [0.0]
    watchdog = Watchdog(timeout_s=10.0, clock=lambda: now[0])
    mailbox = Mailbox(1, watchdog)
    heard = threading.Event()

    def alive(lease):
        mailbox.alive(lease)
        heard.set()

    def take_long(*_):
        now[0] += 11.0
        assert watchdog.hang()
        heard.clear()
        assert heard.wait(3)
        assert not watchdog.hang()

    monkeypatch.setattr(gangs, "POLL_S", 0.01)
    if slow == "setup":
        monkeypatch.setattr(Tester, "setup", take_long)
    else:
        monkeypatch.setattr(gangs, "write_checkpoint", lambda save, place: take_long)
    lonely = member()
    for name in ("next_order", "push", "may_go_on", "fail", "suspect"):
        getattr(lonely.owner, name).remote = getattr(mailbox, name)
    lonely.owner.alive.remote = alive
    lonely.run(*begin(mailbox, order))
    assert mailbox.await_report(order, 1, 0.0).metrics["loss"] == 0.5
    assert not [thread for thread in threading.enumerate() if "tell" in thread.name]
