"""Fidelity: rank correlations as scipy has them, only where enough trials tell, and what is said of them."""

import warnings

import numpy as np
import pandas as pd
import pytest
from recorded import describe, record
from scipy.stats import spearmanr

from tuning.experiment import Objective
from tuning.tables.fidelity import agreement, in_full, in_short

CIDER, TIME = Objective(metric="cider", mode="max"), Objective(metric="latency_ms", mode="min")


def rows(epoch, cider, **more):
    """Rows of one epoch, a trial each: the n-th figure is that of the n-th trial."""
    columns = {"cider": cider, **more}
    return [
        {"trial_id": f"{n:05}", "epoch": epoch, **dict(zip(columns, each, strict=True))}
        for n, each in enumerate(zip(*columns.values(), strict=True))
    ]


def only(table):
    """Correlation and number of trials of a table that has one row."""
    ((correlation, trials),) = table[["correlation", "trials"]].to_numpy()
    return correlation, trials


def test_each_rung_is_compared_with_the_end_by_each_objective():
    generator = np.random.default_rng(0)
    cider, time = generator.normal(size=(2, 3, 12))
    trials = [
        row
        for level, epoch in enumerate((1, 3, 9))
        for row in rows(epoch, cider[level].tolist(), latency_ms=time[level].tolist())
    ]
    generator.shuffle(trials)
    table = agreement(trials, [CIDER, TIME], [1, 3, 9])
    assert table[["epoch", "objective"]].to_numpy().tolist() == [
        [1, "cider"],
        [1, "latency_ms"],
        [3, "cider"],
        [3, "latency_ms"],
    ]
    expected = [spearmanr(each[level], each[2]).statistic for level in (0, 1) for each in (cider, time)]
    assert table["correlation"].tolist() == pytest.approx(expected)
    assert table["trials"].tolist() == [12] * 4
    assert table.dtypes.astype(str).tolist() == ["Int64", "string", "Float64", "Int64"]


def test_trials_that_were_not_promoted_do_not_count():
    early, late = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.1, 0.4, 0.3, 0.5]
    trials = [*rows(3, early), *rows(9, late), *rows(4, [0.9, 0.1, 0.7, 0.2, 0.0])]  # epoch 4 is no rung
    assert only(agreement(trials, [CIDER], [3, 9])) == (pytest.approx(0.8), 5)


def test_ties_share_their_rank():
    early, late = [1.0, 1.0, 2.0, 3.0, 3.0], [1.0, 2.0, 2.0, 2.0, 4.0]
    found, _ = only(agreement([*rows(1, early), *rows(3, late)], [CIDER], [1, 3]))
    # By hand: ranks 1.5 1.5 3 4.5 4.5 and 1 3 3 3 5, Pearson's correlation of these.
    assert found == pytest.approx(6 / np.sqrt(9 * 8))
    assert found == pytest.approx(spearmanr(early, late).statistic)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_same_order_is_1_and_the_opposite_is_minus_1_whatever_is_better(mode):
    objective, early = Objective(metric="cider", mode=mode), [0.1, 0.5, 0.2, 0.9]
    for sign in (1, -1):
        trials = [*rows(1, early), *rows(3, [sign * value**2 for value in early])]
        assert only(agreement(trials, [objective], [1, 3])) == (pytest.approx(sign), 4)


@pytest.mark.parametrize("gap", [None, float("nan"), pd.NA, float("inf"), float("-inf")])
def test_figures_that_are_missing_or_not_finite_leave_their_trial_out(gap):
    early, late = [0.1, 0.2, 0.3, 0.4, gap, 0.0], [0.1, 0.2, 0.3, 0.4, 0.5, gap]
    assert only(agreement([*rows(1, early), *rows(3, late)], [CIDER], [1, 3])) == (pytest.approx(1), 4)
    without = [{"trial_id": "x", "epoch": 1}, {"trial_id": "x", "epoch": 3}]
    assert only(agreement([*rows(1, early), *rows(3, late), *without], [CIDER], [1, 3]))[1] == 4


def test_nothing_is_said_where_nothing_can_be_known():
    three, same = [0.1, 0.2, 0.3], [0.1] * 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy warns of figures that are all the same
        few = agreement([*rows(1, three), *rows(3, three)], [CIDER], [1, 3])
        equal = agreement([*rows(1, same), *rows(3, [0.1, 0.2, 0.3, 0.4, 0.5])], [CIDER], [1, 3])
        none = agreement([], [CIDER, TIME], [1, 3])
        no_rungs = agreement(rows(9, same), [CIDER], [9])
    assert [table["trials"].tolist() for table in (few, equal, none, no_rungs)] == [[3], [5], [0, 0], []]
    for table in (few, equal, none, no_rungs):
        assert table["correlation"].isna().all()
        assert (in_short(table), in_full(table)) == ("", [])


def told(*found):
    return pd.DataFrame(found, columns=["epoch", "objective", "correlation", "trials"]).astype(
        {"correlation": "Float64"}
    )


def test_what_is_found_is_said_for_each_rung_and_objective():
    table = told((1, "cider", None, 3), (3, "cider", 0.618, 9))
    assert in_full(table) == ["after epoch 3, trials rank as at the end at 0.62 (9 trials)"]
    assert in_short(table) == "epoch 3 ranks the end at 0.62"
    both = told((3, "cider", 0.618, 9), (3, "latency_ms", 0.9, 9))
    assert in_short(both) == "epoch 3 ranks the end at 0.62 by cider, epoch 3 at 0.90 by latency_ms"
    assert in_full(both)[1] == "after epoch 3, trials rank as at the end at 0.90 by latency_ms (9 trials)"


@pytest.mark.parametrize(
    ("correlation", "trials", "warns"),
    [
        (-1.0, 4, False),
        (-0.80, 5, False),
        (-0.81, 5, True),
        (-0.52, 8, False),
        (-0.54, 8, True),
        (-0.23, 16, False),
        (-0.25, 16, True),
        (0.10, 100, True),
        (0.11, 100, False),
        (-1.0, 50, True),
        (1.0, 50, False),
    ],
)
def test_a_correlation_that_is_surely_low_is_answered_with_an_advice(correlation, trials, warns):
    lines = in_full(told((1, "cider", correlation, trials), (3, "cider", 0.7, trials)))
    advice = "early epochs may mislead here: raise scheduler.min_epochs above 1"
    assert lines[2:] == ([advice] if warns else [])


def advised(truth, trials, of=1, runs=400):
    """Share of simulated runs that are advised; figures correlate at `truth`, the best of each `of` go on."""
    generator = np.random.default_rng([trials, of])
    misled = 0
    for _ in range(runs):
        early = np.sort(generator.normal(size=trials * of))[-trials:]
        late = truth * early + np.sqrt(1 - truth**2) * generator.normal(size=trials)
        found = agreement([*rows(1, early.tolist()), *rows(3, late.tolist())], [CIDER], [1, 3])
        misled += len(in_full(found)) > 1
    return misled / runs


@pytest.mark.parametrize("trials", [5, 8, 12, 16])
def test_false_alarms_are_rare_however_few_the_trials(trials):
    """At the threshold itself (Pearson's 0.313 is Spearman's 0.3) at most 2.5 % would be warned wrongly."""
    assert advised(0.313, trials) < 0.05
    assert advised(0.7, trials, of=3) < 0.03, "as the promoted third of a rung shows it"


@pytest.mark.parametrize(("truth", "trials", "least"), [(0.0, 60, 0.5), (-0.5, 16, 0.7), (-0.5, 30, 0.95)])
def test_what_misleads_is_found_with_enough_trials(truth, trials, least):
    assert advised(truth, trials) > least


def test_results_tell_it_from_their_tables(tmp_path):
    """Nine trials, four of them promoted; epoch 1 tells nothing of the end, epoch 3 all."""
    spec = describe(tmp_path, scheduler={"min_epochs": 1, "max_epochs": 9})
    last = [0.9, 0.8, 0.7, 0.6]
    promoted = [
        [early, 0.0, end, *[0.0] * 5, end] for early, end in zip([0.7, 0.8, 0.9, 0.6], last, strict=True)
    ]
    found = record(
        spec,
        [({"learning_rate": 0.01}, curve, "completed") for curve in promoted]
        + [({"learning_rate": 0.01}, [0.1], "paused")] * 5,
    )
    table = found.fidelity()
    assert table["epoch"].tolist() == [1, 3] and table["trials"].tolist() == [4, 4]
    assert table["correlation"].tolist() == pytest.approx([0.2, 1.0])
    assert set(table["objective"]) == {"score"}


def test_results_without_rungs_have_no_fidelity(tmp_path):
    spec = describe(tmp_path, scheduler={"algorithm": "none", "max_epochs": 2})
    found = record(spec, [({"learning_rate": 0.01}, [0.1, 0.2], "completed")] * 5)
    assert found.fidelity().empty
