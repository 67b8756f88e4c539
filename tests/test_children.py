"""Children of the best trials: which, with what, and the table of what became of them; without Ray."""

import json
import shutil
from datetime import UTC, datetime

import pandas as pd
import pytest
from compressible import Compressible
from recorded import describe, record

from trainables.order import Report
from trainables.trial import SettingsError
from tuning.children import (
    Inheritance,
    Parent,
    asked,
    inner_experiment,
    open_children,
    parent_of,
    parents,
    points,
)
from tuning.experiment import Experiment, ExperimentError
from tuning.search.budget import BudgetGuard
from tuning.search.ranking import Standing
from tuning.search.search import Search
from tuning.tables.results import load
from tuning.tables.storage import write_description
from tuning.tables.summaries import experiment_state
from tuning.variants import Variants

AT = datetime(2026, 1, 2, tzinfo=UTC)
TRIALS = [
    ({"learning_rate": 0.01}, [0.1] * 8 + [0.7], "completed"),
    ({"learning_rate": 0.02}, [0.1] * 8 + [0.9], "failed"),
    ({"learning_rate": 0.03}, [0.95], "paused"),
    ({"learning_rate": 0.04}, [0.1, 0.1, 0.8] + [0.2] * 6, "completed"),
    ({"learning_rate": 0.05}, [0.1] * 8 + [0.5], "completed"),
]


def compressed(tmp_path, trials=TRIALS, **section):
    """An experiment that was run, and wants children."""
    section = {"search": "children", "methods": ["none", "fp16", "prune"], "ratios": [0.5, 0.9]} | section
    experiment = describe(
        tmp_path, trainable="compressible:Compressible", model={"momentum": 0.8}, compression=section
    )
    found = record(experiment, trials)
    for checkpoint in found.epochs["checkpoint"]:
        (found.folder / checkpoint).mkdir(parents=True)
        (found.folder / checkpoint / "state.json").write_text(json.dumps({"epoch": 9}))
    return experiment, found


def test_parents_are_the_best_that_ran_to_their_end_each_at_its_best_epoch(tmp_path):
    _, found = compressed(tmp_path)
    assert parents(found) == [Parent("00003", 3), Parent("00000", 9), Parent("00004", 9)]
    assert parents(found)[0].checkpoint == found.trials.set_index("trial_id").at["00003", "checkpoint"]


def test_a_refused_parent_makes_room_for_the_next_best(tmp_path, monkeypatch):
    experiment, found = compressed(tmp_path)
    variants = Compressible.variants

    def but_one(checkpoint, methods, ratios):
        if checkpoint.parent.name == "00003":
            raise SettingsError(("compression", "parents"), "is compressed already")
        return variants(checkpoint, methods, ratios)

    monkeypatch.setattr(Compressible, "variants", but_one)
    wanted, impossible = points(found, experiment)
    assert impossible == ["00003: compression.parents: is compressed already"]
    assert [parent_of(config).trial_id for config in wanted] == ["00000"] * 4 + ["00004"] * 4


def test_a_parent_whose_checkpoint_is_gone_makes_room_too(tmp_path):
    experiment, found = compressed(tmp_path)
    shutil.rmtree(found.folder / "checkpoints/00003")
    wanted, lines = points(found, experiment)
    assert {config["compression.parent"] for config in wanted} == {
        "checkpoints/00000/0009",
        "checkpoints/00004/0009",
    }
    assert lines[0] == "00003: its checkpoint is gone, see `checkpoints`"


def test_variants_keep_their_checkpoints_until_they_are_measured_and_are_not_taken_for_hung(tmp_path):
    experiment, found = compressed(tmp_path)
    tree = experiment.to_dict() | {"checkpoints": {"keep": "needed"}}
    wanted, _ = points(found, experiment)
    inner = inner_experiment(Experiment.from_dict(tree), wanted)
    assert inner.checkpoints.keep == "all"
    assert inner.training.hang_timeout_s == 6 * 3600, "the first epoch of a child trains nothing"
    tree["training"] = {"hang_timeout": "90s"}
    assert inner_experiment(Experiment.from_dict(tree), wanted).training.hang_timeout_s == 90


def test_a_table_of_variants_that_all_failed_has_the_objectives(tmp_path):
    experiment, found = compressed(tmp_path, parents=1, methods=["fp16"])
    tree = experiment.to_dict() | {"constraints": [{"metric": "compression_ratio", "min": 0.4}]}
    inner = inner_experiment(Experiment.from_dict(tree), points(found, experiment)[0])
    failed = Variants(write_children(inner, [0], ["failed"]), found.folder).table()
    assert failed["score"].isna().all() and failed["compression_ratio"].isna().all()


def test_where_no_trial_came_to_its_end_the_best_is_the_parent(tmp_path):
    _, found = compressed(tmp_path, TRIALS[1:3])
    assert [parent.trial_id for parent in parents(found)] == ["00001"]


def test_the_inner_experiment_has_every_possible_child_once(tmp_path):
    experiment, found = compressed(tmp_path, ratios=[0.5, 0.95])
    wanted, impossible = points(found, experiment)
    assert impossible == ["00003: prune 0.95 would leave nothing", "00000: prune 0.95 would leave nothing"]
    inner = inner_experiment(experiment, wanted + wanted[:2])
    assert inner.folder == found.folder.absolute() / "variants"
    assert inner.budget.trials == len(inner.search.start) == 6
    assert inner.search.start[2] == {
        "compression.parent": "checkpoints/00003/0003",
        "compression.method": "prune",
        "compression.ratio": 0.5,
    }
    assert inner.full_epochs() == {1, 4}
    assert [(o.metric, o.mode) for o in inner.objectives] == [
        ("score", "max"),
        ("size_mb", "min"),
        ("macs", "min"),
    ]
    assert Experiment.from_dict(inner.to_dict()) == inner


def test_more_methods_extend_what_is_there_and_nothing_comes_twice(tmp_path):
    experiment, found = compressed(tmp_path, methods=["none", "fp16"])
    first = inner_experiment(experiment, points(found, experiment)[0])
    write_description(first, command=["captune"])
    more = asked(found, {"methods": ["fp16", "prune"], "ratios": [0.5], "parents": 1})
    second = inner_experiment(more, points(found, more)[0])
    assert second.search.start[:4] == first.search.start
    assert [config["compression.method"] for config in second.search.start[4:]] == ["prune"]
    assert inner_experiment(experiment, []).search.start == first.search.start


def test_a_moved_folder_names_the_same_children(tmp_path):
    experiment, found = compressed(tmp_path / "here")
    write_description(inner_experiment(experiment, points(found, experiment)[0]), command=["captune"])
    (tmp_path / "here").rename(tmp_path / "there")
    moved = load(tmp_path / "there" / "new")
    again = asked(moved, {})
    assert len(inner_experiment(again, points(moved, again)[0]).search.start) == 8


def test_a_method_that_does_not_exist_is_refused_before_anything_runs(tmp_path):
    _, found = compressed(tmp_path)
    with pytest.raises(ExperimentError, match="compression.methods: got 'fp17': there are none, fp16"):
        asked(found, {"methods": ["fp17"]})


def test_a_child_is_run_with_its_parents_hyperparameters_and_checkpoint(tmp_path):
    experiment, found = compressed(tmp_path)
    inner = inner_experiment(experiment, points(found, experiment)[0])
    folder = found.folder.absolute() / "checkpoints/00003/0003"
    assert inner.model == {"momentum": 0.8}
    assert Inheritance(found, experiment.place)(inner.search.start[1]) == {
        "learning_rate": 0.04,
        "compression.parent": str(folder),
        "compression.method": "fp16",
    }


def test_the_trainable_says_which_children_begin_untrained(tmp_path, monkeypatch):
    experiment, found = compressed(tmp_path, parents=1)
    inner = inner_experiment(experiment, points(found, experiment)[0])
    monkeypatch.setattr(Compressible, "starts_untrained", lambda method: method == "fp16", raising=False)
    write_description(inner, command=["captune"])
    _, scheduler = open_children(inner)
    for number, losses in enumerate([(1, 1), (9, 9), (9, 9), (0, 2)]):
        scheduler.report(f"{number:05d}", 1, Standing(losses))
    scheduler.drop("00000")
    assert scheduler.next_stop() == ("00002", "rung 0: another beats it")
    assert [trial_id for trial_id, _ in iter(scheduler.next_promotion, None)] == ["00003", "00001"]


SCORES = {"none": 0.7, "fp16": 0.7, "prune": 0.6}


def figures(config, epoch):
    size = {"none": 1.0, "fp16": 0.5}.get(config["compression.method"]) or 1 - config["compression.ratio"]
    score = SCORES[config["compression.method"]] + (epoch - 1) / 100 - (0.5 if size < 0.2 else 0)
    score -= 0.01 * ("00003" in config["compression.parent"])
    return {"score": score, "size_mb": 10 * size, "macs": 9 * size, "compression_ratio": 1 - size}


def write_children(inner, epochs, states):
    trials = [
        (config, [figures(config, e) if e in (1, 4) else {} for e in range(1, n + 1)], state)
        for config, n, state in zip(inner.search.start, epochs, states, strict=True)
    ]
    return record(inner, trials)


def table_of(tmp_path):
    experiment, found = compressed(tmp_path, parents=1)
    inner = inner_experiment(experiment, points(found, experiment)[0])
    children = write_children(inner, [1, 4, 4, 0], ["stopped", "completed", "completed", "failed"])
    return found, children


def test_the_table_says_parent_way_figures_and_checkpoint(tmp_path):
    found, children = table_of(tmp_path)
    variants = Variants(children, found.folder)
    variants.write()
    frame = load(found.folder).variants.set_index("variant_id")
    assert list(frame.index) == ["v00000", "v00001", "v00002", "v00003"]
    assert set(frame["parent"]) == {"00003"} and set(frame["parent_epoch"]) == {3}
    assert list(frame["methods"]) == ["none", "fp16", "prune", "prune"]
    assert frame["ratio_asked"].isna().tolist() == [True, True, False, False]
    assert frame.at["v00001", "ratio"] == 0.5
    assert frame["fine_tune_epochs"].tolist()[:3] == [0, 3, 3]
    assert frame.at["v00001", "checkpoint"] == "variants/checkpoints/00001/0004"
    assert frame.at["v00001", "score"] == pytest.approx(0.72)
    assert pd.isna(frame.at["v00003", "checkpoint"])
    assert "compression_ratio" not in frame and not [name for name in frame if name.startswith("config/")]


def test_a_variant_that_fine_tuning_made_worse_stays_as_it_was(tmp_path):
    experiment, found = compressed(tmp_path, parents=1, methods=["fp16"])
    inner = inner_experiment(experiment, points(found, experiment)[0])
    costs = {"size_mb": 5.0, "macs": 5.0}
    tuned = {"score": 0.6, "train_loss": 0.1, **costs}
    children = record(inner, [(inner.search.start[0], [{"score": 0.7, **costs}, {}, {}, tuned], "completed")])
    (row,) = Variants(children, found.folder).table().to_dict("records")
    assert (row["score"], row["fine_tune_epochs"]) == (0.7, 0)
    assert row["checkpoint"] == "variants/checkpoints/00000/0001"


def test_what_was_measured_stays_until_the_checkpoint_is_another(tmp_path):
    found, children = table_of(tmp_path)
    variants = Variants(children, found.folder)
    assert [row["variant_id"] for row in variants.unmeasured()] == ["v00000", "v00001", "v00002"]
    assert experiment_state(found) == "unfinished"
    variants.measured("v00001", {"size_mb": 4.9, "latency_ms": 3.0}, "variants/exported/v00001", AT)
    variants.failed("v00002", "Traceback: no clock")
    again = Variants(children, found.folder)
    assert [row["variant_id"] for row in again.unmeasured()] == ["v00000", "v00002"]
    row = again.table().set_index("variant_id").loc["v00001"]
    assert (row["size_mb"], row["latency_ms"], row["score"]) == (4.9, 3.0, pytest.approx(0.72))
    assert row["measured_at"] == AT and row["exported"] == "variants/exported/v00001"

    frame = children.trials.copy()
    frame.loc[1, ["checkpoint", "best_epoch"]] = ["checkpoints/00001/0001", 1]
    changed = Variants(type(children)(children.folder, frame, children.epochs), found.folder)
    assert "v00001" in [row["variant_id"] for row in changed.unmeasured()]
    assert pd.isna(changed.table().set_index("variant_id").at["v00001", "latency_ms"])


def test_the_front_is_by_the_objectives_size_and_time(tmp_path):
    found, children = table_of(tmp_path)
    variants = Variants(children, found.folder)
    for name, ms in {"v00000": 8.0, "v00001": 9.0, "v00002": 4.0}.items():
        variants.measured(name, {"latency_ms": ms}, "x", AT)
    front = load(found.folder).pareto()
    assert list(front["variant_id"]) == ["v00001", "v00000", "v00002"]


def test_the_parent_as_it_is_ends_and_the_front_is_fine_tuned(tmp_path):
    experiment, found = compressed(tmp_path)
    inner = inner_experiment(experiment, points(found, experiment)[0])
    inner.folder.mkdir()
    searcher, scheduler = open_children(inner)
    search = Search(inner, searcher=searcher, scheduler=scheduler, budget=BudgetGuard(inner.budget))
    done = []
    while (run := search.next_run()) is not None:
        epoch, leaves = run.epoch, False
        while not leaves:
            epoch += 1
            report = Report(epoch=epoch, metrics=figures(run.config, epoch), attempt=1, node="")
            leaves = search.report(run.trial_id, report).leaves
            done.append((run.config, epoch))
    assert [config for config, _ in done[:8]] == list(inner.search.start)
    assert {epoch for _, epoch in done[:8]} == {1}, "all are compressed before any is fine-tuned"
    tuned = [(config["compression.parent"], config["compression.method"]) for config, e in done if e == 4]
    better = "checkpoints/00000/0009"
    assert sorted(tuned) == [(better, "fp16"), (better, "prune")], "the other parent's are beaten"
