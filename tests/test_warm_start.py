"""What a new experiment takes from earlier ones: configurations, results, and what it says about them."""

import math
import typing

import pandas as pd
import pytest
from recorded import describe, record

from tuning.experiment import Search
from tuning.experiment_file import ExperimentError
from tuning.search.earlier import keep, kept
from tuning.search.proposers import Observed
from tuning.search.ranking import Standing
from tuning.search.strategies import make_proposer, open_strategy
from tuning.search.warm_start import earlier_trials
from tuning.tables.storage import write_description

RATE = {"learning_rate": {"float": [1e-4, 1e-1], "log": True}}
WIDTH = {"width": {"choice": [32, 64]}}
METHOD = {
    "method": {"choice": [None, "low_rank"]},
    "ratio": {"float": [0.0, 1.0], "when": {"method": ["low_rank"]}},
}


def take(tmp_path, *sources, **changes):
    return earlier_trials(
        describe(tmp_path, search={"from": list(sources or ["earlier"])}, **changes), tmp_path
    )


def start(tmp_path, *sources, **changes):
    """Of sources whose figures count: the trials and the lines."""
    earlier = take(tmp_path, *sources, **changes)
    assert not earlier.first
    return earlier.trials, earlier.lines


def test_results_are_taken_at_the_epochs_that_the_new_experiment_evaluates_in_full(tmp_path):
    record(describe(tmp_path, name="earlier"), [({"learning_rate": 1e-3}, [1, 2, 3, 4, 5], "stopped")])
    (trial,), lines = start(tmp_path, scheduler={"min_epochs": 2, "max_epochs": 8, "reduction_factor": 2})
    assert trial.config == {"learning_rate": 1e-3}
    assert {epoch: each.losses for epoch, each in trial.results.items()} == {2: (-2.0,), 4: (-4.0,)}
    assert trial.over and not trial.failed
    assert lines == ["from earlier: 1 of 1 trials; learning_rate matched"]


def test_what_was_not_known_there_is_drawn_and_what_is_not_known_here_ignored(tmp_path):
    trials = [({"learning_rate": 1e-3, "weight_decay": 0.1}, [1], "stopped")] * 40
    decay = {"weight_decay": {"float": [0.0, 1.0]}}
    record(describe(tmp_path, name="earlier", search_space=RATE | decay), trials)
    observed, (line,) = start(tmp_path, search_space=RATE | WIDTH)
    assert {trial.config["width"] for trial in observed} == {32, 64}
    assert all(set(trial.config) == {"learning_rate", "width"} for trial in observed)
    assert "width drawn at random (was not searched there); weight_decay ignored" in line
    again, _ = start(tmp_path, search_space=RATE | WIDTH)
    assert observed == again, "the seed decides"


def test_what_the_earlier_experiment_fixed_is_known(tmp_path):
    record(
        describe(tmp_path, name="earlier", model={"width": 64}), [({"learning_rate": 1e-3}, [1], "stopped")]
    )
    (trial,), (line,) = start(tmp_path, search_space=RATE | WIDTH)
    assert trial.config["width"] == 64
    assert "width is 64 as it was fixed there" in line


BEST_FIRST = "its best come first, its figures do not count"


def test_where_settings_are_not_the_same_the_best_come_first_and_figures_do_not_count(tmp_path):
    def trials(*rates):  # the fourth trained longest, the second has the best figure, the last diverged
        states = [[1], [9], [5], [1, 2, 3], [9]]
        return [
            ({"learning_rate": rate}, figures, "stopped") for rate, figures in zip(rates, states, strict=True)
        ] + [({"learning_rate": 0.09}, [99], "diverged")]

    for name, scale in (("one", 1e-3), ("two", 1e-2)):
        earlier = describe(tmp_path, name=name, data={"size": 600}, model={"noise": 0.1, "depth": 2})
        record(earlier, trials(*(scale * n for n in (1, 2, 3, 4, 2))))
    changes = {"data": {"size": 1200}, "model": {"noise": 0.2}}
    earlier = take(tmp_path, "one", "two", **changes)
    assert [(each.config, each.why) for each in earlier.first] == [
        ({"learning_rate": 4e-3}, "number 1 of one"),
        ({"learning_rate": 4e-2}, "number 1 of two"),
        ({"learning_rate": 2e-3}, "number 2 of one"),
        ({"learning_rate": 2e-2}, "number 2 of two"),
    ]
    assert not earlier.trials
    told = f"6 of 6 trials; learning_rate matched; data.size, model.noise not the same there: {BEST_FIRST}"
    assert earlier.lines == [f"from {name}: {told}" for name in ("one", "two")]
    best = [each.config["learning_rate"] for each in take(tmp_path, "one", **changes).first]
    assert best == [4e-3, 2e-3, 3e-3, 1e-3], "no configuration twice"


def test_what_was_searched_there_and_is_fixed_here_makes_another_model(tmp_path):
    trials = [({"learning_rate": 1e-3, "width": 64}, [1], "stopped")]
    record(describe(tmp_path, name="earlier", search_space=RATE | WIDTH), trials)
    earlier = take(tmp_path, model={"width": 32})
    assert f"model.width not the same there: {BEST_FIRST}" in earlier.lines[0]
    assert [each.config for each in earlier.first] == [{"learning_rate": 1e-3}]


def test_what_lies_in_a_folder_counts_not_its_name(tmp_path):
    described = describe(tmp_path, name="earlier", data={"path": "photos"})
    record(described, [({"learning_rate": 1e-3}, [1], "stopped")])
    write_description(described, command=["captune"], data="some photos")
    moved = describe(tmp_path, search={"from": ["earlier"]}, data={"path": "elsewhere"})
    grown = describe(tmp_path, search={"from": ["earlier"]}, data={"path": "photos"})
    assert earlier_trials(moved, tmp_path).first, "nobody has looked"
    assert earlier_trials(moved, tmp_path, "some photos").trials
    taken = earlier_trials(grown, tmp_path, "more photos")
    assert not taken.trials and f"data not the same there: {BEST_FIRST}" in taken.lines[0]


def test_configurations_of_others_begin_and_the_search_goes_on(tmp_path):
    record(
        describe(tmp_path, name="earlier", data={"size": 600}), [({"learning_rate": 1e-3}, [1], "stopped")]
    )
    search = {"algorithm": "auto", "from": ["earlier"], "start": [{"learning_rate": 2e-3}]}
    described = describe(tmp_path, search=search)
    searcher, _ = open_strategy(described, path=None, earlier=earlier_trials(described, tmp_path))
    rates = [searcher.suggest().config["learning_rate"] for _ in range(3)]
    assert rates[:2] == [2e-3, 1e-3] and rates[2] not in rates[:2]
    assert [each.why for each in searcher.observed[:2]] == ["number 1 of search.start", "number 1 of earlier"]


def test_what_was_taken_is_kept_whatever_becomes_of_the_source(tmp_path):
    constraints = [{"metric": "size_mb", "max": 10.0}]
    figures = [{"score": 1, "size_mb": 15.0}, {"score": math.nan, "size_mb": 1.0}, {"score": 3}]
    for name, size in (("same", 1), ("other", 2)):
        earlier = describe(tmp_path, name=name, data={"size": size}, search_space=RATE | METHOD)
        trials = [({"learning_rate": 1e-3, "method": None}, figures, "stopped")]
        record(
            earlier, [*trials, ({"learning_rate": 1e-2, "method": "low_rank", "ratio": 0.5}, [], "failed")]
        )
    new = {"data": {"size": 1}, "search_space": RATE | METHOD, "constraints": constraints}
    described = describe(tmp_path, search={"from": ["same", "other"]}, **new)
    taken = earlier_trials(described, tmp_path)
    assert taken.trials and taken.first and kept(described) is None
    described.folder.mkdir()
    keep(taken, described)
    assert kept(described) == taken
    assert kept(describe(tmp_path, search={"from": ["same"]}, **new)) is None


def test_trials_outside_the_new_domains_are_left_out(tmp_path):
    rates = [1e-4, 1e-3, 1e-2]
    record(describe(tmp_path, name="earlier"), [({"learning_rate": rate}, [1], "stopped") for rate in rates])
    observed, (line,) = start(tmp_path, search_space={"learning_rate": {"float": [5e-4, 1e-1], "log": True}})
    assert [trial.config["learning_rate"] for trial in observed] == [1e-3, 1e-2]
    assert "2 of 3 trials" in line and "1 trial outside the domains (learning_rate)" in line


def test_values_take_the_type_of_the_new_domain(tmp_path):
    space = {"width": {"float": [8.0, 128.0]}}
    trials = [({"width": 64.0}, [1], "stopped"), ({"width": 33.5}, [1], "stopped")]
    record(describe(tmp_path, name="earlier", search_space=space), trials)
    (trial,), _ = start(tmp_path, search_space={"width": {"int": [8, 128]}})
    assert trial.config == {"width": 64} and type(trial.config["width"]) is int


def test_conditions_and_choices_that_are_none_survive_the_table(tmp_path):
    trials = [({"method": None}, [1], "stopped"), ({"method": "low_rank", "ratio": 0.25}, [1], "stopped")]
    record(describe(tmp_path, name="earlier", search_space=METHOD), trials)
    observed, _ = start(tmp_path, search_space=METHOD)
    assert [trial.config for trial in observed] == [config for config, _, _ in trials]


def test_choices_of_several_types_survive_the_table(tmp_path):
    space = {"width": {"choice": [64, "auto", True]}}
    trials = [({"width": value}, [1], "stopped") for value in space["width"]["choice"]]
    record(describe(tmp_path, name="earlier", search_space=space), trials)
    observed, _ = start(tmp_path, search_space=space)
    assert [repr(trial.config["width"]) for trial in observed] == ["64", "'auto'", "True"]


def test_a_trial_that_went_wrong_is_told_as_failed_and_one_without_results_not_at_all(tmp_path):
    rate = {"learning_rate": 1e-3}
    record(
        describe(tmp_path, name="earlier"),
        [(rate, [], "diverged"), (rate, [], "running"), (rate, [1], "stopped")],
    )
    observed, (line,) = start(tmp_path)
    assert [trial.failed for trial in observed] == [True, False]
    assert "1 trial without a result after epoch 1, 3, 9" in line


def test_constraints_count_where_they_were_reported(tmp_path):
    rate, limit = {"learning_rate": 1e-3}, [{"metric": "size_mb", "max": 10.0}]
    record(
        describe(tmp_path, name="sized"),
        [(rate, [{"score": 1, "size_mb": 15.0}], "stopped"), (rate, [1], "stopped")],
    )
    record(describe(tmp_path, name="unsized"), [(rate, [1], "stopped")])
    observed, lines = start(tmp_path, "sized", "unsized", constraints=limit)
    assert [trial.results[1].violation for trial in observed] == [0.5, math.inf, 0.0]
    assert "size_mb" not in lines[0] and "size_mb was not reported there" in lines[1]


def test_a_bare_table_tells_of_the_best_epoch_only(tmp_path):
    table = tmp_path / "old.parquet"
    pd.DataFrame(
        {
            "trial_id": ["a", "b", "c"],
            "config/learning_rate": [1e-3, 1e-2, 1e-3],
            "score": [0.5, 0.6, 0.7],
            "best_epoch": pd.array([7, 1, None], dtype="Int64"),
        }
    ).to_parquet(table)
    earlier = take(tmp_path, str(table))
    assert [each.config["learning_rate"] for each in earlier.first] == [1e-3, 1e-2], "by rung, then by figure"
    told = "from old.parquet: 2 of 3 trials; learning_rate matched; nothing tells of its data: "
    assert earlier.lines[0].startswith(told + BEST_FIRST)


def test_a_table_in_an_experiments_folder_is_that_experiment(tmp_path):
    earlier = record(describe(tmp_path, name="earlier"), [({"learning_rate": 1e-3}, [1, 2, 3], "stopped")])
    by_table = start(tmp_path, str(earlier.folder / "trials.parquet"))
    assert by_table == start(tmp_path, str(earlier.folder)) == start(tmp_path, "earlier")


@pytest.mark.parametrize(
    "source, changes, told",
    [
        ("earlyer", {}, "did you mean 'earlier'"),
        ("missing.parquet", {}, "missing.parquet"),
        ("earlier", {"objectives": [{"metric": "scorre", "mode": "max"}]}, "did you mean 'score'"),
        (
            "earlier",
            {"search_space": WIDTH},
            "shares no hyperparameter with this one; it searched learning_rate",
        ),
        ("SELF/trials.parquet", {}, "is this experiment itself"),
        ("earlier EARLIER", {}, "is 'earlier' by another name; keep one"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_with_the_reason(tmp_path, source, changes, told):
    record(describe(tmp_path, name="earlier"), [({"learning_rate": 1e-3}, [1], "stopped")])
    own = record(describe(tmp_path), [({"learning_rate": 1e-3}, [1], "stopped")])
    named = source.replace("SELF", str(own.folder)).replace("EARLIER", str(tmp_path / "earlier")).split()
    with pytest.raises(ExperimentError, match=r"search\.from\.\d: got ") as refused:
        take(tmp_path, *named, **changes)
    assert told in str(refused.value)


@pytest.mark.parametrize("algorithm", typing.get_args(Search.model_fields["algorithm"].annotation))
def test_sources_are_taken_by_those_algorithms_that_propose_otherwise_with_them(tmp_path, algorithm):
    objectives = [{"metric": name, "mode": "min"} for name in ("loss", "size")]
    changes = {
        "search_space": {name: {"float": [0.0, 1.0], "step": 0.02} for name in ("x", "y")},
        "objectives": objectives if algorithm == "nsga2" else objectives[:1],
    }
    if algorithm == "pbt":
        changes["scheduler"] = {"max_epochs": 9}  # it has rungs of its own
    described = describe(tmp_path, search={"algorithm": algorithm}, **changes)
    losses = len(described.objectives)
    earlier = [
        Observed({"x": n / 50, "y": n / 50}, {9: Standing((n / 50,) * losses, 0.0)}, over=True)
        for n in range(40)
    ]
    plain, shown = (make_proposer(described, trials) for trials in ((), earlier))
    learns = any(plain.propose(n, []) != shown.propose(n, []) for n in range(3))
    try:
        describe(tmp_path, search={"algorithm": algorithm, "from": ["earlier"]}, **changes)
        accepted = True
    except ExperimentError:
        accepted = False
    assert learns == accepted
