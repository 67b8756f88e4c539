"""One experiment on S3: begun on one machine, interrupted, finished on another, read on a third."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from servers import CREDENTIALS, new_bucket, s3

from trainables.store import Store, under
from tuning import Experiment, run
from tuning.cli import main
from tuning.tables.consistency import check_tables
from tuning.tables.lease import LEASE
from tuning.tables.results import load
from tuning.tables.storage import UnknownExperiment, UnreadableResults

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXPERIMENT = {
    "name": "curves",
    "trainable": "curves",
    "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
    "model": {"seconds_per_epoch": 1.2},
    "objectives": [{"metric": "score", "mode": "max"}],
    "scheduler": {"algorithm": "asha", "min_epochs": 1, "max_epochs": 4, "reduction_factor": 2},
    "search": {"algorithm": "random"},
    "training": {"gangs": 1},
    "budget": {"trials": 5},
}
COMPARED = ["trial_id", "state", "epochs", "config/learning_rate", "score", "checkpoint"]


COMPRESSED = {
    **EXPERIMENT,
    "name": "small",
    "trainable": "compressible:Compressible",
    "model": {"seconds_per_epoch": 0.5},
    "scheduler": {"algorithm": "none", "max_epochs": 2},
    "budget": {"trials": 2},
    "compression": {
        "search": "children",
        "parents": 1,
        "methods": ["none", "prune"],
        "ratios": [0.5],
        "epochs": 1,
    },
}


def start(folder, machine, storage, *options, experiment=EXPERIMENT):
    """`captune run` on a machine of its own: nothing is shared but the storage."""
    file = folder / f"{experiment['name']}.yaml"
    file.write_text(yaml.safe_dump(experiment))
    return captune(folder, machine, "run", str(file), "--storage", storage, *options)


def captune(folder, machine, *words):
    command = [sys.executable, "-m", "tuning.cli", *words]
    tests = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **CREDENTIALS, "CAPTUNE_CACHE": str(folder / machine), "PYTHONPATH": tests}
    with (folder / f"{machine}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def wait_for(process, folder, machine, code):
    ended = process.wait(300)
    assert ended == code, (folder / f"{machine}.log").read_text()[-3000:]


@pytest.fixture
def url():
    with s3() as address:
        yield new_bucket(address)


def test_a_run_moves_between_machines_and_is_read_from_anywhere(url, tmp_path, monkeypatch, request):
    monkeypatch.setenv("CAPTUNE_CACHE", str(tmp_path / "laptop"))
    first = start(tmp_path, "first", url)
    for _ in range(1000):
        try:
            if len(load("curves", url).epochs):  # read while it runs
                break
        except (UnknownExperiment, ValueError):
            assert first.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
        time.sleep(0.2)
    listed = CliRunner().invoke(main, ["list", "--storage", url])
    assert "running" in listed.output, listed.output
    first.send_signal(signal.SIGINT)
    wait_for(first, tmp_path, "first", 130)
    interrupted = load("curves", url)
    assert len(interrupted.epochs) > 0

    wait_for(start(tmp_path, "second", url, "--resume"), tmp_path, "second", 0)
    found = load(under(url, "curves"))
    assert not check_tables(found.trials, found.epochs)
    assert found.name == "curves" and found.place == under(url, "curves")
    before = interrupted.epochs.set_index(["trial_id", "epoch"])["score"]
    after = found.epochs.set_index(["trial_id", "epoch"])["score"]
    assert after[before.index].equals(before), "what was done stays"
    assert found.epochs["attempt"].max() <= 2

    store = Store(under(url, "curves"))
    kept = {name.removesuffix(".tar") for name in store.files("checkpoints")}
    assert kept == set(found.trials["checkpoint"]), "each trial keeps its best checkpoint, nothing else"
    exported = CliRunner().invoke(
        main, ["export", "curves", "--storage", url, "--to", str(tmp_path / "exported")]
    )
    assert exported.exit_code == 0, exported.output
    assert any((tmp_path / "exported").iterdir())
    assert {name for name in store.files("best")}, "the best model is there, file by file"
    assert "test" not in (tmp_path / "second.log").read_text().split(), "no credentials are told"

    request.getfixturevalue("cluster")
    alone = run(Experiment.from_dict({**EXPERIMENT, "model": {}, "storage": str(tmp_path / "alone")}))
    assert found.trials[COMPARED].equals(alone.trials[COMPARED])


def epochs_at(place):
    try:
        return load(place).epochs
    except (UnknownExperiment, UnreadableResults):
        return []


def test_the_best_trial_is_compressed_there_though_machines_are_lost(url, tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTUNE_CACHE", str(tmp_path / "laptop"))
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    lost = start(tmp_path, "lost", url, experiment=COMPRESSED)
    inside, store = under(url, "small", "variants"), Store(under(url, "small"))
    while not len(before := epochs_at(inside)):
        assert lost.poll() is None, (tmp_path / "lost.log").read_text()[-3000:]
        time.sleep(0.2)
    lost.kill()
    lost.wait()
    lease = json.loads(store.read(LEASE)) | {"at": "2020-01-01T00:00:00+00:00"}  # long ago
    store.put(LEASE, json.dumps(lease).encode())

    wait_for(start(tmp_path, "first", url, "--resume", experiment=COMPRESSED), tmp_path, "first", 0)
    found, children = load("small", url), load(inside)
    assert children.epochs["at"].head(len(before)).equals(before["at"]), "what was done stays"
    assert list(found.variants["methods"]) == ["none", "prune"]
    assert set(found.variants["parent"]) == {found.best()["trial_id"]}
    assert found.variants["measured_at"].notna().all() and found.variants["exported"].isna().all()
    assert not check_tables(children.trials, children.epochs)

    more = captune(tmp_path, "second", "compress", "small", "--ratios", ".5,.75", "--storage", url)
    wait_for(more, tmp_path, "second", 0)
    extended = load("small", url).variants
    assert list(extended["methods"]) == ["none", "prune", "prune"] and extended["measured_at"].notna().all()
    assert extended["measured_at"].head(2).equals(found.variants["measured_at"]), "what was done stays"

    exported = tmp_path / "exported"
    words = ["export", "small", "--variant", "v00002", "--storage", url, "--to", str(exported)]
    shipped = CliRunner().invoke(main, words)
    assert shipped.exit_code == 0, shipped.output
    assert json.loads((exported / "model.json").read_text())["size"] == pytest.approx(0.25)
    store.delete(extended["checkpoint"].iloc[-1] + ".tar")
    gone = CliRunner().invoke(main, [*words[:-1], str(tmp_path / "again")])
    assert gone.exit_code == 1 and "at hand: variant v00000, variant v00001, trial " in gone.output


def test_what_cannot_be_written_to_is_refused_before_anything_starts(url, tmp_path):
    elsewhere = url.replace("bucket-", "nobucket-")
    wait_for(start(tmp_path, "here", elsewhere), tmp_path, "here", 2)
    assert "storage: cannot use s3://nobucket-" in (tmp_path / "here.log").read_text()
