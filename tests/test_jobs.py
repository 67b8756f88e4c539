"""Experiments as jobs: what is refused, what is sent, and a real head node that runs one."""

import importlib
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner
from raylets import Raylets

from cluster.connect import connect
from cluster.jobs import load_for_cluster, pack
from tuning.cli import main
from tuning.experiment import Experiment
from tuning.experiment_file import ExperimentError
from tuning.tables.results import load

ROOT = Path(__file__).parent.parent
POLYNOMIAL = str(ROOT / "examples" / "polynomial.yaml")


def test_the_commands_are_installed():
    found = {each.name: each.load() for each in entry_points(group="captune.commands")}
    assert {"submit", "status", "logs", "stop"} <= set(found)
    assert all(main.commands[name] is command for name, command in found.items())


@pytest.mark.parametrize("place", ["results", "~/results", "../results"])
@pytest.mark.parametrize("key", ["storage", "data.path"])
def test_places_that_only_this_machine_knows_are_refused(tmp_path, key, place):
    file = tmp_path / "mine.yaml"
    lines = {"storage": "/shared/results", "data.path": "/shared/photos"} | {key: place}
    file.write_text(
        "name: mine\ntrainable: captioning\nsearch_space: captioning\n"
        "objectives: [{metric: cider, mode: max}]\nscheduler: {max_epochs: 2}\nbudget: {trials: 2}\n"
        f"data:\n  format: flickr8k\n  path: {lines['data.path']}\n"
        f"storage: {lines['storage']}\n"
    )
    with pytest.raises(ExperimentError) as refused:
        load_for_cluster(str(file))
    line = {"data.path": 9, "storage": 10}[key]
    assert str(refused.value).startswith(f"{file}:{line}: {key}: got {place!r}: must start with /")


def test_earlier_experiments_are_names_or_folders_that_all_see():
    where = ["storage=/shared", "search.from=[before, /shared/others/then]"]
    assert load_for_cluster(POLYNOMIAL, where).search.from_ == ("before", "/shared/others/then")
    for place in ("others/then", "./before", "~/before", "trials.parquet"):
        with pytest.raises(ExperimentError, match="must start with /") as refused:
            load_for_cluster(POLYNOMIAL, ["storage=/shared", f"search.from=[before, {place}]"])
        assert f"search.from.1: got {place!r}" in str(refused.value)


def test_the_experiment_is_validated_here():
    assert load_for_cluster(POLYNOMIAL, ["storage=/shared"]).name == "polynomial"
    with pytest.raises(ExperimentError, match="budget"):
        load_for_cluster(POLYNOMIAL, ["storage=/shared", "budget.trials=0"])


def test_data_may_be_where_only_the_cluster_sees_them(tmp_path):
    file = tmp_path / "mine.yaml"
    lines = (
        "name: mine\nsearch_space: captioning\nobjectives: [{metric: cider, mode: max}]\n"
        "budget: {trials: 2}\nmodel: {encoder: cnn}\nstorage: /shared\ndata: {format: flickr8k, path: PATH}\n"
    )
    file.write_text(lines.replace("PATH", "/shared/no such photos"))
    assert load_for_cluster(str(file)).data["path"] == "/shared/no such photos"
    with pytest.raises(ExperimentError, match="data.image_siz"):  # everything else is looked at
        load_for_cluster(str(file), ["data.image_siz=8"])
    file.write_text(lines.replace("PATH", str(tmp_path)))  # no captions in it
    with pytest.raises(ExperimentError, match="data"):
        load_for_cluster(str(file))


def test_storage_that_is_not_said_is_refused_before_anything_is_asked():
    outcome = CliRunner().invoke(main, ["submit", POLYNOMIAL, "--address", "http://127.0.0.1:1"])
    assert outcome.exit_code == 2 and "storage: got 'captune-results'" in outcome.output


def test_code_is_sent_and_nothing_else(tmp_path, monkeypatch):
    own, sent = tmp_path / "own_trainables", tmp_path / "sent"
    (own / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/model.py", "photo.jpg", "__pycache__/old.py", ".secret.py"):
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    sent.mkdir()
    pack(POLYNOMIAL, "own_trainables.deep.model:Mine", sent)
    found = {str(path.relative_to(sent)) for path in sent.rglob("*") if path.is_file()}
    mine = {path for path in found if path.startswith("own_trainables")}
    assert mine == {"own_trainables/__init__.py", "own_trainables/deep/model.py"}
    assert {"polynomial.yaml", "tuning/cli.py", "cluster/jobs.py", "trainables/trial.py"} <= found
    rest = {path for path in found - mine if not path.endswith(".py")} - {"polynomial.yaml"}
    assert all(".dist-info/" in path for path in rest)
    assert not any(path.startswith(("tests", "benchmarks", "examples")) for path in found)
    # From there alone, `captune run` finds its way to a cluster.
    finds = "import importlib.metadata as m; print(m.entry_points(group='captune.cluster')['connect'].load())"
    code = (
        f"import sys; sys.path[:] = ['.'] + [p for p in sys.path if {str(ROOT)!r} not in p or 'site-' in p]"
    )
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; {finds}; import cluster; print(cluster.__file__)"],
        cwd=sent,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines()[1].startswith(str(sent))


def test_the_dashboard_tells_of_a_run_that_is_no_job(monkeypatch):
    import ray

    given = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with connect("local", experiment=Experiment.load(POLYNOMIAL, ["storage=here"])):
        told = given["job_config"].metadata
    here = os.path.abspath("here")
    assert told["experiment"] == "polynomial" and told["objectives"] == "val_loss min"
    assert told["storage"] == here and told["results"] == f"captune results polynomial --storage {here}"
    assert told["owner"] and all(isinstance(value, str) for value in told.values())


def too_late(**options):
    raise Exception("The current node timed out during startup")


@pytest.mark.parametrize(
    "name, value, kind, message",
    [
        ("RAY_ADDRESS", "garbage", ExperimentError, "RAY_ADDRESS: got 'garbage': must be HOST:PORT"),
        ("RAY_ADDRESS", "http://head:8265", ExperimentError, "RAY_ADDRESS: got 'http://head:8265'"),
        ("RAY_ADDRESS", "head:99999", ExperimentError, "RAY_ADDRESS: got 'head:99999': must be HOST:PORT"),
        ("RAY_ADDRESS", "127.0.0.1:1", ConnectionError, "RAY_ADDRESS: no Ray answers at '127.0.0.1:1'"),
        ("RAY_ADDRESS", "auto", ConnectionError, "RAY_ADDRESS: cannot join the Ray at 'auto': The current"),
        ("RAY_ADDRESS", "local", ConnectionError, "Ray did not start here: The current node timed out"),
        ("RAY_AUTH_TOKEN_PATH", "/nope", ExperimentError, "RAY_AUTH_TOKEN_PATH names '/nope'"),
    ],
)
def test_where_there_is_no_ray_the_address_and_its_origin_are_named(monkeypatch, name, value, kind, message):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_late)
    monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=message), connect():
        pass


@pytest.mark.parametrize("address", ["head:8265", ""])
def test_a_dashboard_that_is_none_is_refused(address):
    outcome = CliRunner().invoke(main, ["status", "job", "--address", address])
    assert outcome.exit_code == 2 and "http://HEAD:8265" in outcome.output


def captune(*words, environment):
    """The command in a process of its own: Ray reads a token once per process."""
    command = [sys.executable, "-m", "tuning.cli", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_head_node_runs_an_experiment(tmp_path):
    results = tmp_path / "results"
    with Raylets(1, cpus=2) as cluster:
        outer, where = cluster.environment, ["--address", cluster.address]
        asked = captune("status", "nope", *where, environment=outer)
        assert asked.returncode == 2 and "no job 'nope'" in asked.stderr

        (tmp_path / "other").write_text("wrong" * 8)
        wrong = outer | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
        asked = captune("status", "nope", *where, environment=wrong)
        assert asked.returncode == 2 and "refused the token" in asked.stderr

        words = [POLYNOMIAL, *where, "--storage", str(results), "--python", sys.executable]
        asked = captune("submit", *words, "--off-head", environment=outer)
        assert asked.returncode == 2 and "no node but its head" in asked.stderr
        done = captune("submit", *words, "--set", "budget.trials=3", "--follow", environment=outer)
        assert done.returncode == 0, done.stdout + done.stderr
        job = done.stdout.split()[0]
        assert len(load("polynomial", results).trials) == 3

        told = captune("status", job, *where, environment=outer).stdout
        lines = dict(line.split(maxsplit=1) for line in told.splitlines())
        assert lines["status"] == "SUCCEEDED" and lines["experiment"] == "polynomial"
        assert lines["objectives"] == "val_loss min" and lines["storage"] == str(results)
        assert lines["results"] == f"captune results polynomial --storage {results}"
        assert "3 of 3 trials done" in captune("logs", job, *where, environment=outer).stdout
        assert "had ended" in captune("stop", job, *where, environment=outer).stdout

        # Its results are there: refused by `captune run` on the head, and so by submit --follow.
        again = captune("submit", *words, "--follow", environment=outer)
        assert again.returncode == 1 and "has results already" in again.stdout
