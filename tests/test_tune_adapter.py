"""What Tune is let keep; everything else around Ray Tune is tried in whole runs, in test_runner.py."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.tune.experiment import Trial
from ray.tune.utils.object_cache import _ObjectCache

from trainables.order import Moved, Order, Report
from trainables.patience import StorageFailed
from tuning import trial_actor
from tuning.trial_actor import TrialActor
from tuning.tune_adapter import REMEMBERED, Ticker, TuneScheduler, TuneSearcher


@pytest.mark.parametrize("over", [3, REMEMBERED, 5 * REMEMBERED])
def test_tune_forgets_trials_that_are_over_and_no_others(over):
    """Tune goes through this very list several times a trial."""
    calls = []
    states = [Trial.TERMINATED] * over + [Trial.PENDING, Trial.RUNNING, Trial.PAUSED, Trial.ERROR]
    trials = [SimpleNamespace(status=state) for state in states]
    Ticker(lambda: calls.append(1)).on_step_end(iteration=1, trials=trials)
    assert [trial.status for trial in trials if trial.status != Trial.TERMINATED] == states[over:]
    assert len(trials) <= REMEMBERED + 4 and (over > 3 or len(trials) == len(states))
    assert calls == [1]


def test_an_owner_that_was_restarted_counts_as_one_more_attempt(monkeypatch):
    """With its node, say: its mailbox has forgotten how often the workers died before."""
    order = Order(run_id="0-a", trial_id="0", trainable="t", config={}, max_epochs=3, folder="")
    answers = [2, RayActorError(), ActorUnavailableError("back in a moment", None), None, 3]
    asked = []

    def await_report(order, epoch, timeout_s):
        asked.append((order.epoch, order.attempt))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer and Report(epoch=epoch, metrics={}, attempt=answer, node="")

    monkeypatch.setattr(trial_actor.ray, "get", lambda answer: answer)
    monkeypatch.setattr(trial_actor.time, "sleep", lambda seconds: None)
    actor = object.__new__(TrialActor)
    actor._order, actor._epoch = order, 0
    actor._owner = SimpleNamespace(await_report=SimpleNamespace(remote=await_report))
    reports = [actor.step()["answer"] for _ in range(2)]  # a worker died in the first epoch
    assert [report.attempt for report in reports] == [2, 3]
    assert asked == [(0, 1), (1, 2), (1, 3), (1, 3), (1, 3)]


class Told:
    """A search and gangs in one, which remember what they are told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **options: self.calls.append((name, *args, *options.values()))


def answer_of(moved, *, room=False):
    told = Told()
    scheduler = TuneScheduler(told, told, make_room=lambda: room)
    order = Order(run_id="0-a", trial_id="0", trainable="curves", config={})
    trial = SimpleNamespace(config={"order": order, "gang": "g"})
    scheduler.on_trial_result(None, trial, {"answer": moved})
    return told.calls


def test_tune_keeps_an_actor_for_each_gang_that_there_is():
    """One that idles for a gang that has ended would stay for the rest of the run."""
    cache, gangs = _ObjectCache(), SimpleNamespace(names={"g-0", "g-1"})
    controller = SimpleNamespace(_tune_controller=SimpleNamespace(_actor_cache=cache))
    scheduler = TuneScheduler(None, gangs, make_room=None)
    for gang in ("g-0", "g-1", "g-0"):
        seat = f"seat of {gang}"
        scheduler.on_trial_add(
            controller, SimpleNamespace(config={"gang": gang}, placement_group_factory=seat)
        )
        cache.has_cached_object(seat) or cache.cache_object(seat, gang)
    assert list(cache.flush_cached_objects()) == [] and cache.num_cached_objects == 2
    gangs.names = {"g-0", "g-2"}
    later = SimpleNamespace(config={"gang": "g-2"}, placement_group_factory="seat of g-2")
    scheduler.on_trial_add(controller, later)
    assert list(cache.flush_cached_objects()) == ["g-1"]


def test_who_waits_for_a_gang_notices_that_the_search_is_over():
    """Its time may run out while no gang has room."""
    search = SimpleNamespace(finished=False)
    gangs = SimpleNamespace(any_free=False, none_left=False, lent=False)
    looks = []

    def look():
        looks.append(1)
        search.finished = len(looks) == 2

    searcher = TuneSearcher(search, gangs, order_for=None, between_steps=look)
    assert searcher.suggest("0") == TuneSearcher.FINISHED
    assert len(looks) == 2


FULL = Moved(reason="storage is full", storage="full")


def test_a_trial_goes_on_elsewhere_once_there_is_room_again():
    assert answer_of(FULL, room=True) == [("lose", "0", "storage is full", 0), ("take_back", "0-a")]


@pytest.mark.parametrize("moved, room", [(FULL, False), (Moved(reason="away", storage="away"), True)])
def test_a_run_without_storage_ends(moved, room):
    with pytest.raises(StorageFailed, match=moved.reason):
        answer_of(moved, room=room)


def test_a_closed_gang_is_told_of_and_one_in_trouble_rests():
    assert ("close_one", "g") in answer_of(Moved(reason="r", deaths=1, gang_closed="why"))
    assert ("gang_closed", "g", "why") in answer_of(Moved(reason="r", deaths=1, gang_closed="why"))
    assert ("suspect", "g", "0") in answer_of(Moved(reason="r", deaths=2))
    assert not any(call[0] == "suspect" for call in answer_of(Moved(reason="its node is taken away")))
