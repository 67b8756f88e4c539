"""What clusters do to a run, on a real Ray: hangs, failing gangs, full memory, nodes that are taken away."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from line import begun, weight_after
from raylets import RAY, Raylets
from test_runner import experiment, left_behind

from tuning import load, run
from tuning.driving import CannotGoOn
from tuning.gangs.gangs import TRAIN_ENVIRONMENT
from tuning.tables.consistency import check_tables

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parent.parent


def test_a_gang_that_hangs_is_rebuilt_and_its_trial_goes_on(cluster, tmp_path):
    """The second worker stands still in mid-epoch; the first waits for it in the control group."""
    hanging = experiment(
        tmp_path,
        model={"hang_at_epoch": 3, "crash_marker": str(tmp_path / "hung")},
        scheduler={"algorithm": "none", "max_epochs": 4},
        training={"workers": 2, "hang_timeout": "10s"},
        budget={"trials": 2},
    )
    results = run(hanging)
    assert (tmp_path / "hung").exists()
    assert list(results.trials["state"]) == ["completed", "completed"]
    assert not check_tables(results.trials, results.epochs)
    attempts = results.epochs[results.epochs["trial_id"] == "00000"].set_index("epoch")["attempt"]
    assert list(attempts) == [1, 1, 1, 2], "the first worker needs nobody for epoch 3, and then waits"
    assert left_behind() == []


def test_a_gang_that_cannot_start_is_closed_and_the_run_ends_with_that(cluster, tmp_path, monkeypatch):
    broken_network = {"GLOO_SOCKET_IFNAME": "nosuchinterface"}
    monkeypatch.setattr("tuning.gangs.gangs.TRAIN_ENVIRONMENT", TRAIN_ENVIRONMENT | broken_network)
    broken = experiment(tmp_path, training={"workers": 2})
    with pytest.raises(CannotGoOn, match="all gangs failed"):
        run(broken)
    results = load(tmp_path / "curves")
    assert list(results.trials["state"]) == ["paused"]
    assert left_behind() == []


def test_a_trial_out_of_memory_goes_on_with_smaller_parts_of_its_batch(cluster, tmp_path):
    full = experiment(
        tmp_path,
        model={"batch_size": 64, "fits_in_memory": 16},
        scheduler={"algorithm": "none", "max_epochs": 2},
        training={"gangs": 1, "on_out_of_memory": "accumulate"},
        budget={"trials": 1},
    )
    (trial,) = run(full).trials.to_dict("records")
    assert (trial["state"], trial["halvings"], trial["restarts"]) == ("completed", 2, 2)


CURVES = """
name: line
trainable: curves
model: {seconds_per_epoch: 1.0}
search_space: {learning_rate: {float: [1e-4, 1e-1], log: true}}
objectives: [{metric: score, mode: max}]
scheduler: {algorithm: none, max_epochs: 12}
budget: {trials: 1}
"""
LINE = """
name: line
trainable: line:Line
model: {seconds_per_epoch: 8.0, diary: DIARY}
search_space: {learning_rate: {float: [1e-3, 1e-2], log: true}}
objectives: [{metric: val_loss, mode: min}]
scheduler: {algorithm: none, max_epochs: 3}
training: {workers: 2}
budget: {trials: 1}
"""


def epochs_of(folder):
    try:
        return load(folder).epochs
    except (LookupError, ValueError):  # not yet
        return None


def run_and_drain(cluster, folder, experiment, epochs, at_work):
    """Let a run report so many epochs, then take away a node `at_work`, but the head; what the run said."""
    (folder / "line.yaml").write_text(experiment)
    log = folder / "log"
    command = [sys.executable, "-m", "tuning.cli", "run", str(folder / "line.yaml"), "--storage", str(folder)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        command,
        env=cluster.environment | {"RAY_ADDRESS": cluster.gcs_address, "PYTHONPATH": path},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        while (reported := epochs_of(folder / "line")) is None or len(reported) < epochs:
            assert run.poll() is None, log.read_text()
            time.sleep(0.2)
        left = next(ip for ip in at_work() if ip != cluster.head.ip)
        nodes = cluster.ask("/nodes?view=summary")["data"]["summary"]
        (node_id,) = (each["raylet"]["nodeId"] for each in nodes if each["ip"] == left)
        drain = ["drain-node", "--address", cluster.gcs_address, "--node-id", node_id]
        drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        drain += ["--deadline-remaining-seconds", "600"]
        subprocess.run([*RAY, *drain], env=cluster.environment, check=True, capture_output=True)
        assert run.wait(150) == 0, log.read_text()
    finally:
        run.kill()
    return left, log.read_text()


def test_a_node_that_is_drained_costs_no_epoch(tmp_path):
    with Raylets(3, head_cpus=0) as cluster:
        left, _ = run_and_drain(
            cluster, tmp_path, CURVES, 2, lambda: load(tmp_path / "line").trials["node"].tolist()
        )
    results = load(tmp_path / "line")
    assert results.trials["node"].iloc[0] != left
    assert list(results.epochs["epoch"]) == list(range(1, 13))
    assert set(results.epochs["attempt"]) == {1}, "nothing was repeated"


def test_a_trial_that_can_leaves_a_drained_node_in_the_middle_of_an_epoch(tmp_path):
    """A gang of two workers, one on the node that goes: its epoch goes on elsewhere, at the step it had."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    diary = tmp_path / "diary"
    with Raylets(3, PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1") as cluster:
        experiment = LINE.replace("DIARY", str(diary))
        _, said = run_and_drain(cluster, tmp_path, experiment, 1, lambda: begun(diary)[-1]["nodes"])
    assert "its node is taken away, in the middle of an epoch" in said
    results = load(tmp_path / "line")
    assert [line["epoch"] for line in begun(diary)] == [1, 2, 3], "no epoch began twice"
    (rate,) = results.trials["config/learning_rate"]
    expected = [1 - weight_after(epoch, rate) for epoch in (1, 2, 3)]
    assert list(results.epochs["val_loss"]) == pytest.approx(expected, rel=1e-4)
    assert set(results.epochs["attempt"]) == {1}
    assert [path.name for path in (tmp_path / "line" / "checkpoints" / "00000").iterdir()] == ["0003"]
