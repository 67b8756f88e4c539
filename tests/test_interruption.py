"""Ctrl-C waits for the end of a step, a second one does not, and what was there before comes back."""

import os
import signal
import threading

import pytest

from tuning.interruption import SIGNALS, Interruption


def send(signum):
    os.kill(os.getpid(), signum)
    signal.getsignal(signum)  # handlers run between two instructions


@pytest.fixture(params=SIGNALS)
def signum(request):
    before = {each: signal.signal(each, signal.default_int_handler) for each in SIGNALS}
    yield request.param
    for each, handler in before.items():
        signal.signal(each, handler)


def test_a_step_is_finished_first(signum):
    done = []
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption, interruption.held():
        send(signum)
        done.append("step")
        interruption.check()
        done.append("next step")
    assert done == ["step"]


def test_one_that_no_step_noticed_is_raised_at_the_end(signum):
    done = []
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        with interruption.held():
            send(signum)
        done.append("what follows")
    assert done == []


def test_a_second_one_does_not_wait(signum):
    done = []
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption, interruption.held():
        send(signum)
        done.append("hangs")
        send(signum)
        done.append("for ever")
    assert done == ["hangs"]


def test_outside_of_steps_it_is_taken_at_once_and_afterwards_as_before(signum):
    with pytest.raises(KeyboardInterrupt), Interruption():
        send(signum)
    assert all(signal.getsignal(each) is signal.default_int_handler for each in SIGNALS)


def test_what_is_ignored_stays_so(signum):
    signal.signal(signum, signal.SIG_IGN)
    with Interruption() as interruption, interruption.held():
        send(signum)
        interruption.check()
    assert signal.getsignal(signum) is signal.SIG_IGN


def test_beside_the_main_thread_it_does_nothing(signum):
    seen = []

    def work():
        with Interruption() as interruption, interruption.held():
            seen.extend(signal.getsignal(each) for each in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler] * 2
