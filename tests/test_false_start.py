"""A run that goes wrong from its very start is given up: on all gangs, after a resume, never too soon."""

import numpy as np
import pytest
from recorded import describe

from trainables.order import Failure, Report
from tuning.events import TrialEnded
from tuning.resuming import history
from tuning.runner import GivenUp
from tuning.search.budget import BudgetGuard
from tuning.search.false_start import GIVEN_UP_AFTER
from tuning.search.search import Search
from tuning.search.strategies import open_strategy
from tuning.simulation.simulator import simulate
from tuning.tables.consistency import check_tables
from tuning.tables.results import load
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import write_description

ENDLESS = {"worker_hours": 1e6}
WRONG = Failure(state="failed", reason="no such file: words.txt")


class Ends(dict):
    """State by trial_id."""

    def handle(self, event):
        if isinstance(event, TrialEnded):
            self[event.trial_id] = event.state

    def tick(self):
        pass


def ends(tmp_path, curves, gangs=1, **changes):
    ended = Ends()
    described = describe(tmp_path, **({"budget": ENDLESS} | changes))
    list(simulate(described, curves, gangs=gangs, listeners=[ended]))
    return ended


def first_wrong(count, then):
    """The first trials fail at once, the others do what `then` says."""
    return lambda trial_id, config, epoch: WRONG if int(trial_id) < count else then(epoch)


@pytest.mark.parametrize("gangs", [1, 3, 16])
@pytest.mark.parametrize("epoch", [1, 2, 9])
@pytest.mark.parametrize("scheduler", ["asha", "asha_stopping", "none", "auto"])
def test_where_every_trial_goes_wrong_no_more_start_than_speak_for_it(tmp_path, gangs, epoch, scheduler):
    state = {1: "failed", 2: "diverged", 9: "out_of_memory"}[epoch]

    def curves(trial_id, config, now):
        return Failure(state=state, reason="always") if now == epoch else {"loss": 1.0}

    scheduler = {"algorithm": scheduler, "min_epochs": 9, "max_epochs": 9}  # no objective before the end
    ended = ends(tmp_path, curves, gangs, scheduler=scheduler)
    assert set(ended.values()) == {state}
    assert GIVEN_UP_AFTER <= len(ended) < GIVEN_UP_AFTER + gangs


def test_one_trial_that_comes_through_is_enough(tmp_path):
    """Nine fail, one works, then hundreds fail: the budget decides."""

    def curves(trial_id, config, epoch):
        return {"score": 0.5} if trial_id == f"{GIVEN_UP_AFTER - 1:05d}" else WRONG

    ended = ends(tmp_path, curves, budget={"trials": 200})
    assert len(ended) == 200


def test_a_trial_that_waits_at_a_rung_is_one_that_worked(tmp_path):
    """Every trial comes to epoch 1, and every promoted one fails."""

    def curves(trial_id, config, epoch):
        return WRONG if epoch > 1 else {"score": -float(trial_id)}

    ended = ends(tmp_path, curves, budget={"trials": 60})
    assert len(ended) == 60 and list(ended.values()).count("failed") > GIVEN_UP_AFTER


@pytest.mark.parametrize("gangs", [16, 64])
def test_others_that_run_are_waited_for_and_save_the_run(tmp_path, gangs):
    """Ten of the first fail at once; those beside them take longer, and work."""
    curves = first_wrong(GIVEN_UP_AFTER, then=lambda epoch: {"score": 0.1 * epoch, "seconds": 5.0})
    ended = ends(tmp_path, curves, gangs, budget={"trials": 100}, scheduler={"algorithm": "none"})
    assert list(ended.values()).count("completed") == 100 - GIVEN_UP_AFTER


def test_a_trial_on_its_way_is_a_sign_of_life_before_its_first_result(tmp_path):
    """Trial 10 trains far beyond where the others fail: no gang stands idle until it has an objective."""
    begun = {}

    def curves(trial_id, config, epoch):
        begun.setdefault(trial_id, len(begun))
        if trial_id == f"{GIVEN_UP_AFTER:05d}":
            if epoch == 50:
                assert len(begun) > 2 * GIVEN_UP_AFTER, "the other gang waited"
            return {"score": 0.1, "seconds": 1.0} if epoch == 50 else {"loss": 1.0, "seconds": 1.0}
        return WRONG

    ended = ends(
        tmp_path, curves, 2, budget={"trials": 30}, scheduler={"algorithm": "none", "max_epochs": 50}
    )
    assert len(ended) == 30


def test_a_space_half_of_which_fails_is_hardly_ever_given_up(tmp_path):
    def given_up(seed):
        chance = np.random.default_rng(seed)
        bad = chance.random(40) < 0.5
        ended = ends(
            tmp_path,
            lambda trial_id, c, e: WRONG if bad[int(trial_id)] else {"score": 0.1},
            budget={"trials": 40},
        )
        return len(ended) < 40

    assert not any(given_up(seed) for seed in range(100))


# Through tables, and after a resume.


class Interrupted(Exception):
    """The driver was killed."""


def run(described, curve, limit=99, gangs=1):
    """A run with tables but without Ray; returns why it was given up."""
    described.folder.mkdir(parents=True, exist_ok=True)
    write_description(described, command=["captune"])
    writer = ResultsWriter(described)
    searcher, scheduler = open_strategy(described, path=described.folder / "study.journal")
    budget = BudgetGuard(described.budget, gangs=gangs)
    search = Search(described, searcher=searcher, scheduler=scheduler, budget=budget, listeners=[writer])
    search.replay(*history(described, writer.ledger))
    running = []
    for _ in range(limit):
        while len(running) < gangs and (next_run := search.next_run()) is not None:
            running.append(next_run)
        if not running:
            assert search.finished
            break
        now = running.pop(0)
        figures = curve(now)
        if isinstance(figures, Failure):
            search.fail(now.trial_id, figures)
        else:
            report = Report(epoch=now.epoch + 1, metrics=figures, attempt=1, node="here")
            assert search.report(now.trial_id, report).leaves, "every trial leaves after an epoch"
    writer.close()
    return search.given_up


def always_wrong(run):
    return Failure(state="failed", reason=f"{run.trial_id} found no words.txt")


@pytest.mark.parametrize("gangs", [1, 4])
@pytest.mark.parametrize("killed_after", [0, 3, GIVEN_UP_AFTER - 1])
def test_failures_before_a_kill_count(tmp_path, killed_after, gangs):
    described = describe(tmp_path, budget=ENDLESS)
    assert run(described, always_wrong, killed_after, gangs) == ""
    why = run(described, always_wrong, gangs=gangs)
    found = load(described.folder)
    assert not check_tables(found.trials, found.epochs)
    assert set(found.trials["state"]) == {"failed"}
    assert GIVEN_UP_AFTER <= len(found.trials) < GIVEN_UP_AFTER + gangs
    last = found.trials["trial_id"].max()
    assert why == (
        f"all of the first {len(found.trials)} trials went wrong; the last, {last}: {last} found no words.txt"
    )


def test_a_run_that_was_given_up_tries_one_trial_more_at_each_resume(tmp_path):
    described = describe(tmp_path, budget=ENDLESS)
    for expected in (GIVEN_UP_AFTER, GIVEN_UP_AFTER + 1, GIVEN_UP_AFTER + 2):
        assert f"first {expected} trials" in run(described, always_wrong)
        assert len(load(described.folder).trials) == expected


def test_a_run_that_was_given_up_goes_on_where_the_cause_was_removed(tmp_path):
    described = describe(tmp_path, budget={"trials": 30})
    assert run(described, always_wrong)
    mended = describe(tmp_path, budget={"trials": 30}, scheduler={"min_epochs": 1, "max_epochs": 9})
    assert run(mended, lambda run: {"score": -float(run.trial_id)} if run.epoch < 1 else WRONG) == ""
    assert len(load(described.folder).trials) == 30


def test_a_trial_that_worked_in_an_earlier_run_counts_after_a_resume(tmp_path):
    described = describe(tmp_path, budget={"trials": 40})
    assert run(described, lambda run: {"score": 0.5}, limit=1) == ""
    assert run(described, always_wrong) == ""
    assert len(load(described.folder).trials) == 40


def test_where_the_budget_is_spent_nothing_is_given_up(tmp_path):
    described = describe(tmp_path, budget={"trials": GIVEN_UP_AFTER})
    assert run(described, always_wrong) == ""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_ray_a_run_that_fails_from_the_start_raises_and_leaves_its_tables(cluster, tmp_path):
    from tuning import run as run_on_ray

    described = describe(tmp_path, model={"fail_at_epoch": 1}, budget=ENDLESS, training={"gangs": 1})
    with pytest.raises(GivenUp, match=r"all of the first 1\d trials went wrong; .*told to fail in epoch 1"):
        run_on_ray(described)
    found = load(described.folder)
    assert not check_tables(found.trials, found.epochs)
    assert len(found.trials) < 2 * GIVEN_UP_AFTER
    with pytest.raises(GivenUp):
        run_on_ray(described, resume=True)
    assert len(load(described.folder).trials) - len(found.trials) == 1
