"""When silence is taken for a hang, in virtual time; the kill itself is in test_faults.py."""

import pytest

from trainables.order import Order, Report
from tuning.gangs import watchdog
from tuning.gangs.mailbox import Mailbox
from tuning.gangs.watchdog import Watchdog

NOW = 0.0


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def silent_for(dog, clock, seconds):
    clock.now += seconds
    return dog.hang()


def test_nobody_hangs_before_the_first_sign_of_life(clock):
    assert not silent_for(Watchdog(10, clock=clock), clock, 1e9)


def test_silence_beyond_what_is_allowed_is_a_hang_that_says_so(clock):
    dog = Watchdog(60, clock=clock)
    dog.heard()
    assert not silent_for(dog, clock, 60)
    assert silent_for(dog, clock, 1) == ("hung: no sign of life for 61 s, training.hang_timeout allows 60 s")


def test_each_sign_of_life_begins_the_wait_anew(clock):
    dog = Watchdog(60, clock=clock)
    for _ in range(5):
        dog.heard()
        assert not silent_for(dog, clock, 59)


def test_workers_that_were_killed_are_not_waited_for(clock):
    dog = Watchdog(60, clock=clock)
    dog.heard()
    dog.rest()
    assert not silent_for(dog, clock, 1e9)
    dog.heard()
    assert silent_for(dog, clock, 61)


def test_auto_follows_the_slowest_epoch_of_this_trial(clock):
    dog = Watchdog(clock=clock)
    dog.watch(0.0)
    assert dog.patience_s == watchdog.FIRST_EPOCH_S
    dog.heard(2.0)
    assert dog.patience_s == watchdog.FLOOR_S, "epochs of seconds vary by more than ten times"
    dog.heard(100.0)
    dog.heard(50.0)
    assert dog.patience_s == 1000.0
    dog.watch(0.0)
    assert dog.patience_s == watchdog.FIRST_EPOCH_S, "another trial's epochs tell nothing"
    dog.watch(200.0)
    assert dog.patience_s == 2000.0, "what it did on another gang counts"


def order(**changes):
    return Order(run_id="0-a", trial_id="0", trainable="curves", config={}, max_epochs=3, **changes)


def test_the_mailbox_hears_workers_that_wait_and_those_that_report(clock):
    dog = Watchdog(60, clock=clock)
    mailbox = Mailbox(max_failures=1, watchdog=dog)
    mailbox.next_order(None, NOW)
    assert not silent_for(dog, clock, 50)
    mailbox.await_report(order(), 1, NOW)
    assert not silent_for(dog, clock, 5)
    lease, _ = mailbox.next_order(None, NOW)
    assert not silent_for(dog, clock, 55)
    mailbox.push(lease, Report(epoch=1, metrics={"seconds": 55.0}, attempt=1, node="here"))
    assert not silent_for(dog, clock, 55)
    assert mailbox.may_go_on(lease, 1, NOW) is None
    assert not silent_for(dog, clock, 55)
    mailbox.await_report(order(), 2, NOW)
    assert not silent_for(dog, clock, 1), "what the trial's side says is no sign of the workers' life"
    assert silent_for(dog, clock, 10)


def test_the_mailbox_tells_how_slow_epochs_were(clock):
    dog = Watchdog(clock=clock)
    mailbox = Mailbox(max_failures=1, watchdog=dog)
    mailbox.await_report(order(slowest_epoch_s=70.0), 1, NOW)
    assert dog.patience_s == 700.0
    lease, _ = mailbox.next_order(None, NOW)
    mailbox.push(lease, Report(epoch=1, metrics={"seconds": 90.0}, attempt=1, node="here"))
    assert dog.patience_s == 900.0
