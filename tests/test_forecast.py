"""The forecast: an honest estimate of the time left, from events and the budget."""

from datetime import UTC, datetime

import pytest

from tuning.events import EpochReported, TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.forecast import Forecast
from tuning.tables.ledger import Ledger

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class Run:
    """A forecast and the ledger that it reads, begun at 100 s."""

    def __init__(self, experiment, clock):
        self.ledger, self.clock = Ledger(experiment), clock
        self.forecast = Forecast(experiment, self.ledger, clock=clock)

    def handle(self, event):
        self.ledger.apply(event)
        self.forecast.handle(event)

    def time_left(self):
        return self.forecast.time_left(self.clock.now - 100.0)


def experiment(tmp_path, **more):
    return Experiment.from_dict(
        {
            "name": "birds",
            "storage": str(tmp_path),
            "trainable": "curves",
            "search_space": {"learning_rate": {"float": [1e-4, 1e-1]}},
            "objectives": [{"metric": "cider", "mode": "max"}],
            "budget": {"trials": 4},
            **more,
        }
    )


def start(trial):
    return TrialStarted(trial_id=trial, config={"learning_rate": 0.01}, at=AT)


def epoch(trial, number, **metrics):
    return EpochReported(
        trial_id=trial, epoch=number, attempt=1, metrics=metrics, checkpoint="c", gang="g", node="n", at=AT
    )


def end(trial, state="completed", reason="all done"):
    return TrialEnded(trial_id=trial, state=state, reason=reason, at=AT)


def test_time_left_from_what_epochs_took(tmp_path, clock):
    spec = experiment(tmp_path, scheduler={"algorithm": "none", "max_epochs": 2})
    run = Run(spec, clock)
    assert run.time_left() is None
    for trial in ("a", "b"):  # two gangs
        run.handle(start(trial))
    assert run.time_left() is None
    clock.now += 60
    run.handle(epoch("a", 1, cider=0.1))
    assert run.time_left() == pytest.approx((7 * 60 - 60) / 2)  # b has had its minute already
    run.handle(end("b", "failed", "no epoch of it is to come any more"))
    assert run.time_left() == pytest.approx(5 * 60 / 2)
    clock.now += 600
    assert run.time_left() == 0


def test_time_left_expects_one_in_three_to_be_promoted(tmp_path, clock):
    spec = experiment(tmp_path, scheduler={"min_epochs": 1, "max_epochs": 9}, budget={"trials": 9})
    run = Run(spec, clock)
    for number in range(9):
        run.handle(start(f"{number}"))
        clock.now += 10
        run.handle(epoch(f"{number}", 1, cider=0.1))
        run.handle(end(f"{number}", "paused", "rung 0: waits for promotion"))
    assert run.time_left() == pytest.approx((3 * 2 + 1 * 6) * 10)


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        ({"epochs": 5}, 3 * 20),
        ({"worker_hours": 0.1}, 260 / 50 * 20),  # 360 s of work less 100, at 50 s an epoch
        ({"money": 1, "price_per_hour": 10}, 260 / 50 * 20),
        ({"money": 1, "price_per_hour": 10, "epochs": 3}, 20),
        ({"epochs": 5, "time": "50s"}, 10),
    ],
)
def test_time_left_from_what_is_left_of_a_budget(tmp_path, clock, budget, seconds):
    run = Run(experiment(tmp_path, budget=budget), clock)
    run.handle(start("a"))
    assert (run.time_left() is None) == ("time" not in budget)
    for number in (1, 2):
        clock.now += 20
        run.handle(epoch("a", number, cider=0.1, worker_s=50.0, seconds=20.0))
    assert run.time_left() == pytest.approx(seconds)


def test_time_left_from_the_time_budget(tmp_path, clock):
    run = Run(experiment(tmp_path, budget={"time": "10m"}), clock)
    run.handle(start("a"))
    clock.now += 60
    assert run.time_left() == pytest.approx(540)
