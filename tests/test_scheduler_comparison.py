"""Schedulers compared in virtual time: what they cost and find, and a finished experiment replayed."""

import json

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from recorded import describe, record

import trainables.gang  # noqa: F401  slow to import, and not a test's fault
from tuning.cli import main
from tuning.experiment_file import ExperimentError
from tuning.simulation.scheduler_comparison import averaged, compare, savings
from tuning.simulation.trainable_curves import TrainableCurves

RATES = [10 ** (-4 + step / 3) for step in range(9)]


def finished(tmp_path, algorithm="asha_stopping", trials=RATES):
    """Nine trials that all ran to the end, the better the higher their rate."""
    experiment = describe(
        tmp_path,
        name="finished",
        scheduler={"algorithm": algorithm, "max_epochs": 9},
        budget={"trials": len(trials)},
    )
    curves = [
        ({"learning_rate": rate}, [number + 0.1 * epoch for epoch in range(1, 10)], "completed")
        for number, rate in enumerate(trials)
    ]
    return record(experiment, curves)


def test_without_a_scheduler_every_trial_costs_all_its_epochs(tmp_path):
    frame = compare(describe(tmp_path), finished(tmp_path), gangs=[1, 3], schedulers=["none"], seeds=2)
    assert list(frame["epochs"]) == [54] * 4
    assert list(frame["time_s"]) == [108, 108, 36, 36]  # 2 s an epoch
    assert list(frame["worker_s"]) == [108] * 4
    assert list(frame["of_none"]) == [1.0] * 4
    assert list(frame["seed"]) == [0, 1, 0, 1]


def test_asha_costs_less_and_says_what_of_the_full_cost(tmp_path):
    frame = compare(describe(tmp_path), finished(tmp_path), seeds=1).set_index("scheduler")
    assert frame["epochs"]["asha"] < frame["epochs"]["none"]
    assert frame["of_none"]["asha"] == pytest.approx(frame["epochs"]["asha"] / 54)
    assert 0 < frame["best_at_epochs"]["asha"] <= frame["epochs"]["asha"]


def test_workers_count_in_the_work(tmp_path):
    frame = compare(
        describe(tmp_path, training={"workers": 3}), finished(tmp_path), schedulers=["none"], seeds=1
    )
    assert list(frame["worker_s"]) == [3 * 108]
    assert frame["cost"].isna().all()


def test_the_cost_is_that_of_the_work_where_it_has_a_price(tmp_path):
    budget = {"trials": 6, "price_per_hour": 2.5}
    priced = describe(tmp_path, training={"workers": 3}, budget=budget)
    frame = compare(priced, finished(tmp_path), schedulers=["none"], seeds=1)
    assert list(frame["cost"]) == [pytest.approx(3 * 108 / 3600 * 2.5)]
    arguments = ["--curves", "finished", "--gangs", "1", "--schedulers", "none"]
    heads = [
        simulate(tmp_path, *arguments, budget=each).output.splitlines()[0].split()
        for each in (budget, {"trials": 6})
    ]
    assert "cost" in heads[0] and "cost" not in heads[1]


def test_a_replay_runs_the_earlier_configurations_in_their_order(tmp_path):
    earlier = finished(tmp_path)
    frame = compare(earlier.experiment, earlier, schedulers=["none"], replay=True, seeds=5)
    assert list(frame["trials"]) == [9] and list(frame["epochs"]) == [81]
    assert list(frame["best"]) == [pytest.approx(8.9)]
    assert list(frame["best_at_epochs"]) == [81], "the best configuration is the last"
    assert list(frame["borrowed"]) == [0] and list(frame["estimated"]) == [0]


def test_a_replay_ignores_the_budget_of_the_earlier_run(tmp_path):
    earlier = finished(tmp_path)
    short = describe(tmp_path, scheduler={"max_epochs": 9}, budget={"epochs": 3})
    (row,) = compare(short, earlier, schedulers=["none"], replay=True).to_dict("records")
    assert row["epochs"] == 81


def test_savings_are_told_against_the_scheduler_that_was_used(tmp_path):
    earlier = finished(tmp_path)
    frame = compare(earlier.experiment, earlier, schedulers=["asha", "asha_stopping"], replay=True)
    by_name = frame.set_index("scheduler")["epochs"]
    (line,) = savings(frame, "asha_stopping")
    share = 100 * (1 - by_name["asha"] / by_name["asha_stopping"])
    assert line == (
        f"with asha (promoting) instead of asha_stopping: {by_name['asha']} epochs instead of "
        f"{by_name['asha_stopping']}, {share:.0f} % saved; best 8.9 instead of 8.9"
    )
    assert "% more" in savings(frame, "asha")[0]


def test_a_replay_into_a_narrower_space_is_refused(tmp_path):
    narrow = describe(tmp_path, search_space={"learning_rate": {"float": [1e-3, 1e-2]}})
    with pytest.raises(ExperimentError, match="of 'finished' cannot be replayed"):
        compare(narrow, finished(tmp_path), replay=True)


def test_a_trial_that_goes_wrong_later_is_not_the_best(tmp_path):
    trials = [
        ({"learning_rate": 1e-3}, [1.0, 1.0], "completed"),
        ({"learning_rate": 1e-2}, [5.0], "diverged"),
    ]
    earlier = record(describe(tmp_path, name="earlier", scheduler={"max_epochs": 2}), trials)
    frame = compare(earlier.experiment, earlier, schedulers=["none"], replay=True)
    assert list(frame["best"]) == [1.0]


def test_means_and_spread_are_over_seeds(tmp_path):
    frame = compare(
        describe(tmp_path, budget={"trials": 2}), finished(tmp_path), schedulers=["none"], seeds=3
    )
    (row,) = averaged(frame).to_dict("records")
    assert row["best"] == pytest.approx(frame["best"].mean())
    assert row["best_sd"] == pytest.approx(frame["best"].std())


def test_an_unknown_scheduler_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ExperimentError, match="got 'ashaa'; did you mean 'asha'"):
        compare(describe(tmp_path), finished(tmp_path), schedulers=["ashaa"])


def test_the_trainable_itself_can_give_the_curves_and_is_closed_after_each_trial(tmp_path, monkeypatch):
    most = 0

    class Watched(TrainableCurves):
        def handle(self, event):
            nonlocal most
            super().handle(event)
            most = max(most, len(self._open))

    monkeypatch.setattr("tuning.simulation.scheduler_comparison.TrainableCurves", Watched)
    frame = compare(describe(tmp_path, scheduler={"max_epochs": 3}), gangs=[2], schedulers=["none"], seeds=1)
    assert list(frame["epochs"]) == [18] and list(frame["time_s"]) == [9]
    assert most == 2


def test_progress_is_told_run_by_run(tmp_path):
    told = []
    compare(
        describe(tmp_path),
        finished(tmp_path),
        seeds=1,
        schedulers=["none", "asha"],
        tell=lambda *a: told.append(a),
    )
    assert told[0] == (1, 2, 1) and told[53] == (1, 2, 54) and told[54] == (2, 2, 1)


def simulate(tmp_path, *arguments, **changes):
    """`captune simulate` of a file beside the results."""
    path = tmp_path / "new.yaml"
    path.write_text(yaml.safe_dump(describe(tmp_path, **changes).to_dict()))
    return CliRunner().invoke(main, ["simulate", str(path), *arguments])


def test_the_command_shows_a_row_per_scheduler_and_number_of_gangs_and_what_is_made_up(tmp_path):
    finished(tmp_path)
    shown = simulate(tmp_path, "--curves", "finished", "--gangs", "1,3", "--schedulers", "none,asha")
    assert shown.exit_code == 0, shown.output
    rows = [line.split() for line in shown.output.splitlines()]
    assert [row[:2] for row in rows if row and row[0] in ("none", "asha")] == [
        ["none", "1"],
        ["asha", "1"],
        ["none", "3"],
        ["asha", "3"],
    ]
    assert "0 % of the simulated epochs were not measured in finished" in shown.output
    assert "100 % are of configurations that it does not have" in shown.output
    assert "not the same" not in shown.output
    other = simulate(tmp_path, "--curves", "finished", "--gangs", "1", model={"noise": 0.1})
    assert other.exit_code == 0 and "model.noise" not in other.output, "only what both of them say"
    other = simulate(
        tmp_path,
        "--curves",
        "finished",
        "--gangs",
        "1",
        "--set",
        "trainable=examples.polynomial:Polynomial",
        data={"points": 9},
    )
    assert "trainable, data.points not the same in finished" in other.output, other.output


def test_the_command_replays_and_ends_with_what_would_have_been_saved(tmp_path):
    finished(tmp_path)
    shown = simulate(tmp_path, "--curves", "finished", "--gangs", "1", "--schedulers", "asha", "--replay")
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines()[-1].startswith("with asha (promoting) instead of asha_stopping: ")


def test_the_command_writes_a_row_per_run_as_json(tmp_path):
    finished(tmp_path)
    shown = simulate(tmp_path, "--curves", "finished", "--gangs", "2", "--seeds", "2", "--format", "json")
    rows = json.loads(shown.stdout)
    assert [(row["scheduler"], row["seed"]) for row in rows if row["scheduler"] == "asha"] == [
        ("asha", 0),
        ("asha", 1),
    ]
    assert all(row["epochs"] > 0 for row in rows)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--curves", "finishd"], "did you mean 'finished'"),
        (["--curves", "finished", "--gangs", "1,0"], "--gangs takes whole numbers from 1"),
        (["--curves", "finished", "--schedulers", "asha,non"], "did you mean 'none'"),
        (["--curves", "trainable", "--replay"], "--replay needs the configurations of an experiment"),
    ],
)
def test_mistakes_end_the_command_with_2_and_the_remedy(tmp_path, arguments, told):
    finished(tmp_path)
    refused = simulate(tmp_path, *arguments)
    assert refused.exit_code == 2
    assert told in refused.output


def test_another_space_ends_the_command_with_2_and_the_names(tmp_path):
    finished(tmp_path)
    refused = simulate(tmp_path, "--curves", "finished", search_space={"momentum": {"float": [0.1, 0.9]}})
    assert refused.exit_code == 2
    assert "search_space.momentum: 'finished' did not search it" in refused.output
    assert "'finished' searched 'learning_rate'" in refused.output


def test_several_objectives_have_a_hypervolume_where_all_have_a_reference(tmp_path):
    objectives = [{"metric": "score", "mode": "max"}, {"metric": "size_mb", "mode": "min"}]
    small, large, wrong = ({"score": v, "size_mb": mb} for v, mb in ((1.0, 2.0), (3.0, 4.0), (9.0, 1.0)))
    trials = [
        ({"learning_rate": 1e-3}, [small, small], "completed"),
        ({"learning_rate": 1e-2}, [large, large], "completed"),
        ({"learning_rate": 1e-1}, [wrong], "diverged"),
    ]
    scheduler = {"max_epochs": 2}
    earlier = record(describe(tmp_path, name="both", objectives=objectives, scheduler=scheduler), trials)
    bounded = [each | {"reference": bound} for each, bound in zip(objectives, [0.0, 5.0], strict=True)]
    for wanted, volume in ((bounded, 1 * 3 + 2 * 1), (objectives, None)):
        here = describe(tmp_path, objectives=wanted, scheduler=scheduler)
        (row,) = compare(here, earlier, schedulers=["none"], replay=True).to_dict("records")
        assert row["best"] == 3.0
        assert (row["hypervolume"] == volume) if volume else pd.isna(row["hypervolume"])
