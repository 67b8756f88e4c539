"""Experiments as jobs: what is refused, what is sent, and a real head node that runs one."""

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from cluster.jobs import load_for_cluster, pack
from tuning.cli import main
from tuning.experiment_file import ExperimentError
from tuning.tables.results import load

ROOT = Path(__file__).parent.parent
POLYNOMIAL = str(ROOT / "examples" / "polynomial.yaml")


def test_the_commands_are_installed():
    found = {each.name: each.load() for each in entry_points(group="captune.commands")}
    assert set(found) == {"submit", "status", "logs", "stop"}
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


def test_the_experiment_is_validated_here():
    assert load_for_cluster(POLYNOMIAL, ["storage=/shared"]).name == "polynomial"
    with pytest.raises(ExperimentError, match="budget"):
        load_for_cluster(POLYNOMIAL, ["storage=/shared", "budget.trials=0"])


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


def test_what_does_not_answer_is_told():
    outcome = CliRunner().invoke(main, ["status", "job", "--address", "head:8265"])
    assert outcome.exit_code == 2 and "http://HEAD:8265" in outcome.output


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def head_node(folder, environment):
    """The dashboard's address of a head node with two cores, a folder and ports of its own."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    names += ["ray-client-server-port", "metrics-export-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += ["--num-cpus=2", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    options += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    log = (folder / "head.log").open("w")
    head = subprocess.Popen([*ray, *options], env=environment, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{ports['dashboard-port']}", head
    finally:
        family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(45)
        for process in [*family, head]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        log.close()


def captune(*words, environment):
    """The command in a process of its own: Ray reads a token once per process."""
    command = [sys.executable, "-m", "tuning.cli", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_head_node_runs_an_experiment(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    # Ray's sockets lie in its folder, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="captune-", ignore_cleanup_errors=True) as short:
        folder = Path(short)
        (folder / "token").write_text("right" * 8)
        (folder / "other").write_text("wrong" * 8)
        outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        outer |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        with head_node(folder, outer) as (address, head):
            where = ["--address", address]
            deadline = 120
            while (asked := captune("status", "nope", *where, environment=outer)).returncode == 1:
                assert head.poll() is None and (deadline := deadline - 1), (folder / "head.log").read_text()
            assert asked.returncode == 2 and "no job 'nope'" in asked.stderr

            wrong = outer | {"RAY_AUTH_TOKEN_PATH": str(folder / "other")}
            asked = captune("status", "nope", *where, environment=wrong)
            assert asked.returncode == 2 and "refused the token" in asked.stderr

            words = [POLYNOMIAL, *where, "--storage", str(results), "--python", sys.executable]
            done = captune("submit", *words, "--set", "budget.trials=3", "--follow", environment=outer)
            assert done.returncode == 0, done.stdout + done.stderr
            job = done.stdout.split()[0]
            assert len(load("polynomial", results).trials) == 3

            told = captune("status", job, *where, environment=outer).stdout
            lines = dict(line.split(maxsplit=1) for line in told.splitlines())
            assert lines["status"] == "SUCCEEDED" and lines["experiment"] == "polynomial"
            assert lines["objectives"] == "val_loss min" and lines["storage"] == str(results)
            assert "3 of 3 trials done" in captune("logs", job, *where, environment=outer).stdout
            assert "had ended" in captune("stop", job, *where, environment=outer).stdout

            # Its results are there: refused by `captune run` on the head, and so by submit --follow.
            again = captune("submit", *words, "--follow", environment=outer)
            assert again.returncode == 1 and "has results already" in again.stdout
