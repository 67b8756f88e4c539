"""Population based training: who is stopped, who is forked from whom, and what becomes of the forks."""

import json
import math
import os
from collections import Counter
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import AT, describe
from test_search import Recorder, as_tables, drive, epochs_of, open_search, outcome, states

from search_spaces import Choice, Float, Int, Space
from trainables.order import Failure
from trainables.seeding import seed_everything  # slow to import, and not a test's fault
from trainables.trial import SettingsError, TrialContext, TrialDiverged, resolve_trainable
from tuning.cli import main
from tuning.events import EpochReported, TrialEnded, TrialStarted
from tuning.experiment import Experiment, ExperimentError
from tuning.forecast import Forecast
from tuning.plan import expected_epochs
from tuning.search.pbt import DRAWS, FACTORS, explore
from tuning.search.search import Search
from tuning.search.strategies import open_strategy
from tuning.simulation.scheduler_comparison import compare
from tuning.simulation.simulator import simulate
from tuning.simulation.trainable_curves import TrainableCurves
from tuning.tables.checkpoints import CheckpointFolders, CheckpointKeeper
from tuning.tables.consistency import check_tables
from tuning.tables.ledger import Ledger
from tuning.tables.results import load
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import write_description

FOUR = {
    "search": {"algorithm": "pbt", "population": 4, "interval": 2},
    "scheduler": {"max_epochs": 6},
}


@pytest.fixture(autouse=True)
def unsafe_but_fast(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def forks(recorder):
    """{fork: (parent, parent's epochs)}, in the order of their starts."""
    return {e.trial_id: (e.parent, e.parent_epoch) for e in recorder.of(TrialStarted) if e.parent is not None}


def scored(scores):
    """A curve that stands still: the score of each trial by its number."""
    return lambda run, epoch: {"score": scores[int(run.trial_id)], "worker_s": 60.0, "seconds": 60.0}


# One population, worked by hand.


@pytest.mark.parametrize("gangs", [1, 3, 9])
def test_at_each_rung_a_fork_of_the_best_takes_the_place_of_the_worst(tmp_path, gangs):
    """Of four, 1 is the best after epoch 2 and 0 the worst; 4, a fork of 1, is the best after epoch 4."""
    recorder = Recorder()
    search = open_search(tmp_path, recorder, gangs=gangs, budget={"trials": 6}, **FOUR)
    drive(search, gangs=gangs, curve=scored([1, 4, 2, 3, 5, 0]))
    assert forks(recorder) == {"00004": ("00001", 2), "00005": ("00004", 4)}
    assert states(recorder) == {
        "00000": "stopped",
        "00002": "stopped",
        **dict.fromkeys(["00001", "00003", "00004", "00005"], "completed"),
    }
    assert epochs_of(recorder) == {
        "00000": [1, 2],
        "00001": [1, 2, 3, 4, 5, 6],
        "00002": [1, 2, 3, 4],
        "00003": [1, 2, 3, 4, 5, 6],
        "00004": [3, 4, 5, 6],
        "00005": [5, 6],
    }
    why = {event.trial_id: event.reason for event in recorder.of(TrialEnded) if event.state == "stopped"}
    assert why == {"00000": "rung 0: place 4 of 4", "00002": "rung 1: place 4 of 4"}


def test_a_trial_has_one_configuration_and_its_fork_a_neighbouring_one(tmp_path):
    recorder = Recorder()
    drive(open_search(tmp_path, recorder, budget={"trials": 6}, **FOUR), curve=scored([1, 4, 2, 3, 5, 0]))
    told = {}
    for event in recorder.of(TrialStarted):
        assert told.setdefault(event.trial_id, event.config) == event.config
    rate, parents = told["00004"]["learning_rate"], told["00001"]["learning_rate"]
    assert rate != parents and 1e-4 <= rate <= 1e-1


def test_forks_begin_before_their_parents_go_on(tmp_path):
    """The checkpoint that they start from is the parent's last as long as it waits."""
    recorder = Recorder()
    search = open_search(tmp_path, recorder, gangs=2, budget={"trials": 6}, **FOUR)
    drive(search, gangs=2, curve=scored([1, 4, 2, 3, 5, 0]))
    for fork, (parent, epoch) in forks(recorder).items():
        kinds = [(type(e), e.trial_id, getattr(e, "epoch", None)) for e in recorder.events]
        assert kinds.index((TrialStarted, fork, None)) < kinds.index((EpochReported, parent, epoch + 1))


def test_who_failed_counts_as_last_and_is_replaced_too(tmp_path):
    def curve(run, epoch):
        return Failure(state="diverged", reason="told to") if run.trial_id == "00003" else good(run, epoch)

    recorder, good = Recorder(), scored([1, 4, 2, None, 3, 5])
    drive(open_search(tmp_path, recorder, budget={"trials": 5}, **FOUR), curve=curve)
    assert states(recorder)["00003"] == "diverged"
    assert forks(recorder) == {"00004": ("00001", 2)}, "three are left and none of them has to go"
    assert epochs_of(recorder)["00000"][-1] == 4, "it is the last of four at the next rung"


def test_who_has_no_figure_at_the_first_rung_does_not_end_the_drawing(tmp_path):
    """It is over like one that failed: the others are drawn, not forks of the first."""
    recorder = Recorder()
    search = open_search(tmp_path, recorder, budget={"trials": 5}, **FOUR)
    drive(search, curve=scored([1, math.nan, 2, 4, 3]))
    assert states(recorder)["00001"] == "diverged"
    assert forks(recorder) == {"00004": ("00003", 2)}


def test_without_a_budget_for_forks_the_rest_is_trained_to_its_end(tmp_path):
    recorder = Recorder()
    drive(open_search(tmp_path, recorder, budget={"trials": 4}, **FOUR), curve=scored([1, 4, 2, 3]))
    assert forks(recorder) == {}
    assert {t: s for t, s in states(recorder).items() if s == "completed"}.keys() >= {"00001"}


def test_the_next_population_begins_where_the_last_has_passed_its_rungs(tmp_path):
    recorder = Recorder()
    drive(
        open_search(tmp_path, recorder, budget={"trials": 10}, **FOUR), curve=scored([1, 4, 2, 3, 5, 0] * 2)
    )
    assert [trial for trial, done in epochs_of(recorder).items() if done[0] == 1] == [
        f"{number:05d}" for number in (0, 1, 2, 3, 6, 7, 8, 9)
    ]


def test_the_leader_waits_for_the_others_though_a_gang_is_free(tmp_path):
    search = open_search(tmp_path, Recorder(), gangs=4, budget={"trials": 6}, **FOUR)
    runs = [search.next_run() for _ in range(4)]
    report = scored([1, 4, 2, 3])
    from test_search import report as reported

    for run in runs[:3]:
        for epoch in (1, 2):
            decision = search.report(run.trial_id, reported(run, epoch, **report(run, epoch)))
        assert decision.action == "pause"
    assert search.next_run() is None and not search.finished


# What holds whatever the figures are.


def curves(seed, wild):
    def figures(run, epoch):
        rng = np.random.default_rng([seed, int(run.trial_id), epoch])
        if rng.random() < wild / 3:
            return Failure(state="diverged", reason="by chance")
        score = math.nan if rng.random() < wild else float(rng.integers(6))
        return {"score": score, "worker_s": 1.0, "seconds": float(rng.integers(1, 9))}

    return figures


@settings(max_examples=40, deadline=None)
@given(
    population=st.integers(2, 9),
    interval=st.integers(1, 3),
    stretches=st.integers(2, 4),
    gangs=st.integers(1, 6),
    seed=st.integers(0, 2**20),
    wild=st.sampled_from([0.0, 0.0, 0.1, 0.3]),
)
def test_forks_are_of_the_first_quarter_and_the_population_keeps_its_size(
    population, interval, stretches, gangs, seed, wild
):
    described = describe(
        "unused",
        search={"algorithm": "pbt", "population": population, "interval": interval, "seed": seed},
        scheduler={"max_epochs": interval * stretches},
        budget={"epochs": population * interval * stretches * 2},
    )
    recorder, (searcher, scheduler) = Recorder(), open_strategy(described, path=None)
    from tuning.search.budget import BudgetGuard

    budget = BudgetGuard(described.budget, gangs=gangs, clock=lambda: 0.0)
    search = Search(described, searcher=searcher, scheduler=scheduler, budget=budget, listeners=[recorder])
    drive(search, gangs=gangs, curve=curves(seed, wild))

    rungs, share = described.rungs(), described.search.replaced()
    assert share == min(math.ceil(population / 4), population // 2)
    levels = len(rungs) + 1
    of_population, born = {}, Counter()
    for number, trial in enumerate(searcher.observed):
        of_population.setdefault(trial.generation // levels, []).append((number, trial))
        born[trial.generation] += 1
        assert described.space.contains(trial.config)
        if trial.parent is None:
            assert trial.generation % levels == 0
            continue
        rung = rungs[trial.generation % levels - 1]
        assert trial.parent_epoch == rung
        rivals = [
            other.results[rung]
            for place, other in of_population[trial.generation // levels]
            if place < number and rung in other.results and other.results[rung].finite
        ]
        own = searcher.observed[int(trial.parent)].results[rung]
        better = sum(other.key < own.key for other in rivals)
        assert better < share, "only of the first quarter"
    assert max(born.values(), default=0) <= population
    for trials in of_population.values():
        for rung in rungs:
            came = [trial for _, trial in trials if rung in trial.results]
            assert len(came) <= population, "never more than the population trains at once"
    for trial_id, done in epochs_of(recorder).items():
        start = searcher.observed[int(trial_id)].parent_epoch
        assert done == list(range(start + 1, start + 1 + len(done)))


def test_equal_inputs_give_equal_decisions_whatever_the_order_of_arrival(tmp_path):
    told = []
    for gangs in (1, 2, 5):
        recorder, folder = Recorder(), tmp_path / f"{gangs}"
        folder.mkdir()
        search = open_search(folder, recorder, gangs=gangs, budget={"trials": 6}, **FOUR)
        drive(search, gangs=gangs, curve=curves(3, 0.1))
        told.append((forks(recorder), {e.trial_id: e.config for e in recorder.of(TrialStarted)}))
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("unwritten", [0, 1, 4, 9])
@pytest.mark.parametrize("everywhere", [True, False], ids=["figures everywhere", "figures at rungs"])
def test_a_killed_driver_is_followed_by_one_that_decides_alike(tmp_path, everywhere, unwritten):
    """`unwritten`: events that the tables, which lag behind the study, had not been told on disk."""

    def curve(run, epoch):
        figures = curves(5, 0.0)(run, epoch)
        return figures if everywhere or epoch % 2 == 0 else {"worker_s": 1.0, "seconds": 1.0}

    budget = {"trials": 9}
    whole = Recorder()
    drive(open_search(tmp_path, whole, budget=budget, **FOUR), curve=curve)
    expected_states, expected_epochs = outcome(whole.events)
    for limit in range(2, len(whole.of(EpochReported))):
        folder = tmp_path / f"{limit}"
        folder.mkdir()
        before, after = Recorder(), Recorder()
        drive(open_search(folder, before, budget=budget, **FOUR), limit, curve=curve)
        known = before.events[: len(before.events) - unwritten]
        resumed = open_search(folder, after, budget=budget, **FOUR)
        resumed.replay(*as_tables(known))
        drive(resumed, gangs=1 + limit % 3, curve=curve)
        found_states, found_epochs = outcome(known + after.events)
        assert found_states == expected_states, limit
        assert found_epochs == expected_epochs, limit
        assert forks(whole).items() >= forks(after).items(), limit


def test_a_fork_waits_for_a_parent_that_the_tables_know_to_be_behind(tmp_path):
    """Killed just after a fork was suggested, with tables that lack the parent's last epoch."""
    before, after, curve = Recorder(), Recorder(), scored([1, 4, 2, 3, 5, 0])
    search = open_search(tmp_path, before, budget={"trials": 6}, **FOUR)
    drive(search, 8, curve=curve)
    assert search.next_run().trial_id == "00004"
    begun = [e for e in before.events if not isinstance(e, TrialEnded)]
    without = [e for e in begun if not (isinstance(e, EpochReported) and e.epoch == 2)]
    resumed = open_search(tmp_path, after, gangs=9, budget={"trials": 6}, **FOUR)
    resumed.replay(*as_tables(without))
    first = [resumed.next_run() for _ in range(5)]
    assert [run.trial_id for run in first if run] == ["00000", "00001", "00002", "00003"]


# Which neighbours a configuration has.

SPACE = Space(
    {
        "rate": Float(1e-4, 1.0, log=True),
        "dropout": Float(0.0, 0.5),
        "width": Int(8, 64, step=8),
        "layers": Int(1, 4),
        "factor": Float(0.1, 1.0, step=0.1),
        "method": Choice(["none", "low", "high"]),
        "ratio": Float(0.1, 0.9, when={"method": ["low"]}),
        "flag": Choice([True, False, 1.5]),
    }
)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**30))
def test_what_is_explored_is_in_the_space_and_near(seed):
    rng = np.random.default_rng(seed)
    config = SPACE.at({name: rng.random() for name in SPACE})
    found = explore(SPACE, config, np.random.default_rng(seed))
    assert SPACE.contains(found), found
    assert all(type(found[name]) is type(config[name]) for name in ("rate", "dropout", "width", "layers"))
    assert found == explore(SPACE, config, np.random.default_rng(seed))


def test_numbers_are_multiplied_and_clipped_and_choices_go_to_their_neighbour():
    config = {"rate": 0.01, "dropout": 0.0, "width": 32, "layers": 1, "factor": 0.5, "method": "low"}
    config |= {"ratio": 0.5, "flag": True}
    seen = {name: Counter() for name in SPACE}
    for seed in range(400):
        for name, value in explore(SPACE, config, np.random.default_rng(seed)).items():
            seen[name][value] += 1
    often = {name: {value for value, times in counts.items() if times > 60} for name, counts in seen.items()}
    assert often["rate"] == {0.01 * factor for factor in FACTORS}
    assert sorted(often["dropout"]) == pytest.approx([0.0, 0.1]), "a zero is left by a share of the range"
    assert often["width"] == {24, 40}
    assert often["layers"] == {1, 2}, "at least one step, and not out of the domain"
    assert often["factor"] == {0.4, 0.6}
    assert often["method"] == {"none", "high"}
    assert DRAWS > 1


# A problem on which no fixed value is best: the rate has to fall.


class Drifting:
    """Noisy gradient descent on a parabola, the expected loss in closed form: a large rate is best as long
    as the loss is large, and a rate of loss / (loss + 1) at any time."""

    mutable = frozenset({"rate"})

    def setup(self, config, context):
        self.rate, self.loss = config["rate"], 100.0

    def train_epoch(self):
        self.loss = (1 - self.rate) ** 2 * self.loss + self.rate**2
        if self.loss > 1e6:
            raise TrialDiverged("never")
        return {}

    def evaluate(self, full):
        return {"loss": self.loss}

    def save(self, folder):
        (folder / "loss").write_text(json.dumps(self.loss))

    def load(self, folder):
        self.loss = json.loads((folder / "loss").read_text())

    def close(self):
        pass


def drifting(tmp_path, **changes):
    tree = {
        "name": "drifting",
        "trainable": "test_pbt:Drifting",
        "search_space": {"rate": {"float": [1e-3, 1.0], "log": True}},
        "objectives": [{"metric": "loss", "mode": "min"}],
        "search": {"algorithm": "pbt", "population": 12, "interval": 1},
        "scheduler": {"max_epochs": 24},
        "budget": {"epochs": 12 * 24},
        "storage": str(tmp_path),
    }
    return Experiment.from_dict(tree | changes)


def simulated(experiment, gangs=4):
    """Tables and checkpoint-free results of a run in virtual time."""
    write_description(experiment, command=["captune"])
    writer, own = ResultsWriter(experiment), TrainableCurves(experiment)
    for _ in simulate(experiment, own, gangs=gangs, listeners=[own, writer]):
        pass
    own.close()
    writer.close()
    return load(experiment.folder)


def best_fixed(epochs):
    """The least loss that any rate reaches which stays as it is."""
    losses = []
    for rate in np.geomspace(1e-3, 1.0, 2000):
        loss = 100.0
        for _ in range(epochs):
            loss = (1 - rate) ** 2 * loss + rate**2
        losses.append(loss)
    return min(losses)


def trained_again(experiment, schedule, tmp_path):
    """What comes out of training a schedule by hand: each stretch goes on from the last one's checkpoint."""
    previous = None
    for row in schedule.to_dict("records"):
        trial = resolve_trainable(experiment.trainable)()
        config = {n.removeprefix("config/"): v for n, v in row.items() if n.startswith("config/")}
        last = experiment.scheduler.max_epochs
        context = TrialContext(
            trial_id=row["trial_id"], seed=row["seed"], max_epochs=last, data=experiment.data
        )
        trial.setup({**experiment.model, **config}, context)
        if previous is not None:
            trial.load(previous)
        for epoch in range(row["from_epoch"], row["to_epoch"] + 1):
            seed_everything(row["seed"], epoch, 0)
            trial.train_epoch()
        previous = tmp_path / f"after-{row['to_epoch']}"
        previous.mkdir()
        trial.save(previous)
    return trial.evaluate(full=True)


def test_a_schedule_is_found_that_beats_every_fixed_value_and_it_trains_again_to_the_same(tmp_path):
    experiment = drifting(tmp_path)
    results = simulated(experiment)
    assert not check_tables(results.trials, results.epochs)
    best = results.best()
    assert best["loss"] < 0.8 * best_fixed(24)
    schedule = results.schedule()
    assert list(schedule["from_epoch"]) == [1, *(schedule["to_epoch"][:-1] + 1)]
    assert schedule["to_epoch"].iloc[-1] == best["best_epoch"]
    assert schedule["config/rate"].iloc[-1] < 0.3 * schedule["config/rate"].iloc[0], "it falls"
    assert trained_again(experiment, schedule, tmp_path)["loss"] == best["loss"]


def test_epochs_are_counted_once_not_again_in_every_fork(tmp_path):
    results = simulated(drifting(tmp_path, budget={"epochs": 100}))
    assert len(results.epochs) == 100
    assert results.trials["epochs"].sum() > 100, "with those of the parents"


def test_the_command_simulates_it_with_its_own_trainable_only(tmp_path):
    experiment = drifting(tmp_path)
    frame = compare(experiment, gangs=[3], seeds=1)
    assert list(frame["scheduler"]) == ["auto"] and frame["best"].iloc[0] < best_fixed(24)
    with pytest.raises(ExperimentError, match="search.algorithm: 'pbt' .*--curves trainable"):
        compare(experiment, simulated(drifting(tmp_path, name="earlier")))


# Tables, checkpoints, forecast.


def told(trial, *, parent=None, parent_epoch=0, epochs=(), state=None, rate=0.01):
    """Events of a trial: its start, (epoch, score) pairs, its end."""
    yield TrialStarted(
        trial_id=trial, config={"learning_rate": rate}, at=AT, parent=parent, parent_epoch=parent_epoch
    )
    for epoch, score in epochs:
        yield EpochReported(
            trial_id=trial,
            epoch=epoch,
            attempt=1,
            metrics={"score": score, "worker_s": 2.0, "seconds": 2.0},
            checkpoint=f"checkpoints/{trial}/{epoch:04d}",
            gang="g",
            node="n",
            at=AT + timedelta(seconds=epoch),
        )
    if state:
        yield TrialEnded(trial_id=trial, state=state, reason="told to", at=AT)


def pbt(tmp_path, **changes):
    return describe(tmp_path, **{"budget": {"trials": 6}, **FOUR, **changes})


FAMILY = [
    *told("00000", epochs=[(1, 0.1), (2, 0.2), (3, 0.1), (4, 0.1)], state="stopped", rate=0.05),
    *told("00001", epochs=[(1, 0.1), (2, 0.1)], state="stopped"),
    *told("00002", parent="00000", parent_epoch=2, epochs=[(3, 0.3), (4, 0.4)], state="paused", rate=0.04),
    *told(
        "00003", parent="00002", parent_epoch=4, epochs=[(5, 0.5), (6, 0.45)], state="completed", rate=0.03
    ),
    *told("00004", parent="00003", parent_epoch=4, rate=0.02),
]


@pytest.fixture
def family(tmp_path):
    experiment = pbt(tmp_path)
    write_description(experiment, command=["captune"])
    writer = ResultsWriter(experiment)
    for event in FAMILY:
        writer.handle(event)
    writer.close()
    return load(experiment.folder)


def test_tables_tell_the_parents_and_the_chain_of_stretches(family):
    trials = family.trials.set_index("trial_id")
    assert trials["parent"].dropna().to_dict() == {"00002": "00000", "00003": "00002", "00004": "00003"}
    assert trials["parent_epoch"].dropna().to_dict() == {"00002": 2, "00003": 4, "00004": 4}
    assert trials["epochs"].to_dict() == {"00000": 4, "00001": 2, "00002": 4, "00003": 6, "00004": 4}
    assert not check_tables(family.trials, family.epochs)
    found = family.schedule()
    assert found.to_dict("list") == {
        "from_epoch": [1, 3, 5],
        "to_epoch": [2, 4, 5],
        "trial_id": ["00000", "00002", "00003"],
        "seed": [0, 2, 3],
        "config/learning_rate": [0.05, 0.04, 0.03],
    }, "up to the best epoch, 5"
    assert list(family.schedule("00001")["trial_id"]) == ["00001"]
    assert list(family.schedule("00004")["trial_id"]) == ["00000", "00002"], "no epoch of its own yet"
    with pytest.raises(ValueError, match="'00009' is not in"):
        family.schedule("00009")


def test_a_gap_between_a_fork_and_its_parent_is_noticed(family):
    epochs = family.epochs[~((family.epochs["trial_id"] == "00003") & (family.epochs["epoch"] == 5))]
    (problem,) = [p for p in check_tables(family.trials, epochs) if "its epochs are" in p]
    assert problem == "trial 00003 says 6 epochs, its epochs are [6]"


def test_a_resumed_run_continues_the_tables_of_forks(family):
    again = Ledger(family.experiment)
    again.take_up(family.folder)
    pd.testing.assert_frame_equal(again.trials_table(), family.trials)
    ordinary = load(family.folder).trials.drop(columns=["parent", "parent_epoch"])  # of an earlier version
    from tuning.tables.lineage import starts_after, without_forks

    assert {starts_after(row) for row in ordinary.to_dict("records")} == {0}
    assert len(without_forks(ordinary)) == 5 and len(without_forks(family.trials)) == 2


def test_a_fork_has_its_parents_checkpoint_whatever_becomes_of_the_parent(tmp_path):
    experiment = pbt(tmp_path)
    writer = ResultsWriter(experiment)
    keeper = CheckpointKeeper(CheckpointFolders(experiment.folder / "checkpoints"), writer)

    def handle(events):
        for event in events:
            if isinstance(event, EpochReported):
                folder = experiment.folder / event.checkpoint
                folder.mkdir(parents=True)
                (folder / "state.json").write_text(event.checkpoint)
            writer.handle(event)
            writer.write()
            keeper.handle(event)

    def there(trial):
        return sorted(path.name for path in (experiment.folder / "checkpoints" / trial).iterdir())

    handle(told("00000", epochs=[(1, 0.1), (2, 0.2)], state="paused"))
    handle(told("00001", parent="00000", parent_epoch=2))
    assert there("00001") == ["0002"]
    start = experiment.folder / "checkpoints" / "00001" / "0002" / "state.json"
    assert start.stat().st_ino == (experiment.folder / "checkpoints/00000/0002/state.json").stat().st_ino
    handle(told("00000", epochs=[(3, 0.3), (4, 0.4)], state="completed"))
    assert there("00000") == ["0004"]
    assert start.read_text() == "checkpoints/00000/0002"
    handle(told("00001", parent="00000", parent_epoch=2))  # taken up again
    assert there("00001") == ["0002"]
    handle(list(told("00001", parent="00000", parent_epoch=2, epochs=[(3, 0.3)]))[1:])
    assert there("00001") == ["0003"], "it has one of its own now"
    handle(told("00002", parent="00000", parent_epoch=1))
    assert not (experiment.folder / "checkpoints" / "00002").exists(), "what is gone cannot be handed on"


def test_a_disk_without_hard_links_gets_copies(tmp_path, monkeypatch):

    def unsupported(source, target):
        raise OSError("not here")

    (tmp_path / "a" / "0002").mkdir(parents=True)
    (tmp_path / "a" / "0002" / "state").write_text("x")
    monkeypatch.setattr(os, "link", unsupported)
    CheckpointFolders(tmp_path).hand_on("a", 2, "b")
    assert (tmp_path / "b" / "0002" / "state").read_text() == "x"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["0002"]


def test_epochs_to_come_are_those_that_are_trained(tmp_path):
    experiment = pbt(tmp_path)
    assert expected_epochs(experiment, 6) == 4 * 6, "six trials take four places of six epochs"
    ledger = Ledger(experiment)
    now = iter(range(0, 10_000, 2))
    forecast = Forecast(experiment, ledger, clock=lambda: next(now))
    for event in FAMILY[:13]:  # 4 + 2 + 2 epochs
        ledger.apply(event)
        forecast.handle(event)
    assert sum(len(done) for done in ledger.epochs.values()) == 8
    assert forecast._epochs_to_come() == 24 - 8


def test_the_commands_show_the_schedule(family):
    def said(*arguments):
        result = CliRunner().invoke(main, [*arguments, "--storage", str(family.folder.parent)])
        assert result.exit_code == 0, result.output
        return result.output

    best = said("best", family.name)
    assert "its weights were trained under" in best
    assert [line.split() for line in best.splitlines()][-3:] == [
        ["1", "2", "00000", "0.05"],
        ["3", "4", "00002", "0.04"],
        ["5", "5", "00003", "0.03"],
    ]
    table = said("results", family.name, "schedule", "--format", "csv").splitlines()
    assert table[0] == "from_epoch,to_epoch,trial_id,seed,config/learning_rate"
    assert table[1] == "1,2,00000,0,0.05" and len(table) == 4
    assert "parent" in said("results", family.name).splitlines()[0]


# What an experiment may say.


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"search": {"population": 8}}, "search.population: got 8: belongs to `search.algorithm: pbt`"),
        ({"search": {"interval": 2, "algorithm": "tpe"}}, "search.interval: got 2: .* that is 'tpe'"),
        ({"search": {"algorithm": "pbt", "population": 1}}, "search.population: got 1: should be greater"),
        ({"scheduler": {"algorithm": "asha"}}, "scheduler.algorithm: got 'asha': .* itself decides"),
        ({"scheduler": {"min_epochs": 2}}, "scheduler.min_epochs: got 2: "),
        ({"scheduler": {"reduction_factor": 2}}, "scheduler.reduction_factor: got 2: "),
        ({"scheduler": {"max_epochs": 2}}, "scheduler.max_epochs: got 2: .* needs at least 3"),
        (
            {"search": FOUR["search"] | {"start": [{"learning_rate": 0.01}] * 5}},
            "search.start: got 5 of them: .* has 4 trials",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, problem):
    with pytest.raises(ExperimentError, match=problem):
        pbt(tmp_path, **changes)


def test_a_population_has_defaults_and_rungs_of_its_own(tmp_path):
    experiment = pbt(tmp_path, search={"algorithm": "pbt"}, scheduler={"max_epochs": 20})
    assert experiment.rungs() == tuple(range(2, 20, 2))
    assert experiment.full_epochs() == {*range(2, 20, 2), 20}
    assert (experiment.search.places(), experiment.search.replaced()) == (8, 2)
    assert Experiment.from_dict(experiment.to_dict()) == experiment


def test_start_configurations_are_in_the_first_population(tmp_path):
    recorder = Recorder()
    changes = FOUR | {"search": FOUR["search"] | {"start": [{"learning_rate": 0.02}]}}
    drive(open_search(tmp_path, recorder, budget={"trials": 6}, **changes), curve=scored([9, 4, 2, 3, 5, 0]))
    assert recorder.events[0].config == {"learning_rate": 0.02}
    assert forks(recorder)["00004"] == ("00000", 2)


CAPTIONING = {
    "name": "fork",
    "trainable": "captioning",
    "data": {"format": "shapes", "size": 20, "image_size": 16},
    "objectives": [{"metric": "val_loss", "mode": "min"}],
    "budget": {"trials": 4},
    "search": {"algorithm": "pbt"},
}


def test_only_what_may_change_in_mid_training_is_searched(tmp_path):
    may = {"learning_rate": {"float": [1e-4, 1e-2], "log": True}, "dropout": {"float": [0.0, 0.5]}}
    Experiment.from_dict(CAPTIONING | {"search_space": may}).check_trainable()
    width = {"decoder_width": {"choice": [16, 32]}}
    shapes = Experiment.from_dict(CAPTIONING | {"search_space": may | width})
    with pytest.raises(ExperimentError, match="search_space.decoder_width: may not change.*augment, batch_"):
        shapes.check_trainable()
    with pytest.raises(SettingsError, match="'mine' names none that may"):
        from trainables.trial import refuse_immutable

        refuse_immutable(["x"], frozenset(), "mine")


def test_the_shipped_trainables_go_on_with_other_values_of_what_they_call_mutable(tmp_path):
    """Curves and the example: every name is a setting, and a checkpoint loads under another value."""
    from examples.polynomial import Polynomial
    from trainables.curves import Curves, CurveSettings

    assert Curves.mutable <= set(CurveSettings.model_fields)
    context = TrialContext(trial_id="t", max_epochs=9, data={"points": 60, "noise": 0.1})
    config = {"degree": 3, "learning_rate": 0.1, "ridge": 1e-3, "batch_size": 10}
    first = Polynomial()
    first.setup(config, context)
    first.train_epoch()
    first.save(tmp_path)
    for name, value in {"learning_rate": 0.2, "ridge": 0.1, "batch_size": 5}.items():
        assert name in Polynomial.mutable
        second = Polynomial()
        second.setup({**config, name: value}, context)
        second.load(tmp_path)
        assert second.evaluate(True) == first.evaluate(True)
        second.train_epoch()
        assert np.isfinite(second.evaluate(True)["val_loss"])
    assert "degree" not in Polynomial.mutable


# Whole runs on a real Ray.


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_forks_stops_and_leaves_a_schedule_that_trains_again_to_the_same(cluster, tmp_path):
    from tuning import run

    experiment = Experiment.from_dict(
        {
            "name": "wave",
            "trainable": "examples.polynomial:Polynomial",
            "data": {"points": 100, "noise": 0.2},
            "model": {"degree": 8, "batch_size": 10},
            "search_space": {
                "learning_rate": {"float": [1e-3, 0.5], "log": True},
                "ridge": {"float": [1e-6, 1e-1], "log": True},
            },
            "objectives": [{"metric": "val_loss", "mode": "min"}],
            "search": {"algorithm": "pbt", "population": 4, "interval": 2},
            "scheduler": {"max_epochs": 8},
            "budget": {"trials": 7},
            "storage": str(tmp_path),
        }
    )
    experiment.check_trainable()
    results = run(experiment)
    trials = results.trials.set_index("trial_id")
    assert not check_tables(results.trials, results.epochs)
    assert trials["state"].value_counts().to_dict() == {"completed": 4, "stopped": 3}, trials["reason"]
    assert trials["parent_epoch"].dropna().tolist() == [2, 4, 6]
    assert len(results.epochs) == 4 * 8, "four places, eight epochs each"
    for fork, row in trials[trials["parent"].notna()].iterrows():
        kept = {path.name for path in (results.folder / "checkpoints" / fork).iterdir()}
        assert kept == {f"{row['best_epoch']:04d}"}
    youngest = trials.index[-1]
    schedule = results.schedule(youngest)
    assert len(schedule) >= 2
    assert trained_again(experiment, schedule, tmp_path)["val_loss"] == trials["val_loss"][youngest]
    assert (results.folder / "best").is_dir()


def test_yaml_of_a_population_is_read(tmp_path):
    path = tmp_path / "experiment.yaml"
    tree = {
        "name": "curves",
        "trainable": "curves",
        "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
        "objectives": [{"metric": "score", "mode": "max"}],
        "search": {"algorithm": "pbt", "population": 6, "interval": 3},
        "budget": {"epochs": 60},
    }
    path.write_text(yaml.safe_dump(tree))
    checked = CliRunner().invoke(main, ["check", str(path)])
    assert checked.exit_code == 0, checked.output
    assert "a population of 6" in checked.output and "after epoch 3, 6: the last 2 trials" in checked.output
