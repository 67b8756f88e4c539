"""Three nodes, one core each: gangs span them, nodes go and come in the middle of a run, nothing is lost."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from line import begun, weight_after
from raylets import Raylets

from tuning.tables.consistency import check_tables
from tuning.tables.results import load

ROOT = Path(__file__).parent.parent
TRIALS, EPOCHS, SECONDS_PER_EPOCH = 6, 4, 0.8
#: Actors that Ray starts once for a cluster, and keeps.
RAYS_OWN = {"_AutoscalingCoordinatorActor", "TrainStateActor"}


@pytest.fixture(scope="module")
def three():
    with Raylets(3) as cluster:
        yield cluster


@pytest.fixture
def experiment(tmp_path):
    """An experiment of gangs of two workers: its file, and the diary that its trials keep."""
    file, diary = tmp_path / "line.yaml", tmp_path / "diary"
    file.write_text(
        f"name: line\ntrainable: line:Line\nstorage: {tmp_path / 'results'}\n"
        f"model: {{seconds_per_epoch: {SECONDS_PER_EPOCH}, diary: {diary}}}\n"
        "search_space: {learning_rate: {float: [0.01, 0.1]}}\n"
        "objectives: [{metric: val_loss, mode: min}]\n"
        "search: {algorithm: random, seed: 0}\n"
        f"scheduler: {{algorithm: none, max_epochs: {EPOCHS}}}\n"
        f"budget: {{trials: {TRIALS}}}\ntraining: {{workers: 2}}\n"
    )
    return file, diary


def captune(*words, cluster, log):
    """The command at work: a process of its own, as Ray reads a token once per process."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "tuning.cli", *words, "--address", cluster.address],
        cwd=ROOT,
        env=cluster.environment | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )


def wait_for_epochs(count, diary, command, log, patience_s=200):
    """Wait until so many epochs have begun, and for the middle of the last."""
    deadline = time.monotonic() + patience_s
    while len(begun(diary)) < count:
        assert command.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    time.sleep(SECONDS_PER_EPOCH / 3)


def assert_nothing_lost(folder, diary):
    """All trials are done, every epoch is there once, and its weight is what undisturbed training gives."""
    results = load(folder)
    assert check_tables(results.trials, results.epochs) == []
    assert list(results.trials["state"]) == ["completed"] * TRIALS, results.trials.T.to_string()
    assert len(results.epochs) == TRIALS * EPOCHS
    rates = results.trials.set_index("trial_id")["config/learning_rate"]
    for row in results.epochs.itertuples():
        expected = 1 - weight_after(row.epoch, rates[row.trial_id])
        assert row.val_loss == pytest.approx(expected, rel=1e-4)
    assert (results.epochs["nodes"] == 2).all()
    runs = Counter((line["trial"], line["epoch"]) for line in begun(diary))
    assert len(runs) == TRIALS * EPOCHS
    return results, {key: count for key, count in runs.items() if count > 1}


def assert_nothing_left(cluster):
    """No gang, trial or job lives on, and none of their places."""
    actors = cluster.ask("/api/v0/actors")["data"]["result"]["result"]
    assert {each["class_name"] for each in actors if each["state"] != "DEAD"} <= RAYS_OWN
    groups = cluster.ask("/api/v0/placement_groups")["data"]["result"]["result"]
    assert {each["state"] for each in groups} == {"REMOVED"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_are_killed_and_another_joins(three, tmp_path, experiment):
    """The gang loses a node, the spare one goes, too, and it must wait for the one that joins."""
    (file, diary), log = experiment, tmp_path / "log"
    words = ["submit", str(file), "--python", sys.executable, "--follow"]
    command = captune(*words, cluster=three, log=log)
    wait_for_epochs(EPOCHS + 2, diary, command, log)
    hit = begun(diary)[-1]
    others = [node for node in three.nodes.values() if node != three.head]
    for lost in sorted(others, key=lambda node: node.ip not in hit["nodes"]):
        three.kill(lost)
    added = three.add()
    assert command.wait(300) == 0, log.read_text()

    results, repeated = assert_nothing_lost(tmp_path / "results" / "line", diary)
    assert len(repeated) <= 1 and set(repeated.values()) <= {2}
    last = begun(diary)[-1]
    assert set(last["nodes"]) == {three.head.ip, added.ip}
    attempts = results.epochs["attempt"]
    assert attempts[0] == 1 and (attempts > 1).any()
    for trial, epoch in repeated:
        mine = results.epochs[results.epochs["trial_id"] == trial]
        assert ((mine["attempt"] > 1) == (mine["epoch"] >= epoch)).all(), mine[["epoch", "attempt"]]
    assert_nothing_left(three)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_was_stopped_is_resumed_by_another(three, tmp_path, experiment):
    (file, diary), log = experiment, tmp_path / "log"
    words = ["submit", str(file), "--python", sys.executable, "--follow"]
    command = captune(*words, cluster=three, log=log)
    wait_for_epochs(EPOCHS + 2, diary, command, log)
    job = log.read_text().split()[0]
    stopping = captune("stop", job, cluster=three, log=tmp_path / "stop.log")
    assert stopping.wait(60) == 0, (tmp_path / "stop.log").read_text()
    assert command.wait(60) == 1 and "STOPPED" in log.read_text()
    assert_nothing_left(three)
    stopped = load(tmp_path / "results" / "line")
    assert check_tables(stopped.trials, stopped.epochs) == []
    assert set(stopped.trials["state"]) == {"completed", "paused"}, "it was stopped in the middle"

    again = captune(*words, "--resume", cluster=three, log=log)
    assert again.wait(300) == 0, log.read_text()
    _, repeated = assert_nothing_lost(tmp_path / "results" / "line", diary)
    assert set(repeated.values()) <= {2} and len(repeated) <= 1
