"""Whole runs on a real Ray: gangs, kills, resuming, and nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray

from trainables.curves import Curves
from tuning import Experiment, load, run
from tuning.events import EpochReported
from tuning.experiment import ExperimentError
from tuning.runner import compress
from tuning.simulation.simulator import simulate
from tuning.simulation.trainable_curves import TrainableCurves
from tuning.tables.consistency import check_tables
from tuning.tables.storage import UnreadableResults

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS_PER_EPOCH = 0.4
SPACE = {"learning_rate": {"float": [1e-4, 1e-1], "log": True}}
TIMES = ["started_at", "finished_at", "worker_s", "gang"]


def experiment(tmp_path, **changes):
    tree = {
        "name": "curves",
        "trainable": "curves",
        "search_space": SPACE,
        "objectives": [{"metric": "score", "mode": "max"}],
        "scheduler": {"min_epochs": 1, "max_epochs": 9, "reduction_factor": 3},
        "budget": {"trials": 8},
        "training": {"gangs": 1},
        "storage": str(tmp_path),
    }
    return Experiment.from_dict(tree | changes)


class Killer:
    """A listener that kills -9 one of this run's processes in the middle of an epoch."""

    def __init__(self, kills):
        self.kills = dict(kills)  # (trial_id, epoch) -> what the process is called
        self.killed = []

    def handle(self, event):
        if not isinstance(event, EpochReported):
            return
        name = self.kills.pop((event.trial_id, event.epoch), None)
        if name is not None:
            threading.Timer(SECONDS_PER_EPOCH / 2, self.kill, [name]).start()

    def kill(self, name):
        for _ in range(30):  # for a moment a process may have no name, or another one's
            if self._kill_one(name):
                self.killed.append(name)
                return
            time.sleep(0.1)

    def _kill_one(self, name):
        # Ray names its worker processes after the actor and the method they are at.
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    process.kill()
                    return True
        return False

    def tick(self):
        pass

    def close(self):
        pass


def left_behind(grace_s=20):
    """Actors and placement groups that are still there after Ray had a moment to bury what was ended."""
    deadline = time.monotonic() + grace_s
    while (found := _actors_and_groups()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _actors_and_groups():
    from ray.util import placement_group_table
    from ray.util.state import list_actors

    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    here = ray.get_runtime_context().gcs_address  # a machine may have several Rays
    alive = list_actors(address=here, filters=[("state", "=", "ALIVE")])
    actors = {actor.class_name for actor in alive}
    # Two services of Ray Train's that belong to the cluster, one each however many runs there are.
    return groups + sorted(actors - {"TrainStateActor", "_AutoscalingCoordinatorActor"})


def test_a_run_leaves_tables_and_nothing_else(cluster, tmp_path):
    results = run(experiment(tmp_path, training={"gangs": 2}))
    assert not check_tables(results.trials, results.epochs)
    assert len(results.trials) == 8
    assert set(results.trials["state"]) == {"completed", "paused"}
    assert results.best()["state"] == "completed", "the best trial is always trained to its end"
    assert set(results.trials["gang"].str[-6:]) == {"gang-0", "gang-1"}
    assert (results.folder / "best").is_dir()
    assert (results.folder / results.best()["checkpoint"]).is_dir()
    kept = {path.parent.name for path in (results.folder / "checkpoints").glob("*/*")}
    assert len(kept) == 8, "each trial keeps its best checkpoint"
    assert not (results.folder / ".ray").exists()
    assert left_behind() == []


def test_one_seed_and_one_gang_give_the_same_tables(cluster, tmp_path):
    first, second = (run(experiment(tmp_path / name, budget={"trials": 6})) for name in ("first", "second"))
    different = first.trials.drop(columns=TIMES).compare(second.trials.drop(columns=TIMES))
    assert different.empty


def test_bad_trials_end_by_themselves(cluster, tmp_path):
    troubled = experiment(
        tmp_path,
        search_space={
            "fail_at_epoch": {"choice": [2, 99]},
            "diverge_at_epoch": {"choice": [3, 99]},
        },
        search={"algorithm": "random"},
        scheduler={"algorithm": "none", "max_epochs": 4},
        budget={"trials": 12},
    )
    trials = run(troubled).trials.set_index("trial_id")
    states = trials["state"]
    assert set(states) == {"failed", "diverged", "completed"}
    assert (states[trials["config/fail_at_epoch"] == 2] == "failed").all()
    assert "RuntimeError" in trials["error"][states == "failed"].iloc[0]
    assert trials["reason"][states == "diverged"].str.len().gt(0).all()


def test_killed_workers_and_actors_cost_at_most_an_epoch(cluster, tmp_path):
    """DDP gang: a worker, then the trial's actor, then the gang's owner are killed in mid-epoch."""
    killer = Killer(
        {
            ("00000", 2): "RayTrainWorker",
            ("00000", 4): "TrialActor",
            ("00001", 2): "GangOwner",
        }
    )
    slow = experiment(
        tmp_path,
        model={"seconds_per_epoch": SECONDS_PER_EPOCH},
        scheduler={"algorithm": "none", "max_epochs": 6},
        training={"workers": 2},
        budget={"trials": 2},
    )
    results = run(slow, listeners=[killer])
    assert killer.killed == ["RayTrainWorker", "TrialActor", "GangOwner"]
    assert list(results.trials["state"]) == ["completed", "completed"]
    assert not check_tables(results.trials, results.epochs), "every epoch once, none missing"
    assert (results.trials["restarts"] >= 1).all(), "the owner's death counts, too"
    assert left_behind() == []
    undisturbed = simulate(slow, TrainableCurves(slow), gangs=1)
    expected = {(done.trial_id, done.epoch): done.metrics["score"] for done in undisturbed}
    assert results.epochs.set_index(["trial_id", "epoch"])["score"].to_dict() == expected


def test_a_run_that_ended_by_its_plateau_is_finished(cluster, tmp_path):
    from tuning.tables.summaries import experiment_state

    flat = experiment(
        tmp_path,
        search_space={"noise": {"choice": [0.0]}},
        scheduler={"max_epochs": 1},
        budget={"trials": 60, "plateau": 3},
    )
    results = run(flat)
    assert len(results.trials) < 10
    assert experiment_state(results) == "finished"
    assert len(run(flat, resume=True).trials) == len(results.trials), "and a resumed one does nothing"


def test_a_run_whose_data_have_changed_is_not_gone_on_with(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(Curves, "identity", lambda data: "before", raising=False)
    first = run(experiment(tmp_path, budget={"trials": 2}))
    monkeypatch.setattr(Curves, "identity", lambda data: "after")
    more = experiment(tmp_path, budget={"trials": 4})
    with pytest.raises(ExperimentError, match="data: has changed since"):
        run(more, resume=True)
    with pytest.raises(ExperimentError, match="data: has changed since"):
        compress(more)
    assert len(load(first.folder).trials) == 2
    monkeypatch.setattr(Curves, "identity", lambda data: "before")
    assert len(run(more, resume=True).trials) == 4


def test_a_second_run_of_the_same_name_is_refused(cluster, tmp_path):
    from tuning.runner import ExperimentExists

    done = experiment(tmp_path, budget={"trials": 1}, scheduler={"max_epochs": 1})
    run(done)
    with pytest.raises(ExperimentExists, match="--resume"):
        run(done)
    assert len(run(done, resume=True).trials) == 1


EXPERIMENT_FILE = """
name: interrupted
trainable: curves
model: {seconds_per_epoch: 0.4}
search_space: {learning_rate: {float: [1e-4, 1e-1], log: true}}
objectives: [{metric: score, mode: max}]
search: {algorithm: tpe, startup_trials: 2}
scheduler: {algorithm: asha, min_epochs: 1, max_epochs: 9, reduction_factor: 2}
budget: {trials: 5}
training: {gangs: 1}
"""


def start(folder, *options):
    return subprocess.Popen(
        [Path(sys.executable).with_name("captune"), "run", "experiment.yaml", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def epochs_in(folder):
    try:
        return len(load("interrupted", storage=folder / "captune-results").epochs)
    except (LookupError, UnreadableResults):  # not yet
        return 0


def promoted(folder):
    """Whether a trial is beyond a rung, and neither at the next one nor at its end."""
    trials = load("interrupted", storage=folder / "captune-results").trials
    return bool(((trials["state"] == "running") & ~trials["epochs"].isin([0, 1, 2, 4, 8, 9])).any())


def run_some_epochs(folder, count, timeout_s=150, until=lambda folder: True):
    """Start or resume the experiment; its process, once it has written `count` epochs of its own."""
    before, process = epochs_in(folder), start(folder, "--resume")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if epochs_in(folder) >= before + count and until(folder):
            return process
        time.sleep(0.1)
    raise AssertionError(f"not {count} epochs after {timeout_s} s; exit code {process.poll()}")


def processes_of(session_leader, grace_s=15):
    """Names of the processes that outlive a command; Ray's children notice its end within seconds."""
    deadline = time.monotonic() + grace_s
    while (found := _alive_in(session_leader)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _alive_in(session):
    alive = [
        p for p in psutil.process_iter(["status", "cmdline"]) if p.info["status"] != psutil.STATUS_ZOMBIE
    ]
    return [process.info["cmdline"] for process in alive if _session(process) == session]


def _session(process):
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def test_interrupted_then_killed_then_resumed_is_as_if_never_stopped(cluster, tmp_path):
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT_FILE)
    interrupted = run_some_epochs(tmp_path, 2)
    interrupted.send_signal(signal.SIGINT)
    said, _ = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130, said
    assert "--resume" in said
    assert processes_of(interrupted.pid) == []
    left = load("interrupted", storage=tmp_path / "captune-results").trials
    assert "running" not in set(left["state"])

    killed = run_some_epochs(tmp_path, 1, until=promoted)
    killed.kill()
    killed.communicate()

    finished = start(tmp_path, "--resume")
    said, _ = finished.communicate(timeout=180)
    assert finished.returncode == 0, said

    parts = load("interrupted", storage=tmp_path / "captune-results")
    whole = run(
        Experiment.load(tmp_path / "experiment.yaml", [f"storage={tmp_path}", "model.seconds_per_epoch=0"])
    )
    assert not check_tables(parts.trials, parts.epochs)
    ignored = [*TIMES, "restarts"]
    assert whole.trials.drop(columns=ignored).compare(parts.trials.drop(columns=ignored)).empty


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_waits_while_ray_starts_and_is_not_forgotten(tmp_path, monkeypatch, signum):
    """A Ray that was half started crashes the process at its end, now and then."""
    done = []

    @contextlib.contextmanager
    def connect(experiment):
        os.kill(os.getpid(), signum)
        done.append("started")
        try:
            yield
        finally:
            done.append("shut down")

    monkeypatch.setattr("tuning.runner._connect", lambda: connect)
    before = signal.signal(signum, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(experiment(tmp_path))
    finally:
        signal.signal(signum, before)
    assert done == ["started", "shut down"]


def test_only_placement_groups_without_life_are_taken_for_orphans(cluster):
    from ray.util import placement_group, placement_group_table, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from tuning.gangs.room import remove_orphaned_groups

    @ray.remote(num_cpus=1)
    class Inhabitant:
        def alive(self):
            return True

    orphan, home = placement_group([{"CPU": 1}]), placement_group([{"CPU": 1}])
    ray.get([orphan.ready(), home.ready()])
    inside = PlacementGroupSchedulingStrategy(home)
    inhabitant = Inhabitant.options(scheduling_strategy=inside).remote()
    assert ray.get(inhabitant.alive.remote())
    remove_orphaned_groups()
    states = {key: group["state"] for key, group in placement_group_table().items()}
    assert (states[orphan.id.hex()], states[home.id.hex()]) == ("REMOVED", "CREATED")
    assert ray.get(inhabitant.alive.remote())
    ray.kill(inhabitant)
    remove_placement_group(home)
    assert left_behind() == []


def test_what_tune_keeps_is_not_waited_for(cluster):
    """Its placement groups are there as long as its tuner, after Ctrl-C: without cores, unlike a gang's."""
    from ray.util import placement_group, remove_placement_group

    from tuning.gangs.room import own_groups

    before = own_groups()
    tunes, gangs = placement_group([{"CPU": 0, "memory": 1}]), placement_group([{"CPU": 1}])
    ray.get([tunes.ready(), gangs.ready()])
    assert own_groups() - before == {gangs.id.hex()}
    for group in (tunes, gangs):
        remove_placement_group(group)
