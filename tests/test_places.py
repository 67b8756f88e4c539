"""Folders that a run names and only some nodes have: told before it starts, or by a trial."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import raylets
from PIL import Image
from ray.exceptions import RayTaskError, WorkerCrashedError
from recorded import describe

from trainables.places import missing_data
from tuning.experiment import ExperimentError
from tuning.gangs.places import refuse_unseen_folders, unseen

ROOT = Path(__file__).parent.parent


@pytest.fixture
def marker(tmp_path):
    (tmp_path / "results").mkdir()
    marker = tmp_path / "results" / ".seen"
    marker.touch()
    return marker


def test_data_are_missing_where_their_path_is_not_there(tmp_path):
    assert missing_data({}, "n1") == "" == missing_data({"path": str(tmp_path)}, "n1")
    told = missing_data({"path": str(tmp_path / "photos")}, "n1")
    assert told.startswith(
        f"data.path: {tmp_path / 'photos'} is not there on node n1: put the data into a fold"
    )


def test_a_node_that_sees_everything_has_nothing_to_say_and_leaves_nothing(tmp_path, marker):
    assert unseen({"path": str(tmp_path)}, marker, "n1") == []
    assert list(marker.parent.iterdir()) == [marker]


def test_storage_that_is_a_url_is_not_looked_for():
    assert unseen({}, None, "n1") == []


def test_what_a_node_does_not_see_is_named(tmp_path, marker):
    marker.unlink()  # the folder is there, but it is the node's own
    data, storage = unseen({"path": str(tmp_path / "no")}, marker, "n1", show_s=0.0)
    assert data.startswith("data.path: ") and "on node n1" in data
    assert storage.startswith(f"storage: {marker.parent} is another folder on node n1: name a folder that")
    marker.parent.rmdir()
    (storage,) = unseen({}, marker, "n1", show_s=0.0)
    assert storage.startswith(f"storage: {marker.parent} is not there on node n1: ")


def test_storage_that_cannot_be_written_is_named(marker, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    (told,) = unseen({}, marker, "n1")
    assert told == f"storage: {marker.parent} cannot be written on node n1: Permission denied"


@pytest.fixture
def nodes(monkeypatch):
    """A Ray that consists of four nodes; what each answers can be set, by its id."""
    answers = {"n2": [], "n3": [], "n4": ["never asked"]}
    listed = [
        {"NodeID": f"0{id_[1]}" * 28, "Alive": True, "Resources": {"CPU": cores}, "NodeManagerHostname": id_}
        | {"NodeManagerAddress": f"10.0.0.{id_[1]}"}
        for id_, cores in (("n1", 2.0), ("n2", 2.0), ("n3", 2.0), ("n4", 0.0))
    ]

    class Task:
        def options(self, scheduling_strategy):
            return SimpleNamespace(remote=lambda *_: f"n{scheduling_strategy.node_id[-1]}")

    def get(id_):
        if isinstance(answers[id_], Exception):
            raise answers[id_]
        return answers[id_]

    monkeypatch.setattr(ray, "nodes", lambda: listed)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "01" * 28))
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: Task())
    monkeypatch.setattr(ray, "wait", lambda asked, **_: (asked, []))
    monkeypatch.setattr(ray, "get", get)
    return answers


def test_all_nodes_that_can_train_are_asked_and_no_mark_is_left(nodes, tmp_path):
    experiment = describe(tmp_path)
    experiment.folder.mkdir()
    refuse_unseen_folders(experiment)
    nodes |= {"n2": ["storage: two"], "n3": ["data.path: three"]}
    with pytest.raises(ExperimentError, match="(?s)data.path: three.*storage: two"):
        refuse_unseen_folders(experiment)
    assert list(experiment.folder.iterdir()) == []


def test_a_node_that_cannot_run_captune_is_named_and_one_that_dies_is_not(nodes, tmp_path):
    experiment = describe(tmp_path)
    experiment.folder.mkdir()
    nodes["n2"] = WorkerCrashedError()
    refuse_unseen_folders(experiment)
    nodes["n3"] = RayTaskError("unseen", "", ModuleNotFoundError("No module named 'tuning'"))
    with pytest.raises(
        ExperimentError, match=r"node n3 \(10.0.0.3\) cannot run Captune: No module named 'tuning'"
    ):
        refuse_unseen_folders(experiment)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_folder_that_only_the_head_has_is_refused_before_anything_starts(tmp_path, monkeypatch):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a node with a file system of its own needs root")
    shared = tmp_path / "shared"
    (shared / "photos").mkdir(parents=True)
    for number in range(40):
        Image.new("RGB", (30, 20), (6 * number, 0, 0)).save(shared / "photos" / f"{number}.png")
    lines = "".join(f"{number}.png,a photo of a dog\n" for number in range(40))
    (shared / "photos" / "captions.txt").write_text(lines)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nsearch_space: {learning_rate: {float: [1e-4, 1e-2], log: true}}\n"
        "objectives: [{metric: cider, mode: max}]\nbudget: {trials: 2}\nmodel: {encoder: cnn}\n"
        f"data: {{format: flickr8k, path: {shared}/photos, image_size: 32}}\n"
    )
    with raylets.Raylets(1) as cluster:
        # In what another machine has in the place of `shared`, there is nothing.
        empty = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {shared} && exec "$@"', "sh"]
        monkeypatch.setattr(raylets, "RAY", [*empty, *raylets.RAY])
        other = cluster.add()
        words = [
            "submit",
            str(tmp_path / "mine.yaml"),
            "--address",
            cluster.address,
            "--python",
            sys.executable,
        ]
        words += ["--storage", str(shared / "results"), "--follow"]
        done = subprocess.run(
            [sys.executable, "-m", "tuning.cli", *words],
            cwd=ROOT,
            env=cluster.environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1, done.stdout
    for problem in (f"data.path: {shared}/photos is not", f"storage: {shared}/results/mine is not"):
        (line,) = [line for line in done.stdout.splitlines() if problem in line]
        assert f"({other.ip})" in line
        assert "every node sees under the same path" in line
    assert not list((shared / "results" / "mine").glob("*.parquet"))
    assert not list((shared / "results" / "mine").glob(".seen*"))
