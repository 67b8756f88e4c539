"""A resumed run is the same experiment: what may be changed in its file, and what is refused."""

import pytest

from tuning.experiment import Experiment, ExperimentError
from tuning.resuming import refuse_changes, refuse_other_data
from tuning.tables.results_writer import ResultsWriter
from tuning.tables.storage import write_description

SPEC = {
    "name": "birds",
    "trainable": "curves",
    "data": {"path": "/photos", "splits": [1, 2]},
    "model": {"momentum": 0.5},
    "search_space": {"learning_rate": {"float": [1e-4, 1.0], "log": True}},
    "objectives": [{"metric": "cider", "mode": "max"}],
    "budget": {"trials": 4},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = Experiment.from_dict(SPEC)
    write_description(before, command=["captune"])
    ResultsWriter(before).close()
    return before.folder


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"budget": {"trials": 99, "time": "2h"}},
        {"training": {"gangs": 1, "workers": 2, "max_failures": 0}},
        {"storage": "elsewhere"},
        {"model": {"momentum": 0.5}, "data": {"splits": [1, 2], "path": "/photos"}},
    ],
)
def test_what_means_the_same_may_change(folder, change):
    refuse_changes(Experiment.from_dict(SPEC | change), folder)


@pytest.mark.parametrize(
    "change, key, before, after",
    [
        ({"model": {"momentum": 0.9}}, "model.momentum", "0.5", "0.9"),
        ({"model": {}}, "model.momentum", "0.5", "not there"),
        ({"data": {"path": "/other", "splits": [1, 2]}}, "data.path", "'/photos'", "'/other'"),
        (
            {"search_space": {"learning_rate": {"float": [1e-3, 1.0], "log": True}}},
            "float",
            "0.0001",
            "0.001",
        ),
        ({"objectives": [{"metric": "val_loss", "mode": "min"}]}, "objectives", "cider", "val_loss"),
        ({"constraints": [{"metric": "size_mb", "max": 3}]}, "constraints", "[]", "size_mb"),
        ({"scheduler": {"max_epochs": 27}}, "scheduler.max_epochs", "9", "27"),
        ({"search": {"seed": 5}}, "search.seed", "0", "5"),
        ({"trainable": "captioning"}, "trainable", "'curves'", "'captioning'"),
        ({"training": {"precision": "fp16"}}, "training.precision", "'auto'", "'fp16'"),
    ],
)
def test_what_makes_figures_incomparable_is_refused_with_both_values(folder, change, key, before, after):
    with pytest.raises(ExperimentError) as refusal:
        refuse_changes(Experiment.from_dict(SPEC | change), folder)
    (problem,) = refusal.value.problems
    place, now, then = problem.partition(" is ")[0], *problem.partition(" is ")[2].split(" are of ")
    assert key in place and after in now and before in then


def test_children_of_a_search_that_compressed_are_for_compress(tmp_path):
    """The user changed one key; that a shipped space is another by it is not what he wants to read."""
    tree = SPEC | {"search_space": "captioning", "storage": str(tmp_path)}
    joint = Experiment.from_dict(tree)
    write_description(joint, command=["captune"])
    (joint.folder / "trials.parquet").touch()
    children = Experiment.from_dict(tree | {"compression": {"search": "children"}, "search": {"seed": 5}})
    with pytest.raises(ExperimentError) as refusal:
        refuse_changes(children, joint.folder)
    first, second = refusal.value.problems
    assert f"`captune compress {joint.folder}`" in first and second.startswith("search.seed: is 5")


def test_other_data_are_refused_where_both_are_known(folder):
    began, experiment = ["captune", "run"], Experiment.from_dict(SPEC)
    refuse_other_data(folder, "5ea")  # the first run was of a version that recorded none
    (folder / "environment.json").unlink()
    write_description(experiment, command=began, data="5ea")
    write_description(experiment, command=[*began, "--resume"], data="5ea")
    for identity in ("5ea", None):
        refuse_other_data(folder, identity)
    with pytest.raises(ExperimentError, match="data: has changed since the results in .*birds; put it back"):
        refuse_other_data(folder, "1a4d")
    (folder / "trials.parquet").unlink()
    refuse_other_data(folder, "1a4d")  # there is nothing to compare with
    write_description(experiment, command=[*began, "--resume"], data="1a4d")
    ResultsWriter(experiment).close()
    refuse_other_data(folder, "1a4d")  # these are what the results are of now
    with pytest.raises(ExperimentError, match="data: has changed"):
        refuse_other_data(folder, "5ea")


def test_nothing_is_asked_before_there_are_results(folder):
    (folder / "trials.parquet").unlink()
    refuse_changes(Experiment.from_dict(SPEC | {"model": {}}), folder)


@pytest.mark.parametrize("text", ["a: [", "", "no mapping"])
def test_results_of_nobody_knows_what_are_refused(folder, text):
    (folder / "experiment.yaml").write_text(text)
    with pytest.raises(ExperimentError, match="experiment.yaml"):
        refuse_changes(Experiment.from_dict(SPEC), folder)
