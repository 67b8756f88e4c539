"""A trial for which memory does not suffice: over, or gone on with in smaller parts. Without Ray."""

import pytest
import yaml
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from test_search import Recorder, open_search

from trainables.captioning.trial import Captioning
from trainables.order import Failure, Order
from tuning.accumulation import TrialSettings
from tuning.experiment import Experiment, ExperimentError
from tuning.gangs.mailbox import Mailbox
from tuning.gangs.obituary import ran_out_of_memory

NOW = 0.0


@pytest.fixture
def recorder():
    return Recorder()


BASE = """
name: full
trainable: curves
model: {batch_size: 6}
search_space: {learning_rate: {float: [1e-4, 1e-1], log: true}}
objectives: [{metric: score, mode: max}]
budget: {trials: 2}
training: {on_out_of_memory: accumulate}
"""


def experiment(**changes):
    return Experiment.from_dict(yaml.safe_load(BASE) | changes)


def test_parts_of_a_batch_are_halved_until_there_is_one_item():
    settings = TrialSettings(experiment(), workers=1)
    sizes = [settings.of({"learning_rate": 0.1}, n)["micro_batch_size"] for n in (1, 2, 3)]
    assert sizes == [3, 2, 1]
    assert settings.can_halve({}, 2) and not settings.can_halve({}, 3)
    assert settings.of({"learning_rate": 0.1}) == {"batch_size": 6, "learning_rate": 0.1}


def test_nothing_is_halved_unless_asked():
    assert not TrialSettings(experiment(training={}), workers=1).can_halve({}, 0)


def test_a_captioners_share_of_the_batch_is_halved():
    halved = Captioning.with_less_memory({"batch_size": 64}, 2)
    assert halved == {"batch_size": 64, "micro_batch_size": 16}, "of 32 that each of two workers has"
    assert Captioning.with_less_memory({"micro_batch_size": 4}, 1)["micro_batch_size"] == 2
    assert Captioning.with_less_memory({"batch_size": 2}, 2) is None
    shipped = Captioning.with_less_memory({"batch_size": 8, "compression.method": "int8"}, 1)
    assert shipped == {"batch_size": 8, "compression.method": "int8", "micro_batch_size": 4}


class Unhelpful:
    def setup(self, config, context): ...
    def train_epoch(self): ...
    def evaluate(self, full): ...
    def save(self, folder): ...
    def load(self, folder): ...
    def close(self): ...


def test_a_trainable_that_cannot_halve_is_refused():
    with pytest.raises(ExperimentError, match=r"on_out_of_memory: .*has no `with_less_memory`, use fail"):
        experiment(trainable=f"{__name__}:Unhelpful").check_trainable()


NO_MEMORY = Failure(state="out_of_memory", reason="batch_size 6, too much")


def test_the_search_goes_on_with_less_until_nothing_is_left(tmp_path, recorder):
    search = open_search(tmp_path, recorder, can_halve=lambda config, halvings: halvings < 1)
    run = search.next_run()
    search.fail(run.trial_id, NO_MEMORY)
    assert recorder.events[-1].state == "paused"
    assert recorder.events[-1].reason.endswith("batch_size 6, too much")
    again = search.next_run()
    assert (again.trial_id, again.halvings, again.attempt) == (run.trial_id, 1, 2)
    assert recorder.events[-1].halvings == 1, "the table shows it"
    search.fail(run.trial_id, NO_MEMORY)
    assert recorder.events[-1].state == "out_of_memory"


def test_a_resumed_search_goes_on_with_as_little(tmp_path, recorder):
    run = open_search(tmp_path, recorder).next_run()
    resumed = open_search(tmp_path, recorder)
    resumed.replay([{"trial_id": run.trial_id, "state": "paused", "halvings": 1}], [])
    assert resumed.next_run().halvings == 1


def test_a_worker_killed_for_want_of_memory_ends_its_trial_and_is_no_fault_of_the_gang():
    mailbox = Mailbox(max_failures=0)
    order = Order(run_id="0-a", trial_id="0", trainable="t", config={"batch_size": 6}, max_epochs=3)
    mailbox.await_report(order, 1, NOW)
    mailbox.next_order(None, NOW)
    mailbox.workers_died("worker 0: killed by the memory monitor", True)
    assert mailbox.next_order(None, NOW) is None, "new workers do not repeat it"
    told = mailbox.await_report(order, 1, NOW)
    assert told == Failure(
        state="out_of_memory", reason="batch_size 6, worker 0: killed by the memory monitor"
    )


@pytest.mark.parametrize(
    "failure, expected",
    [(OutOfMemoryError("node is low on memory"), True), (ActorDiedError(), False)],
)
def test_which_deaths_are_for_want_of_memory(failure, expected):
    died = WorkerHealthCheckFailedError("a check failed", failure=failure)
    assert ran_out_of_memory({0: RuntimeError("gloo"), 1: died}) is expected
