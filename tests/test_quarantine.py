"""When a trial is tried elsewhere and when a gang is closed; without Ray."""

import dataclasses

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from trainables.order import Failure, Moved, Order, Report
from tuning.gangs.mailbox import Mailbox
from tuning.gangs.obituary import cause
from tuning.gangs.quarantine import STARTS, Quarantine
from tuning.gangs.roster import Roster

NOW = 0.0
ORDER = Order(run_id="00000-a", trial_id="00000", trainable="curves", config={}, max_epochs=3)


def other(number, **changes):
    name = f"{number:05d}"
    return dataclasses.replace(ORDER, run_id=f"{name}-a", trial_id=name, **changes)


def after(*deaths):
    quarantine = Quarantine()
    for trial_id in deaths:
        quarantine.died(trial_id)
    return quarantine


def test_a_trial_moves_after_two_deaths_in_a_row():
    assert not after("a").moves("a")
    assert after("a", "a").moves("a")
    assert not after("a", "b").moves("b")


def test_a_gang_is_closed_when_it_fails_three_trials_in_a_row():
    assert not after("a", "a", "b", "b").verdict(), "two bad trials in a row happen"
    verdict = after("a", "a", "b", "b", "c").verdict()
    assert verdict == "its workers died 5 times in a row, under trials a, b, c"
    assert not after(*"aaaa").verdict(), "one bad trial closes nothing"


def test_an_epoch_in_between_clears_a_gang():
    quarantine = after("a", "b")
    quarantine.worked()
    quarantine.died("c")
    assert not quarantine.verdict() and not quarantine.moves("c")


def test_a_gang_that_does_not_even_start_is_closed():
    assert not after(*[""] * (STARTS - 1)).verdict()
    assert after(*[""] * STARTS).verdict()


@pytest.fixture
def mailbox():
    return Mailbox(max_failures=3)


def die(mailbox, order, times):
    """The workers die `times` under `order`; what the trial is told then."""
    mailbox.await_report(order, 1, NOW)
    for _ in range(times + 1):
        mailbox.next_order(None, NOW)
    return mailbox.await_report(order, 1, NOW)


def test_a_trial_under_which_workers_die_twice_is_moved(mailbox):
    assert die(mailbox, ORDER, 1) is None
    told = die(mailbox, other(1), 2)
    assert isinstance(told, Moved) and told.deaths == 2 and not told.gang_closed
    assert mailbox.next_order(None, NOW) is None, "the gang waits for another trial"


def test_deaths_on_other_gangs_count_towards_max_failures(mailbox):
    told = die(mailbox, other(1, lost=3), 1)
    assert isinstance(told, Failure) and "died 4 times" in told.reason


def test_new_workers_go_on_with_a_higher_attempt(mailbox):
    mailbox.await_report(ORDER, 1, NOW)
    mailbox.next_order(None, NOW)
    _, again = mailbox.next_order(None, NOW)
    assert again.attempt == 2


def test_a_gang_that_fails_every_trial_says_so_with_the_last_cause(mailbox):
    for number in (0, 1):
        die(mailbox, other(number), 2)
    mailbox.await_report(other(2), 1, NOW)
    mailbox.next_order(None, NOW)
    mailbox.workers_died("worker 0: signal 11")
    mailbox.next_order(None, NOW)
    told = mailbox.await_report(other(2), 1, NOW)
    assert told.deaths == 1 and told.gang_closed.endswith("at last: worker 0: signal 11")
    assert mailbox.await_report(other(3), 1, NOW).gang_closed, "whoever comes next is told, too"


def test_an_epoch_done_clears_the_gang(mailbox):
    for number in (0, 1):
        die(mailbox, other(number), 2)
    order = other(2)
    mailbox.await_report(order, 1, NOW)
    lease, _ = mailbox.next_order(1, NOW)
    mailbox.push(lease, Report(epoch=1, metrics={}, attempt=1, node="here"))
    mailbox.await_report(order, 2, NOW)
    mailbox.next_order(None, NOW)
    assert mailbox.await_report(order, 2, NOW) is None


def test_workers_that_never_come_close_the_gang_under_a_waiting_trial(mailbox):
    assert mailbox.await_report(ORDER, 1, NOW) is None
    for _ in range(STARTS):
        mailbox.workers_died("RuntimeError: no CUDA device")
    told = mailbox.await_report(ORDER, 1, NOW)
    assert isinstance(told, Moved) and told.deaths == 0, "the trial is not to blame"
    assert "no CUDA device" in told.gang_closed


def test_workers_that_came_and_broke_off_were_started(mailbox):
    """A gang of several workers is rebuilt after every trial whose code raises."""
    for _ in range(STARTS + 1):
        mailbox.next_order(None, NOW)
        mailbox.workers_died("RuntimeError: told to fail")
    assert mailbox.await_report(ORDER, 1, NOW) is None


@pytest.fixture
def gangs():
    made = Roster()
    made.resize(2)
    for name in "ab":
        made.add(name)
        made.hear(name, "serving")
    return made


def test_a_gang_that_a_trial_left_in_trouble_rests_until_another_has_the_trial(gangs):
    assert gangs.lend("0-x", "0") == "a" and gangs.lend("1-x", "1") == "b"
    gangs.take_back("0-x")
    gangs.suspect("a", "0")
    assert not gangs.any_free, "b may come free, and 0 is first in the line"
    gangs.take_back("1-x")
    assert gangs.lend("0-y", "0") == "b"
    assert gangs.lend("2-x", "2") == "a"


def test_a_gang_without_another_has_the_trial_again(gangs):
    gangs.close("b")
    assert gangs.lend("0-x", "0") == "a"
    gangs.take_back("0-x")
    gangs.suspect("a", "0")
    assert gangs.lend("0-y", "0") == "a"
    assert not gangs.none_left
    gangs.close("a")
    assert gangs.none_left and not gangs.any_free
    assert gangs.resize(2) == (0, []), "no other takes their places"
    assert gangs.resize(3) == (1, []), "but the cluster may grow"


def test_the_cause_named_is_the_death_not_what_it_entailed():
    errors = {
        0: RuntimeError("[gloo] connection closed by peer"),
        1: WorkerHealthCheckFailedError("a check failed", failure=ActorDiedError()),
    }
    assert cause(errors) == "worker 1: The actor died unexpectedly before finishing this task."
    assert cause({0: ValueError()}) == "worker 0: ValueError()"
