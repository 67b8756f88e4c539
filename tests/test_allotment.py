"""Epochs beyond the first rung, by hand."""

import pytest

from tuning.search.allotment import Allotment


def test_it_is_what_asha_would_give_by_hand():
    """26 trials, one in 3: 8 go on to epoch 3, 2 of these to 9, none of these to 27: 8 * 2 + 2 * 6 = 28."""
    allotment = Allotment((1, 3, 9, 27), 26, 3)
    for number in range(13):
        assert allotment.fits(1)
        allotment.until_next(number, 1)  # 2 epochs each
    assert not allotment.fits(9), "18 more"
    assert allotment.fits(1)
    allotment.until_next(13, 1)
    assert not allotment.fits(1)


def test_what_is_not_used_is_left_for_others():
    allotment = Allotment((1, 3, 9), 9, 3)  # 3 * 2 + 1 * 6
    allotment.until_next(0, 1)
    allotment.until_next(0, 3)
    allotment.until_next(1, 1)
    assert not allotment.fits(3) and allotment.fits(1)  # 2 are left
    allotment.until(0, 4)  # it failed in its fifth epoch
    allotment.until(0, 4)
    assert allotment.fits(3)  # 7 are left
    allotment.until(2, 1)
    allotment.until(2, 0)  # nobody is granted less than the first rung
    allotment.until_next(1, 3)
    assert allotment.fits(1) and not allotment.fits(3)  # 1 is left


def test_the_last_of_it_is_used_if_it_is_half_of_what_is_needed():
    allotment = Allotment((1, 3, 9), 6, 3)  # 2 * 2
    assert allotment.fits(3)  # for 6 epochs 4 are left
    allotment.until_next(0, 1)
    assert not allotment.fits(3) and allotment.fits(1)  # 2
    allotment.until_next(0, 3)
    assert not allotment.fits(1)


def test_a_quarter_is_for_trials_that_nobody_chose():
    allotment = Allotment((1, 3, 9), 27, 3)  # 9 * 2 + 3 * 6 = 36
    allotment.until_next(9, 1)  # chosen, which is no matter
    assert [allotment.pass_unchosen(number, 1) for number in range(5)] == [True] * 4 + [False]  # 8 of 9
    assert allotment.fits(3)
    assert Allotment((1, 3, 9), None, 3).pass_unchosen(0, 3)


def test_trials_that_never_come_to_the_first_rung_do_not_count():
    allotment = Allotment((1, 3, 9), 9, 3)  # 3 * 2 + 1 * 6
    assert allotment.fits(3)
    allotment.come()
    allotment.lose()  # of two one: 6 of 9 may come, 2 * 2
    allotment.until_next(0, 1)
    assert not allotment.fits(3) and allotment.fits(1)
    Allotment((1, 3, 9), None, 3).lose()


def test_a_trial_that_is_finished_anyhow_counts():
    allotment = Allotment((1, 3, 9), 3, 3)  # 2
    for epoch in range(2, 10):
        allotment.until(0, epoch)
    assert not allotment.fits(1)


@pytest.mark.parametrize("levels", [(9,), (1, 3, 9)])
def test_without_a_number_of_trials_there_is_no_end_of_it(levels):
    allotment = Allotment(levels, None, 3)
    for number in range(1000):
        allotment.until(number, 9)
    assert allotment.fits(levels[0])
