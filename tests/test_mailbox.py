import dataclasses
import threading

import pytest

from trainables.order import Failure, Moved, Order, Report
from tuning.gangs.mailbox import Mailbox

ORDER = Order(run_id="00000-a", trial_id="00000", trainable="curves", config={}, max_epochs=3)
NOW = 0.0


def report(epoch, attempt=1):
    return Report(epoch=epoch, metrics={"score": float(epoch)}, attempt=attempt, node="here")


@pytest.fixture
def mailbox():
    return Mailbox(max_failures=1)


def send(mailbox, order=ORDER, epoch=1):
    """What a trial's first question does, without waiting for the answer."""
    assert mailbox.await_report(order, epoch, NOW) is None


def test_nothing_to_do_without_an_order(mailbox):
    assert mailbox.next_order(None, NOW) is None


def test_an_order_is_handed_out_once(mailbox):
    send(mailbox)
    lease, order = mailbox.next_order(None, NOW)
    assert order.trial_id == "00000"
    assert mailbox.next_order(lease, NOW) is None


def test_an_epoch_runs_only_when_somebody_asks_for_it(mailbox):
    send(mailbox)
    lease, _ = mailbox.next_order(None, NOW)
    mailbox.push(lease, report(1))
    assert mailbox.await_report(ORDER, 1, NOW) == report(1)
    assert mailbox.may_go_on(lease, 1, NOW) is None
    assert mailbox.await_report(ORDER, 2, NOW) is None
    assert mailbox.may_go_on(lease, 1, NOW) is True


def test_asking_again_gives_the_same_report(mailbox):
    send(mailbox)
    lease, _ = mailbox.next_order(None, NOW)
    mailbox.push(lease, report(1))
    first = mailbox.await_report(ORDER, 1, NOW)
    assert mailbox.await_report(ORDER, 1, NOW) == first


def test_a_trial_taken_back_stops_its_gang(mailbox):
    send(mailbox)
    lease, _ = mailbox.next_order(None, NOW)
    mailbox.push(lease, report(1))
    mailbox.take_back(ORDER.run_id)
    assert mailbox.may_go_on(lease, 1, NOW) is False
    assert mailbox.next_order(lease, NOW) is None


def test_a_late_take_back_leaves_the_next_trial_alone(mailbox):
    send(mailbox)
    successor = dataclasses.replace(ORDER, run_id="00001-b", trial_id="00001")
    send(mailbox, successor)
    mailbox.take_back(ORDER.run_id)
    _, order = mailbox.next_order(None, NOW)
    assert order.trial_id == "00001"


def test_late_messages_of_an_old_trial_are_dropped(mailbox):
    send(mailbox)
    old, _ = mailbox.next_order(None, NOW)
    successor = dataclasses.replace(ORDER, run_id="00001-b", trial_id="00001")
    send(mailbox, successor)
    mailbox.push(old, report(1))
    mailbox.fail(old, Failure(state="failed", reason="late"))
    assert mailbox.may_go_on(old, 1, NOW) is False
    assert mailbox.await_report(successor, 1, NOW) is None


def test_new_workers_take_the_same_trial_again_from_its_last_report(mailbox):
    send(mailbox)
    dead, _ = mailbox.next_order(None, NOW)
    mailbox.push(dead, report(1))
    send(mailbox, epoch=2)
    alive, order = mailbox.next_order(None, NOW)
    assert (order.epoch, order.attempt) == (1, 2)
    mailbox.push(dead, report(2))  # the dead one was only slow
    assert mailbox.await_report(ORDER, 2, NOW) is None
    mailbox.push(alive, report(2, attempt=2))
    assert mailbox.await_report(ORDER, 2, NOW) == report(2, attempt=2)


def test_workers_that_keep_dying_fail_the_trial_not_the_gang(mailbox):
    send(mailbox)
    assert mailbox.next_order(None, NOW) is not None
    assert mailbox.next_order(None, NOW) is not None  # max_failures is 1
    assert mailbox.next_order(None, NOW) is None
    failure = mailbox.await_report(ORDER, 1, NOW)
    assert failure.state == "failed"
    assert "max_failures" in failure.reason
    successor = dataclasses.replace(ORDER, run_id="00001-b", trial_id="00001")
    send(mailbox, successor)
    assert mailbox.next_order(None, NOW)[1].trial_id == "00001"


def test_a_failed_trial_is_not_handed_to_the_rebuilt_workers(mailbox):
    send(mailbox)
    lease, _ = mailbox.next_order(None, NOW)
    mailbox.fail(lease, Failure(state="failed", reason="ValueError: boom"))
    mailbox.fail(lease, Failure(state="failed", reason="a peer noticed too"))
    assert mailbox.next_order(None, NOW) is None
    assert mailbox.await_report(ORDER, 1, NOW).reason == "ValueError: boom"


def test_a_finished_trial_is_not_repeated_by_rebuilt_workers(mailbox):
    send(mailbox, epoch=3)
    lease, _ = mailbox.next_order(None, NOW)
    for epoch in (1, 2, 3):
        mailbox.push(lease, report(epoch))
    assert mailbox.next_order(None, NOW) is None


def test_a_restarted_owner_starts_from_the_checkpoint_that_is_named(mailbox):
    resumed = dataclasses.replace(ORDER, epoch=2)
    send(mailbox, resumed, epoch=3)
    _, order = mailbox.next_order(None, NOW)
    assert order.epoch == 2


def test_closing_wakes_those_who_wait(mailbox):
    heard = []
    waiting = threading.Thread(target=lambda: heard.append(mailbox.next_order(None, 4.0)))
    waiting.start()
    mailbox.close()
    waiting.join(1.0)
    assert heard == ["close"]


def test_a_trial_given_up_for_lost_does_not_oust_its_heir(mailbox):
    send(mailbox)
    mailbox.take_back(ORDER.run_id)  # its actor was cut off, and asks on
    successor = dataclasses.replace(ORDER, run_id="00001-b", trial_id="00001")
    send(mailbox, successor)
    lease, _ = mailbox.next_order(None, NOW)
    assert isinstance(mailbox.await_report(ORDER, 1, NOW), Failure)
    mailbox.push(lease, report(1))
    assert mailbox.await_report(successor, 1, NOW) == report(1)


def test_a_question_of_an_old_trial_is_not_answered_with_the_next_ones_report(mailbox):
    heard = []
    old = threading.Thread(target=lambda: heard.append(mailbox.await_report(ORDER, 1, 4.0)))
    old.start()
    lease, _ = mailbox.next_order(None, 1.0)
    successor = dataclasses.replace(ORDER, run_id="00001-b", trial_id="00001")
    send(mailbox, successor)
    lease, _ = mailbox.next_order(lease, NOW)
    mailbox.push(lease, report(1))
    mailbox.take_back(ORDER.run_id)
    old.join(1.0)
    assert isinstance(heard[0], Failure)


def test_a_worker_that_outlived_its_owner_holds_no_lease_of_the_next(mailbox):
    reborn = Mailbox(max_failures=1)
    send(mailbox)
    old, _ = mailbox.next_order(None, NOW)
    send(reborn)
    new, _ = reborn.next_order(None, NOW)
    assert old != new
    reborn.push(old, report(1))
    assert reborn.await_report(ORDER, 1, NOW) is None


def test_what_the_workers_broke_off_with_explains_the_failure(mailbox):
    send(mailbox)
    for _ in range(2):
        lease, _ = mailbox.next_order(None, NOW)
        mailbox.suspect(lease, "RuntimeError: my gloomy nccl")
    assert mailbox.next_order(None, NOW) is None
    assert mailbox.await_report(ORDER, 1, NOW).reason.endswith("at last: RuntimeError: my gloomy nccl")


def test_its_state_tells_whether_workers_are_there(mailbox):
    assert mailbox.state() == "waiting"
    mailbox.workers_gone("starting")
    assert mailbox.state() == "starting"
    mailbox.next_order(None, NOW)
    assert mailbox.state() == "serving"
    mailbox.workers_gone("waiting")
    assert mailbox.state() == "waiting"


def test_a_trial_without_workers_is_sent_elsewhere(mailbox):
    mailbox.displace("nothing to displace")
    send(mailbox)
    lease, _ = mailbox.next_order(None, NOW)
    mailbox.push(lease, report(1))
    mailbox.displace("the node is gone")
    assert mailbox.await_report(ORDER, 1, NOW) == report(1), "what is done stays done"
    assert mailbox.await_report(ORDER, 2, NOW) == Moved(reason="the node is gone")
    assert mailbox.next_order(None, NOW) is None, "workers that come after all do not begin it"
    mailbox.take_back(ORDER.run_id)
    other = dataclasses.replace(ORDER, run_id="00001-b")
    send(mailbox, other)
    assert mailbox.next_order(None, NOW)[1].run_id == "00001-b"
