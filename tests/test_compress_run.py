"""The best trials of a search compressed, on a real Ray: run, measured, extended, killed, resumed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tuning import Experiment, load, run
from tuning.runner import ExportFailed, compress
from tuning.tables.consistency import check_tables
from tuning.tables.storage import UnreadableResults

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def experiment(tmp_path, **compression):
    tree = {
        "name": "small",
        "trainable": "compressible:Compressible",
        "model": {"log": str(tmp_path / "measured.log")},
        "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
        "objectives": [{"metric": "score", "mode": "max"}],
        "scheduler": {"algorithm": "none", "max_epochs": 3},
        "budget": {"trials": 2},
        "training": {"gangs": 1},
        "compression": {"search": "children", "parents": 1, "epochs": 2} | compression,
        "storage": str(tmp_path),
    }
    return Experiment.from_dict(tree)


def epochs_of(found):
    return found.epochs[["trial_id", "epoch", "at"]].to_dict("records")


def test_the_best_trial_is_compressed_measured_and_later_extended(cluster, tmp_path):
    said = []
    asked = {"methods": ["none", "fp16", "prune", "broken", "unmeasurable"], "ratios": [0.5, 0.95]}
    with pytest.raises(ExportFailed, match="1 variant could not be .*v00004: .*no clock"):
        run(experiment(tmp_path, **asked), say=said.append)
    found = load(tmp_path / "small")
    best, variants = found.best(), found.variants.set_index("variant_id")
    assert (found.folder / "best").is_dir()
    assert set(variants["parent"]) == {best["trial_id"]}
    assert list(variants["methods"]) == ["none", "fp16", "prune", "broken", "unmeasurable"]
    assert list(variants["state"]) == ["stopped", "stopped", "stopped", "failed", "completed"]
    assert "cannot be compressed" in variants.at["v00003", "error"]
    assert "no clock" in variants.at["v00004", "error"]
    assert variants.at["v00000", "score"] == pytest.approx(best["score"], abs=1e-9)
    assert f"{best['trial_id']}: prune 0.95 would leave nothing" in said
    measured = variants[variants["measured_at"].notna()]
    assert list(measured.index) == ["v00000", "v00001", "v00002"]
    assert (measured["size_mb"] % 1).round(6).eq(0.001).all(), "as measured at the end"
    assert (found.folder / "variants/exported/v00001/model.json").is_file()
    children = load(found.folder / "variants")
    assert not check_tables(children.trials, children.epochs)

    more = experiment(tmp_path, methods=["fp16", "prune", "none"], ratios=[0.5, 0.9])
    with pytest.raises(ExportFailed, match="v00004"):
        compress(more)
    extended = load(found.folder).variants
    assert list(extended["methods"][5:]) == ["prune"] and extended["ratio_asked"].iloc[-1] == 0.9
    before = epochs_of(children)
    assert epochs_of(load(found.folder / "variants"))[: len(before)] == before
    log = Path(more.model["log"]).read_text().split()
    assert sorted(log) == ["v00000", "v00001", "v00002", "v00004", "v00004", "v00005"]


EXPERIMENT_FILE = """
name: small
trainable: compressible:Compressible
model: {log: measured.log, seconds_per_epoch: 0.3, seconds: 3.0}
search_space: {learning_rate: {float: [1e-4, 1e-1], log: true}}
objectives: [{metric: score, mode: max}]
scheduler: {algorithm: none, max_epochs: 2}
budget: {trials: 1}
training: {gangs: 1}
compression: {search: children, methods: [none, fp16, prune], ratios: [0.5, 0.75, 0.9], epochs: 3}
"""


def started(folder, words, until, timeout_s=600):
    """A `captune` that has come so far that `until()` is true."""
    command = [Path(sys.executable).with_name("captune"), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)
    deadline = time.monotonic() + timeout_s
    while not until() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[0]
    return process


def test_killed_while_children_are_trained_and_interrupted_while_they_are_measured(tmp_path):
    (tmp_path / "compressible.py").write_text(Path(__file__).with_name("compressible.py").read_text())
    (tmp_path / "small.yaml").write_text(
        EXPERIMENT_FILE.replace("measured.log", str(tmp_path / "measured.log"))
    )
    folder, log = tmp_path / "captune-results/small", tmp_path / "measured.log"

    def epochs():
        try:
            return len(load(folder / "variants").epochs)
        except (LookupError, UnreadableResults):
            return 0

    killed = started(tmp_path, ["run", "small.yaml"], until=lambda: epochs() >= 6)
    killed.kill()
    killed.communicate()
    before = epochs_of(load(folder / "variants"))

    interrupted = started(
        tmp_path,
        ["run", "small.yaml", "--resume"],
        until=lambda: log.exists() and "v00001" in log.read_text(),
    )
    interrupted.send_signal(signal.SIGINT)
    said, _ = interrupted.communicate(timeout=300)
    assert interrupted.returncode == 130, said
    assert "captune run small.yaml --resume" in said
    measured = load(folder).variants["measured_at"].notna()
    assert measured.any() and not measured.all()

    finished = started(tmp_path, ["compress", "small"], until=lambda: True)
    said, _ = finished.communicate(timeout=300)
    assert finished.returncode == 0, said
    found, children = load(folder), load(folder / "variants")
    assert not check_tables(children.trials, children.epochs)
    assert all(epoch in epochs_of(children) for epoch in before), "what was done is done"
    assert set(children.trials["state"]) == {"completed", "stopped"}
    assert found.variants["measured_at"].notna().all() and len(found.variants) == 5
    names = log.read_text().split()
    assert len(names) <= len(set(names)) + 1, "only what was interrupted is measured again"
    assert "that no other beats" in said
