"""One experiment on S3: begun on one machine, interrupted, finished on another, read on a third."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from click.testing import CliRunner
from servers import CREDENTIALS, new_bucket, s3

from trainables.store import Store, under
from tuning import Experiment, run
from tuning.cli import main
from tuning.tables.consistency import check_tables
from tuning.tables.results import load
from tuning.tables.storage import UnknownExperiment

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


def start(folder, machine, storage, *options):
    """`captune run` on a machine of its own: nothing is shared but the storage."""
    file = folder / "curves.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT))
    command = [sys.executable, "-m", "tuning.cli", "run", str(file), "--storage", storage, *options]
    environment = {**os.environ, **CREDENTIALS, "CAPTUNE_CACHE": str(folder / machine)}
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


def test_what_cannot_be_written_to_is_refused_before_anything_starts(url, tmp_path):
    elsewhere = url.replace("bucket-", "nobucket-")
    wait_for(start(tmp_path, "here", elsewhere), tmp_path, "here", 2)
    assert "storage: cannot use s3://nobucket-" in (tmp_path / "here.log").read_text()
