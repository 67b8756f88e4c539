"""What clusters do to a run, on a real Ray: hangs, failing gangs, full memory, nodes that are taken away."""

import subprocess
import sys
import time

import pytest
from raylets import RAY, Raylets
from test_runner import experiment, left_behind

from tuning import load, run
from tuning.driving import CannotGoOn
from tuning.gangs.gangs import TRAIN_ENVIRONMENT
from tuning.tables.results import check_tables

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


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


LINE = """
name: line
trainable: curves
model: {seconds_per_epoch: 1.0}
search_space: {learning_rate: {float: [1e-4, 1e-1], log: true}}
objectives: [{metric: score, mode: max}]
scheduler: {algorithm: none, max_epochs: 12}
budget: {trials: 1}
"""


def epochs_of(folder):
    try:
        return load(folder).epochs
    except (LookupError, ValueError):  # not yet
        return None


def test_a_node_that_is_drained_costs_no_epoch(tmp_path):
    (tmp_path / "line.yaml").write_text(LINE)
    with Raylets(1, cpus=0) as cluster:
        for _ in range(2):
            cluster.add()
        begun = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tuning.cli",
                "run",
                str(tmp_path / "line.yaml"),
                "--storage",
                str(tmp_path),
            ],
            env=cluster.environment | {"RAY_ADDRESS": cluster.gcs_address},
        )
        try:
            while (epochs := epochs_of(tmp_path / "line")) is None or len(epochs) < 2:
                assert begun.poll() is None
                time.sleep(0.2)
            left = load(tmp_path / "line").trials["node"].iloc[0]
            nodes = cluster.ask("/nodes?view=summary")["data"]["summary"]
            (node_id,) = (each["raylet"]["nodeId"] for each in nodes if each["ip"] == left)
            drain = ["drain-node", "--address", cluster.gcs_address, "--node-id", node_id]
            drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
            drain += ["--deadline-remaining-seconds", "600"]
            subprocess.run([*RAY, *drain], env=cluster.environment, check=True, capture_output=True)
            assert begun.wait(150) == 0
        finally:
            begun.kill()
    results = load(tmp_path / "line")
    assert results.trials["node"].iloc[0] != left
    assert list(results.epochs["epoch"]) == list(range(1, 13))
    assert set(results.epochs["attempt"]) == {1}, "nothing was repeated"
