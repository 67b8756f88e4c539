"""Metrics of an experiment: the counting, and what a real Ray exports and its dashboard shows."""

import json
import os
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from recorded import describe, record

from cluster.metrics import METRICS, PREFIX
from cluster.metrics_listener import REFRESH_S, MetricsListener, folder_bytes
from tuning.events import EpochReported, TrialEnded, TrialStarted
from tuning.runner import run
from tuning.search.open_trials import INTERRUPTED
from tuning.search.search import LOST

AT = datetime(2026, 1, 1, tzinfo=UTC)


class FakeGauge:
    def __init__(self, tags):
        self.tags, self.values = tags, {}

    def set(self, value, tags):
        assert isinstance(value, float) and tuple(tags) == self.tags
        self.values[tuple(tags.values())[1:]] = value


class Watched:
    """A listener, its gauges, its clock, and `seconds` in the experiment."""

    def __init__(self, experiment):
        self.gauges = {each.name: FakeGauge(each.tags) for each in METRICS}
        self.seconds = self.clock = 0.0
        self.listener = MetricsListener(
            experiment, gauges=self.gauges, clock=lambda: self.clock, now=lambda: AT
        )

    def at(self):
        return AT + timedelta(seconds=self.seconds)

    def start(self, trial):
        self.listener.handle(TrialStarted(trial_id=trial, config={"learning_rate": 0.01}, at=self.at()))

    def epoch(self, trial, number, *, seconds=2.0, attempt=1, gang="gang-0", **metrics):
        self.listener.handle(
            EpochReported(
                trial_id=trial,
                epoch=number,
                attempt=attempt,
                metrics={"seconds": seconds, **metrics},
                checkpoint=f"checkpoints/{trial}/{number:04d}",
                gang=gang,
                node="here",
                at=self.at(),
            )
        )

    def end(self, trial, state="completed", reason="done"):
        self.listener.handle(TrialEnded(trial_id=trial, state=state, reason=reason, at=self.at()))

    def __getitem__(self, name):
        """Values of a metric by its second tag, or its only value, as of now."""
        self.clock += REFRESH_S
        self.listener.tick()
        values = self.gauges[name].values
        return values.get((), {key[0]: value for key, value in values.items() if key})


def test_trials_best_and_epochs_are_those_of_the_tables(tmp_path):
    watched = Watched(describe(tmp_path))
    for trial, score in (("00000", 0.5), ("00001", 0.7), ("00002", 0.9)):
        watched.start(trial)
        watched.epoch(trial, 1, score=score, gang=f"gang-{int(trial) % 2}")
    watched.end("00001", "paused")
    watched.end("00002", "diverged")
    there = {state: count for state, count in watched["captune_trials"].items() if count}
    assert there == {"running": 1, "paused": 1, "diverged": 1}
    assert watched["captune_best_objective"] == {"score": 0.7}, "what diverged is never the best"
    assert watched["captune_epochs"] == {"gang-0": 2, "gang-1": 1}


def test_a_gang_is_busy_as_long_as_its_epochs_took(tmp_path):
    watched = Watched(describe(tmp_path))
    watched.start("00000")
    watched.epoch("00000", 1, seconds=2.0, images_per_s=100.0)
    watched.epoch("00000", 2, seconds=3.0, images_per_s=80.0)
    watched.start("00001")
    watched.epoch("00001", 1, seconds=1.0, gang="gang-1")
    assert watched["captune_gang_busy_seconds"] == {"gang-0": 5.0, "gang-1": 1.0}
    assert watched["captune_gang_epoch_seconds"] == {"gang-0": 3.0, "gang-1": 1.0}
    assert watched["captune_gang_images_per_second"] == {"gang-0": 80.0}, "only where it is told"


def test_a_run_waits_until_its_first_epoch_begins(tmp_path):
    watched = Watched(describe(tmp_path))
    watched.start("00000")
    watched.seconds = 10.0
    watched.epoch("00000", 1, seconds=4.0)
    watched.epoch("00000", 2, seconds=4.0)
    assert (watched["captune_runs"], watched["captune_queue_wait_seconds"]) == (1, 6.0)
    watched.end("00000", "paused", LOST)
    watched.seconds = 30.0
    watched.start("00000")
    watched.seconds = 35.0
    watched.epoch("00000", 3, seconds=4.0, attempt=2)
    assert (watched["captune_runs"], watched["captune_queue_wait_seconds"]) == (2, 6.0 + 21.0)


def test_faults_are_counted_once_each_by_kind(tmp_path):
    watched = Watched(describe(tmp_path))
    assert set(watched["captune_faults"].values()) == {0.0}, "there from the start: increase() sees the first"
    for trial in ("00000", "00001", "00002"):
        watched.start(trial)
    watched.epoch("00000", 1, attempt=3)
    watched.epoch("00000", 2, attempt=3)
    watched.end("00000", "paused", LOST)
    watched.start("00000")
    watched.epoch("00000", 3, attempt=4, gang="gang-1")
    watched.end("00000", "paused", INTERRUPTED)
    watched.end("00001", "failed")
    watched.end("00002", "out_of_memory")
    counted = {kind: count for kind, count in watched["captune_faults"].items() if count}
    assert counted == {"restart": 2, "lost": 1, "failed": 1, "out_of_memory": 1}
    assert watched["captune_gang_restarts"] == {"gang-0": 2, "gang-1": 0}


def test_a_resumed_run_goes_on_with_its_tables(tmp_path):
    experiment = describe(tmp_path)
    record(
        experiment,
        [
            ({"learning_rate": 0.01}, [0.3, 0.4], "completed"),
            ({"learning_rate": 0.02}, [0.6], "running"),
        ],
    )
    watched = Watched(experiment)
    there = {state: count for state, count in watched["captune_trials"].items() if count}
    assert there == {"completed": 1, "paused": 1}, "what ran before the interruption does not run now"
    assert watched["captune_best_objective"] == {"score": 0.6}
    assert watched["captune_epochs"] == {}, "these were other gangs'"


def test_gauges_are_set_again_while_nothing_happens(tmp_path):
    watched = Watched(describe(tmp_path))
    watched.start("00000")
    watched.listener.tick()
    trials = watched.gauges["captune_trials"].values
    trials.clear()
    watched.listener.tick()
    assert not trials, "not at every tick"
    watched.clock += REFRESH_S
    watched.listener.tick()
    assert trials["running",] == 1.0
    assert watched["captune_last_epoch_timestamp_seconds"] == AT.timestamp(), (
        "the beginning, before any epoch"
    )
    watched.seconds = 50.0
    watched.epoch("00000", 1)
    assert watched["captune_last_epoch_timestamp_seconds"] == AT.timestamp() + 50.0


def test_checkpoints_are_weighed(tmp_path):
    experiment = describe(tmp_path)
    for name, size in (("00000/0001/model", 1000), ("00000/0002/model", 500), ("00001/0001/state", 7)):
        path = experiment.folder / "checkpoints" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
    watched = Watched(experiment)
    watched.listener.close()
    assert watched.gauges["captune_checkpoint_bytes"].values == {(): 1507.0}
    assert folder_bytes(Path(tmp_path, "nowhere")) == 0


def test_a_quota_is_told_where_there_is_one(tmp_path):
    assert Watched(describe(tmp_path))["captune_checkpoint_quota_bytes"] == {}
    watched = Watched(describe(tmp_path, checkpoints={"max_gb": 2.5}))
    assert watched["captune_checkpoint_quota_bytes"] == 2.5e9


def test_an_object_store_is_not_weighed(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTUNE_CACHE", str(tmp_path))
    watched = Watched(describe(tmp_path, storage="s3://bucket/results"))
    watched.start("00000")
    watched.listener.close()
    assert watched["captune_checkpoint_bytes"] == watched["captune_storage_free_bytes"] == {}
    assert watched["captune_trials"]["running"] == 1


def test_two_objectives_are_both_told(tmp_path):
    objectives = [{"metric": "score", "mode": "max"}, {"metric": "val_loss", "mode": "min"}]
    watched = Watched(describe(tmp_path, objectives=objectives))
    watched.start("00000")
    watched.epoch("00000", 1, score=0.5, val_loss=0.2)
    assert watched["captune_best_objective"] == {"score": 0.5, "val_loss": 0.2}


def test_variants_have_a_title_of_their_own(tmp_path):
    told = {}

    class Told:
        def set(self, value, tags):
            told[tags["experiment"]] = value

    MetricsListener(describe(tmp_path), "new/variants", gauges={each.name: Told() for each in METRICS}).tick()
    assert set(told) == {"new/variants"}


def test_the_listener_is_installed():
    found = {each.name: each.load() for each in entry_points(group="captune.listeners")}
    assert found["metrics"] is MetricsListener


def get(url):
    """An answer of the dashboard's, which asks for the cluster's token."""
    where = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    request = urllib.request.Request(
        url, headers={"Authorization": f"Bearer {Path(where).read_text().strip()}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


class Actors:
    """A listener that asks the dashboard for its actors whenever an epoch is reported."""

    def __init__(self, dashboard):
        self.dashboard, self.names, self.shown = dashboard, set(), set()

    def handle(self, event):
        if isinstance(event, EpochReported):
            answer = json.loads(get(f"{self.dashboard}/api/v0/actors?detail=1&limit=1000"))
            alive = [each for each in answer["data"]["result"]["result"] if each["state"] == "ALIVE"]
            self.names |= {each["name"] for each in alive}
            self.shown |= {each["repr_name"] for each in alive}

    def tick(self):
        pass

    def close(self):
        pass


def scraped(experiment):
    """Values of an experiment's metrics, by name and second tag, from the export ports of all nodes."""
    import ray
    from prometheus_client.parser import text_string_to_metric_families as parse

    names = {PREFIX + each.name: each for each in METRICS}
    values = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for family in parse(urllib.request.urlopen(url, timeout=10).read().decode()):
            for sample in family.samples:
                if sample.name in names and sample.labels["experiment"] == experiment:
                    metric = names[sample.name]
                    assert family.type == "gauge"
                    values[metric.name, sample.labels.get(metric.tag, "")] = sample.value
    return values


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_metrics_and_actors_are_those_of_the_run(cluster, tmp_path):
    import ray
    from ray.util.state import list_actors

    experiment = describe(
        tmp_path,
        name="watched",
        search_space={"fail_at_epoch": {"choice": [2, 99]}, "momentum": {"float": [0.5, 0.9]}},
        search={"algorithm": "random", "startup_trials": 1},
        scheduler={"algorithm": "none", "max_epochs": 3},
        budget={"trials": 8},
    )
    dashboard = f"http://{ray.get_runtime_context().worker.node.address_info['webui_url']}"
    actors = Actors(dashboard)
    trial_actors = {
        "address": ray.get_runtime_context().gcs_address,  # a machine may have several Rays
        "filters": [("class_name", "=", "TrialActor")],
        "limit": 1000,
    }
    before = len(list_actors(**trial_actors))
    results = run(experiment, listeners=[actors])
    trials, epochs = results.trials, results.epochs

    gangs = set(trials["gang"])
    assert gangs <= actors.names, "gangs are named after the experiment"
    assert {f"{what} {name}" for name in gangs for what in ("gang", "trials on")} <= actors.shown
    assert len(list_actors(**trial_actors)) - before <= 2, "an actor for each gang, however many trials"

    states = Counter(trials["state"])
    assert set(states) == {"completed", "failed"}
    stored = folder_bytes(results.folder / "checkpoints")
    assert stored > 0
    expected = {("captune_trials", state): count for state, count in states.items()} | {
        ("captune_best_objective", "score"): results.best()["score"],
        ("captune_faults", "failed"): states["failed"],
        ("captune_runs", ""): trials["gang"].notna().sum(),
        ("captune_last_epoch_timestamp_seconds", ""): epochs["at"].max().timestamp(),
        ("captune_checkpoint_bytes", ""): stored,
    }
    for gang, rows in epochs.groupby("gang"):
        expected["captune_epochs", gang] = len(rows)
        expected["captune_gang_busy_seconds", gang] = pytest.approx(rows["seconds"].sum())
    deadline = time.monotonic() + 25  # Ray exports every 10 s, and keeps what it had for 20
    while {key: (told := scraped("watched")).get(key) for key in expected} != expected:
        assert time.monotonic() < deadline, told
        time.sleep(1)
