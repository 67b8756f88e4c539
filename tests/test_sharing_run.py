"""Two experiments on one real cluster; a cluster that shrinks and grows under one."""

import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from raylets import Raylets

from tuning import load
from tuning.tables.consistency import check_tables
from tuning.tables.storage import UnreadableResults

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(folder, cluster, name, *, trials, epochs=1, **training):
    """`captune run` in a process of its own on `cluster`, with epochs of 0.3 s."""
    tree = {
        "name": name,
        "trainable": "curves",
        "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
        "model": {"seconds_per_epoch": 0.3},
        "objectives": [{"metric": "score", "mode": "max"}],
        "search": {"algorithm": "random"},
        "scheduler": {"algorithm": "none", "max_epochs": epochs},
        "budget": {"trials": trials},
        "training": training,
        "storage": str(folder),
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return subprocess.Popen(
        [sys.executable, "-m", "tuning.cli", "run", str(folder / f"{name}.yaml")],
        env=cluster.environment | {"RAY_ADDRESS": cluster.gcs_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(folder, name):
    """Trials of an experiment that have ended so far."""
    try:
        return int(load(name, folder).trials["finished_at"].notna().sum())
    except (LookupError, UnreadableResults):
        return 0


def on(folder, name, node):
    """Trials of an experiment whose last epoch ran on a node."""
    try:
        return int((load(name, folder).trials["node"] == node).sum())
    except (LookupError, UnreadableResults):
        return 0


def running(folder, name):
    """Names of an experiment's trials that run now."""
    return set(load(name, folder).trials.query("state == 'running'")["trial_id"])


def completed(folder, name, trial_ids):
    """Whether all of these trials of an experiment are."""
    trials = load(name, folder).trials
    return set(trial_ids) <= set(trials[trials["state"] == "completed"]["trial_id"])


def wait_until(what, *drivers):
    while not what():
        for driver in drivers:
            assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.5)


def test_two_experiments_share_a_cluster_and_neither_starves(tmp_path):
    with Raylets(1, cpus=2) as cluster:
        first = start(tmp_path, cluster, "first", trials=5000)
        wait_until(lambda: done(tmp_path, "first") > 4, first)
        second = start(tmp_path, cluster, "second", trials=24)
        output, _ = second.communicate()
        assert second.returncode == 0, output
        after = done(tmp_path, "first")
        wait_until(lambda: done(tmp_path, "first") > after + 4, first)
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate()
        assert first.returncode == 130, output
    tables = {name: load(name, tmp_path) for name in ("first", "second")}
    assert all(not check_tables(found.trials, found.epochs) for found in tables.values())
    assert len(tables["second"].trials) == 24
    ends = {name: found.trials["finished_at"].dropna().sort_values() for name, found in tables.items()}
    began, ended = ends["second"].iloc[0], ends["second"].iloc[-1]
    for name, times in ends.items():
        both = times[times.between(began, ended)]
        thirds = pd.cut(both, pd.date_range(began, ended, periods=4), include_lowest=True)
        assert thirds.value_counts().min() > 0, f"{name} had nothing for a third of the time"
    first, second = (int(times.between(began, ended).sum()) for times in ends.values())
    assert second / 4 < first < second * 4, "half of the cluster each, roughly"


def test_a_run_follows_a_cluster_that_loses_a_node_and_gets_another(tmp_path):
    with Raylets(2, cpus=1) as cluster:
        node = cluster.nodes["node-2"]
        driver = start(tmp_path, cluster, "moving", epochs=3, trials=500)
        wait_until(lambda: on(tmp_path, "moving", node.ip) > 2, driver)
        wait_until(lambda: len(running(tmp_path, "moving")) == 2, driver)
        hit = running(tmp_path, "moving")
        cluster.kill(node)
        other = cluster.add(cpus=1)
        wait_until(lambda: on(tmp_path, "moving", other.ip) > 2, driver)
        wait_until(lambda: completed(tmp_path, "moving", hit), driver)
        driver.send_signal(signal.SIGINT)
        output, _ = driver.communicate()
    assert driver.returncode == 130, output
    found = load("moving", tmp_path)
    assert not check_tables(found.trials, found.epochs)
    states = found.trials.set_index("trial_id")["state"]
    assert set(states) <= {"completed", "paused"}, "none has failed"
    assert (states == "paused").sum() <= 2, "those that ran at the end"


def test_an_autoscaler_is_asked_for_as_many_gangs_as_there_may_be_and_no_more(tmp_path):
    def nodes():
        found = cluster.ask("/api/v0/nodes")["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in found)

    with Raylets(1, most=3) as cluster:
        driver = start(tmp_path, cluster, "growing", trials=5000, max_gangs=2)
        wait_until(lambda: done(tmp_path, "growing") and nodes() > 1, driver)
        wait_until(lambda: load("growing", tmp_path).trials["node"].nunique() > 1, driver)
        before = done(tmp_path, "growing")
        wait_until(lambda: done(tmp_path, "growing") > before + 40, driver)  # some eight seconds
        assert nodes() == 2
        driver.send_signal(signal.SIGINT)
        said, _ = driver.communicate(timeout=60)
        assert driver.returncode == 130
        wait_until(lambda: nodes() == 1)  # nothing is asked for any more
    assert said.count("for room for 1 more gang of 1 worker with 1 CPU each") == 1
