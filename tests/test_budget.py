from tuning.budget import BudgetGuard


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_trials_are_counted():
    budget = BudgetGuard(trials=2, time_s=None, clock=Clock())
    assert budget.may_start and budget.why_exhausted == "" and budget.time_left_s is None
    budget.count_trial()
    assert budget.may_start
    budget.count_trial()
    assert not budget.may_start and not budget.time_is_up
    assert budget.why_exhausted == "all 2 trials of the budget have started"


def test_time_runs_from_when_the_guard_was_built():
    clock = Clock()
    budget = BudgetGuard(trials=None, time_s=60.0, clock=clock)
    clock.now += 59
    assert budget.may_start and budget.time_left_s == 1
    clock.now += 2
    assert budget.time_is_up and not budget.may_start and budget.time_left_s == 0
    assert budget.why_exhausted == "the budget's 60 s are over"


def test_whichever_limit_comes_first_ends_it():
    clock = Clock()
    budget = BudgetGuard(trials=1, time_s=60.0, clock=clock)
    budget.count_trial()
    assert not budget.may_start and budget.time_left_s == 60
