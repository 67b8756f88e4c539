"""What clusters do to a run, on a real Ray: hangs, failing gangs, full memory, nodes that are taken away."""

import pytest
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
