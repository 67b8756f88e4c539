"""What holds of every search, whatever its curves, rungs, budget and gangs: random ones in virtual time.

The scheduler is watched as the search asks it, so that promotions are counted where they are decided.
"""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trainables.order import Failure
from tuning.events import FINAL_STATES, EpochReported, TrialEnded, TrialStarted
from tuning.experiment import Experiment
from tuning.search.ranking import Standing
from tuning.search.scheduler import PromotingAsha
from tuning.simulation.simulator import simulate

DEADLINES = settings(max_examples=60, deadline=None)


def scheduling(*algorithms):
    return st.builds(
        lambda algorithm, low, span, factor: {
            "algorithm": algorithm,
            "min_epochs": low,
            "max_epochs": low + span,
            "reduction_factor": factor,
        },
        st.sampled_from(algorithms),
        st.integers(1, 3),
        st.integers(0, 9),
        st.integers(2, 4),
    )


schedulers = scheduling("asha", "asha", "asha_stopping", "none")
budgets = st.fixed_dictionaries(
    {"trials": st.integers(1, 25)},
    optional={
        "epochs": st.integers(1, 60),
        "worker_hours": st.floats(0.001, 0.2),
        "money": st.floats(0.01, 2.0),
        "time": st.floats(1, 400),
        "plateau": st.integers(2, 9),
    },
)


def described(scheduler, budget, objectives=1, algorithm="random", seed=0):
    return Experiment.from_dict(
        {
            "name": "any",
            "search_space": {"x": {"float": [0, 1]}},
            "objectives": [{"metric": f"m{i}", "mode": ["min", "max"][i % 2]} for i in range(objectives)],
            "constraints": [{"metric": "size", "max": 1.0}],
            "search": {"algorithm": algorithm, "startup_trials": 4, "seed": seed},
            "scheduler": scheduler,
            "budget": budget | ({"price_per_hour": 10.0} if "money" in budget else {}),
        }
    )


def random_curves(seed, wild):
    """Few different figures, so that some tie; `wild`: how often one is no number or a failure."""

    def curves(trial_id, config, epoch):
        rng = np.random.default_rng([seed, int(trial_id), epoch])
        if rng.random() < wild / 4:
            return Failure(state=["diverged", "failed", "out_of_memory"][rng.integers(3)], reason="by chance")
        values = [math.nan if rng.random() < wild else float(rng.integers(6)) for _ in range(3)]
        return {
            **{f"m{i}": value for i, value in enumerate(values)},
            "size": float(rng.choice([0.5, 0.5, 1.5])),
            "seconds": float(rng.integers(1, 20)),
        }

    return curves


class Watched(PromotingAsha):
    """Notes what it is told and asked."""

    made: "list[Watched]" = []

    def __init__(self, **options):
        super().__init__(**options)
        self.rungs, self.factor = options["rungs"], options["reduction_factor"]
        self.members = {epoch: [] for epoch in self.rungs}
        self.promoted = {epoch: [] for epoch in self.rungs}
        self.at, self.decisions = {}, []
        Watched.made.append(self)

    def report(self, trial_id, epoch, standing):
        self.at[trial_id] = epoch
        decision = super().report(trial_id, epoch, standing)
        if decision.action == "pause":
            assert trial_id not in self.members[epoch], "paused twice at one rung"
            self.members[epoch].append(trial_id)
        self.decisions.append((trial_id, epoch, decision))
        return decision

    def next_promotion(self, **options):
        promotion = super().next_promotion(**options)
        self.decisions.append(promotion)
        if promotion is not None:
            trial_id, _ = promotion
            epoch = self.at[trial_id]
            assert trial_id in self.members[epoch], "promoted from a rung in which it does not wait"
            assert trial_id not in self.promoted[epoch], "promoted twice"
            self.promoted[epoch].append(trial_id)
            assert len(self.promoted[epoch]) <= len(self.members[epoch]) // self.factor
        return promotion


class Recorder(list):
    handle = list.append

    def tick(self):
        pass

    def close(self):
        pass


def run(experiment, curves, gangs):
    """All events, the epochs, and the scheduler if it promotes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tuning.search.strategies.PromotingAsha", Watched)
        Watched.made.clear()
        told = Recorder()
        epochs = list(simulate(experiment, curves, gangs=gangs, listeners=[told]))
        return told, epochs, Watched.made[0] if Watched.made else None


searches = st.tuples(
    st.builds(described, schedulers, budgets, st.integers(1, 3)),
    st.builds(random_curves, st.integers(0, 2**31), st.sampled_from([0.0, 0.0, 0.1, 0.5])),
    st.integers(1, 8),
)


@DEADLINES
@given(searches)
def test_no_trial_runs_twice_at_the_same_time_nor_more_than_there_are_gangs(search):
    runs_on_gangs(run(*search)[0], search[2])


def runs_on_gangs(told, gangs):
    running = set()
    for event in told:
        if isinstance(event, TrialStarted):
            assert event.trial_id not in running
            running.add(event.trial_id)
        elif isinstance(event, TrialEnded):
            assert event.trial_id in running
            running.remove(event.trial_id)
        else:
            assert event.trial_id in running
        assert len(running) <= gangs
    assert not running


@DEADLINES
@given(searches)
def test_the_epochs_of_every_trial_are_counted_from_one_without_gaps(search):
    counted_from_one(*run(*search)[:2], search[0].scheduler.max_epochs)


def counted_from_one(told, epochs, longest):
    done = {}
    for event in told:
        if isinstance(event, EpochReported):
            done.setdefault(event.trial_id, []).append(event.epoch)
    assert sum(map(len, done.values())) == len(epochs)
    for trial_id, numbers in done.items():
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) <= longest, trial_id
    ended = {event.trial_id: event.state for event in told if isinstance(event, TrialEnded)}
    for trial_id, state in ended.items():
        if state == "completed":
            assert len(done[trial_id]) == longest
    assert [epoch.at_s for epoch in epochs] == sorted(epoch.at_s for epoch in epochs)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([("auto", "auto"), ("random", "asha"), ("random", "none"), ("tpe", "asha_stopping")]),
    st.integers(9, 70),
    st.integers(1, 8),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.3]),
)
def test_the_best_trial_is_complete_though_rivals_overtake_each_other(kinds, epochs, gangs, seed, noise):
    experiment = Experiment.from_dict(
        {
            "name": "close",
            "search_space": {"x": {"float": [0, 1]}},
            "objectives": [{"metric": "m", "mode": "min"}],
            "search": {"algorithm": kinds[0], "seed": seed},
            "scheduler": {"algorithm": kinds[1], "max_epochs": 9},
            "budget": {"epochs": epochs},
        }
    )

    def curves(trial_id, config, epoch):
        chance = np.random.default_rng([seed, int(trial_id), epoch]).random()
        return {"m": abs(config["x"] - 0.3) + 1 / epoch + noise * chance, "seconds": 1.0}

    told, done, _ = run(experiment, curves, gangs)
    best = min(done, key=lambda each: each.metrics["m"])
    ended = {event.trial_id: event.state for event in told if isinstance(event, TrialEnded)}
    assert ended[best.trial_id] == "completed" and len(done) < epochs + gangs


@DEADLINES
@given(searches)
def test_nothing_is_heard_of_a_trial_after_its_end(search):
    silent_after_the_end(run(*search)[0])


def silent_after_the_end(told):
    over = set()
    for event in told:
        assert event.trial_id not in over
        if isinstance(event, TrialEnded) and event.state in FINAL_STATES:
            over.add(event.trial_id)


@DEADLINES
@given(searches)
def test_promotions_are_one_in_reduction_factor_of_a_rung_and_nobody_is_promoted_twice(search):
    """`Watched` asserts it at every promotion; here that it watched."""
    told, epochs, scheduler = run(*search)
    if scheduler is None:
        assert search[0].scheduler.algorithm != "asha"
        return
    for rung, epoch in enumerate(scheduler.rungs):
        at_rung = [e for e in told if isinstance(e, EpochReported) and e.rung == rung]
        assert len(at_rung) >= len(scheduler.members[epoch])
        assert Counter(e.trial_id for e in at_rung).most_common(1)[0][1] == 1 if at_rung else True


@DEADLINES
@given(searches)
def test_a_budget_is_never_overspent_by_more_than_what_runs(search):
    experiment, curves, gangs = search
    within_budget(*run(*search)[:2], experiment.budget, gangs)


def within_budget(told, epochs, budget, gangs):
    if budget.trials is not None:
        assert len({event.trial_id for event in told}) <= budget.trials
    if budget.epochs is not None:
        assert len(epochs) <= budget.epochs + gangs - 1
    if budget.time_s is not None:
        began = [epoch.at_s - epoch.metrics["seconds"] for epoch in epochs]
        assert all(at_s < budget.time_s for at_s in began)
    hours = [budget.worker_hours, budget.money and budget.money / budget.price_per_hour]
    for limit in filter(None, hours):
        longest = max((epoch.metrics["worker_s"] for epoch in epochs), default=0.0)
        assert sum(epoch.metrics["worker_s"] for epoch in epochs) <= limit * 3600 + gangs * longest


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        described,
        schedulers,
        st.fixed_dictionaries({"trials": st.integers(1, 15)}, optional={"epochs": st.integers(1, 40)}),
        algorithm=st.sampled_from(["random", "sobol", "tpe", "cmaes"]),
        seed=st.integers(0, 99),
    ),
    st.builds(random_curves, st.integers(0, 2**31), st.sampled_from([0.0, 0.1])),
    st.integers(1, 8),
)
def test_equal_inputs_give_equal_decisions(experiment, curves, gangs):
    one, two = (run(experiment, curves, gangs) for _ in range(2))
    assert repr(one[:2]) == repr(two[:2])  # NaN equals nothing, but reads the same
    assert (one[2] and one[2].decisions) == (two[2] and two[2].decisions)


@settings(max_examples=15, deadline=None)  # the model decides in each
@given(
    st.builds(
        described,
        scheduling("auto"),
        st.fixed_dictionaries(
            {"epochs": st.integers(1, 60)},
            optional={
                "trials": st.integers(16, 30),
                "worker_hours": st.floats(0.01, 0.2),
                "money": st.floats(0.1, 2.0),
                "time": st.floats(1, 400),
            },
        ),
        st.integers(1, 2),
        st.just("auto"),
        st.integers(0, 99),
    ),
    st.builds(random_curves, st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 0.5])),
    st.integers(1, 12),
)
def test_all_of_it_holds_where_the_model_decides(experiment, curves, gangs):
    told, epochs, watched = run(experiment, curves, gangs)
    assert watched is None, "no other scheduler was made"
    runs_on_gangs(told, gangs)
    counted_from_one(told, epochs, experiment.scheduler.max_epochs)
    silent_after_the_end(told)
    within_budget(told, epochs, experiment.budget, gangs)
    at, paused = {}, set()
    for event in told:
        if isinstance(event, EpochReported):
            at[event.trial_id] = event.epoch
        elif isinstance(event, TrialEnded) and event.state == "paused":
            paused.add(event.trial_id)
        elif isinstance(event, TrialStarted):
            assert (event.trial_id in paused) == (event.trial_id in at), "goes on only from where it waits"
            paused.discard(event.trial_id)
            assert event.why
    assert repr(run(experiment, curves, gangs)[:2]) == repr((told, epochs))


class Rungs(RuleBasedStateMachine):
    """A promoting scheduler under any order of events, beside a plain account of who is where."""

    epochs, factor = (1, 2, 4), 3

    def __init__(self):
        super().__init__()
        self.asha = PromotingAsha(rungs=self.epochs, reduction_factor=self.factor)
        self.reports = []
        self.running, self.paused, self.gone = {}, {}, set()
        self.members = {epoch: [] for epoch in self.epochs}
        self.promoted = {epoch: [] for epoch in self.epochs}
        self.count = 0

    @precondition(lambda self: len(self.running) < 6)
    @rule()
    def start(self):
        self.running[f"t{self.count}"] = 0
        self.count += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data(), loss=st.one_of(st.integers(0, 5).map(float), st.just(math.nan)))
    def report(self, data, loss):
        trial_id = data.draw(st.sampled_from(sorted(self.running)))
        epoch = self.running[trial_id] + 1
        self.reports.append((trial_id, epoch, Standing((loss,))))
        decision = self.asha.report(*self.reports[-1])
        assert decision.rung == (self.epochs.index(epoch) if epoch in self.epochs else None)
        if epoch not in self.epochs:
            assert decision.action == "continue"
        else:
            assert decision.action == ("stop" if math.isnan(loss) else "pause")
        self.running[trial_id] = epoch
        if decision.leaves:
            del self.running[trial_id]
            if decision.action == "pause":
                self.paused[trial_id] = epoch
                self.members[epoch].append((loss, len(self.members[epoch]), trial_id))
        elif epoch > self.epochs[-1] + 2:
            del self.running[trial_id]

    @precondition(lambda self: self.reports)
    @rule(data=st.data())
    def report_again(self, data):
        """A restarted worker repeats its last epoch."""
        last = {trial_id: (trial_id, epoch, standing) for trial_id, epoch, standing in self.reports}
        self.asha.report(*data.draw(st.sampled_from([last[name] for name in sorted(last)])))

    @precondition(lambda self: self.paused or self.running)
    @rule(data=st.data())
    def drop(self, data):
        trial_id = data.draw(st.sampled_from(sorted({**self.paused, **self.running})))
        self.asha.drop(trial_id)
        self.gone.add(trial_id)
        self.paused.pop(trial_id, None)
        self.running.pop(trial_id, None)

    @rule()
    def promote(self):
        trial_id, _ = self.asha.next_promotion() or (None, "")
        expected = None
        for epoch in reversed(self.epochs):
            waiting = [
                member for member in sorted(self.members[epoch]) if self.paused.get(member[2]) == epoch
            ]
            if waiting and len(self.promoted[epoch]) < len(self.members[epoch]) // self.factor:
                expected = waiting[0][2]
                break
        assert trial_id == expected
        if trial_id is not None:
            epoch = self.paused.pop(trial_id)
            self.promoted[epoch].append(trial_id)
            self.running[trial_id] = epoch

    @invariant()
    def replaying_knows_who_waits(self):
        """Apart from promotions of which no epoch is known yet."""
        if self.count > 12:  # often enough; it costs the square
            return
        replayed = PromotingAsha(rungs=self.epochs, reduction_factor=self.factor)
        for report in self.reports:
            replayed.report(*report)
        for trial_id in sorted(self.gone):
            replayed.drop(trial_id)
        begun = {name for name, epoch in self.running.items() if epoch in self.epochs}
        for trial_id, _ in iter(replayed.next_promotion, None):
            assert trial_id in self.paused or trial_id in begun


Rungs.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestRungs = Rungs.TestCase
