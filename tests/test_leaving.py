"""A gang whose node is taken away: the trial leaves between two epochs. On real nodes: test_faults.py."""

import pytest

from trainables.order import Moved, Order, Report
from tuning.gangs.mailbox import Mailbox

NOW = 0.0
ORDER = Order(run_id="0-a", trial_id="0", trainable="curves", config={}, max_epochs=3)
MOVED = Moved(reason="its node is taken away")


def report(epoch):
    return Report(epoch=epoch, metrics={}, attempt=1, node="here")


@pytest.fixture
def mailbox():
    return Mailbox(max_failures=0)


@pytest.fixture
def lease(mailbox):
    """Of an order that is at its first epoch."""
    mailbox.await_report(ORDER, 1, NOW)
    return mailbox.next_order(None, NOW)[0]


def test_the_epoch_is_done_and_reported_before_the_trial_moves(mailbox, lease):
    mailbox.leave(MOVED.reason)
    assert not mailbox.may_end
    mailbox.push(lease, report(1))
    assert mailbox.may_end
    assert mailbox.await_report(ORDER, 1, NOW) == report(1)
    assert mailbox.await_report(ORDER, 2, NOW) == MOVED
    assert mailbox.may_go_on(lease, 1, NOW) is False


def test_between_epochs_the_trial_moves_at_once(mailbox, lease):
    mailbox.push(lease, report(1))
    mailbox.leave(MOVED.reason)
    assert mailbox.may_end
    assert mailbox.await_report(ORDER, 2, NOW) == MOVED


def test_a_trial_that_is_done_is_not_moved(mailbox, lease):
    for epoch in (1, 2, 3):
        mailbox.await_report(ORDER, epoch, NOW)
        mailbox.push(lease, report(epoch))
    mailbox.leave(MOVED.reason)
    assert mailbox.may_end and mailbox.await_report(ORDER, 3, NOW) == report(3)


def test_workers_that_leave_take_no_other_order(mailbox):
    mailbox.next_order(None, NOW)
    mailbox.leave(MOVED.reason)
    assert mailbox.may_end
    assert mailbox.await_report(ORDER, 1, NOW) is None
    assert mailbox.next_order(7, NOW) is None
    assert mailbox.next_order(None, NOW)[1].trial_id == "0", "those that come after them do"


def test_a_node_that_goes_before_the_epoch_is_done_counts_as_nobodys_failure(mailbox, lease):
    mailbox.leave(MOVED.reason)
    _, again = mailbox.next_order(None, NOW)  # max_failures is 0
    assert again.epoch == 0


def test_nobody_leaves_untold(mailbox, lease):
    assert not mailbox.may_end
