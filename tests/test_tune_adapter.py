"""What Tune is let keep; everything else around Ray Tune is tried in whole runs, in test_runner.py."""

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial

from tuning.tune_adapter import REMEMBERED, Ticker


@pytest.mark.parametrize("over", [3, REMEMBERED, 5 * REMEMBERED])
def test_tune_forgets_trials_that_are_over_and_no_others(over):
    """Tune goes through this very list several times a trial."""
    ticks = []
    states = [Trial.TERMINATED] * over + [Trial.PENDING, Trial.RUNNING, Trial.PAUSED, Trial.ERROR]
    trials = [SimpleNamespace(status=state) for state in states]
    Ticker(SimpleNamespace(tick=lambda: ticks.append(1))).on_step_end(iteration=1, trials=trials)
    assert [trial.status for trial in trials if trial.status != Trial.TERMINATED] == states[over:]
    assert len(trials) <= REMEMBERED + 4 and (over > 3 or len(trials) == len(states))
    assert ticks == [1]
