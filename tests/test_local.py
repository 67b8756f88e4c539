"""`captune status`, `logs` and `stop` of runs that are no jobs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from recorded import describe, record

from tuning.cli import main
from tuning.driver import DRIVER, NotOurs, announced, find_driver, is_running, lock_of
from tuning.events import TrialEnded, TrialStarted
from tuning.run_log import NAME, written_down

ROOT = Path(__file__).parent.parent
AT = record.__globals__["AT"]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@pytest.fixture
def folder(tmp_path):
    """An experiment with three trials that nobody runs now."""
    trials = [({"learning_rate": 0.01}, [0.1, 0.5], "completed"), ({"learning_rate": 0.02}, [0.2], "stopped")]
    return record(describe(tmp_path), trials).folder


def captune(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def lines(outcome):
    assert outcome.exit_code == 0, outcome.output
    return dict(line.split(maxsplit=1) for line in outcome.output.splitlines())


def test_status_tells_states_best_and_where_more_is(folder):
    told = lines(captune("status", "new", "--storage", folder.parent))
    assert told["status"] == "unfinished"
    assert told["trials"] == "2 of 6 (1 completed · 1 stopped)"
    assert told["best"] == "score 0.5 (trial 00000)"
    assert told["results"] == f"captune results {folder}"
    assert "driver" not in told
    assert lines(captune("status", folder)) == told


def test_status_names_the_driver_that_lives(folder):
    with lock_of(folder), announced(folder):
        told = lines(captune("status", folder))
    assert told["status"] == "running"
    assert told["driver"] == f"process {os.getpid()} on {socket.gethostname()}"
    assert told["started"].endswith("UTC")
    assert not (folder / DRIVER).exists()


def test_a_run_that_prepares_its_data_has_a_status(tmp_path):
    with lock_of(tmp_path), announced(tmp_path):
        assert lines(captune("status", tmp_path))["status"] == "preparing"


def test_an_unknown_name_is_refused_and_jobs_are_spoken_of(folder):
    refused = captune("status", "knew", "--storage", folder.parent)
    assert refused.exit_code == 2
    assert "did you mean 'new'" in refused.output and "--address" in refused.output


def test_what_a_killed_driver_left_is_no_driver(folder):
    with announced(folder):
        left = (folder / DRIVER).read_text()
    (folder / DRIVER).write_text(left)
    assert find_driver(folder) is None and not is_running(folder)
    assert captune("stop", folder).output == f"{folder} is not running\n"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"host": "elsewhere"}, "runs on elsewhere"),
        ({"created_s": 1.0}, "has just ended"),
        ({"pid": 2**22}, "ended"),
    ],
)
def test_only_the_driver_itself_is_stopped(folder, change, reason):
    with lock_of(folder), announced(folder):
        path = folder / DRIVER
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(NotOurs, match=reason):
            find_driver(folder).ask_to_end()
        assert captune("stop", folder).exit_code == 1


def test_the_driver_is_known_though_the_clock_was_set(folder, monkeypatch):
    with lock_of(folder), announced(folder):
        for name in ("create_time", "boot_time"):  # both are told by a clock that was an hour slow
            where = psutil.Process if name == "create_time" else psutil
            before = getattr(where, name)
            monkeypatch.setattr(where, name, lambda *process, before=before: before(*process) + 3600)
        ended = []
        monkeypatch.setattr(psutil.Process, "terminate", lambda process: ended.append(process.pid))
        find_driver(folder).ask_to_end()
        assert ended == [os.getpid()]


def test_what_a_run_says_is_written_down_run_after_run(tmp_path):
    experiment, said = describe(tmp_path), []
    experiment.folder.mkdir()
    with written_down(experiment, experiment.folder, said.append) as (log, say):
        say("40 images")
        start = TrialStarted(trial_id="00000", config={"learning_rate": 0.1}, at=AT, why="drawn at random")
        log.handle(start)
        log.handle(TrialEnded(trial_id="00000", state="failed", reason="no luck", at=AT))
        log.close()
    with pytest.raises(KeyboardInterrupt), written_down(experiment, experiment.folder, said.append):
        raise KeyboardInterrupt
    (tmp_path / "new" / "experiment.yaml").touch()
    with (tmp_path / "new" / NAME).open("ab") as log_file:
        log_file.write("▸".encode()[:2])  # cut short
    told = captune("logs", "new", "--storage", tmp_path).output.splitlines()
    assert said == ["40 images"]
    assert told[0].endswith("UTC  new starts") and told[1] == "40 images"
    assert told[2].endswith("▸ 00000 starts: drawn at random")
    assert "00000 failed" in told[3] and "no luck" in told[3]
    assert told[4].strip().startswith("0 s  1 of 6 trials done")
    assert told[5].endswith("done")
    assert told[-2].endswith("interrupted; --resume goes on")
    assert not any("\x1b" in line for line in told)


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "new" / "run.log").mkdir(parents=True)
    said, experiment = [], describe(tmp_path)
    with written_down(experiment, experiment.folder, said.append) as (log, say):
        log.handle(TrialStarted(trial_id="00000", config={"learning_rate": 0.1}, at=AT))
        log.close()
        say("still here")
    assert said == ["still here"]


def test_a_log_that_is_not_there(folder):
    assert captune("logs", folder).exit_code == 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_real_run_is_watched_followed_and_stopped(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    words = ["run", "examples/polynomial.yaml", "--storage", str(tmp_path), "--set", "budget.trials=100000"]
    command = [sys.executable, "-m", "tuning.cli"]
    with (tmp_path / "printed").open("w") as printed:
        # As a shell starts what it puts into the background: Ctrl-C does not reach it.
        run = subprocess.Popen(
            [*command, *words],
            cwd=ROOT,
            env=environment,
            stdout=printed,
            stderr=printed,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
    try:
        folder = tmp_path / "polynomial"
        while "completed" not in captune("status", folder).output:
            assert run.poll() is None, (tmp_path / "printed").read_text()
            time.sleep(0.5)
        told = lines(captune("status", folder))
        assert told["status"] == "running" and told["driver"].startswith(f"process {run.pid} on")
        assert told["best"].startswith("val_loss")
        follow = [*command, "logs", str(folder), "-f"]
        with subprocess.Popen(
            follow, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as follower:
            assert "polynomial starts" in follower.stdout.readline()
            assert "is being stopped" in captune("stop", folder).output
            assert run.wait(120) == 130
            followed = follower.communicate(timeout=30)[0]
        assert "completed" in followed and followed.endswith("interrupted; --resume goes on\n")
        assert lines(captune("status", folder))["status"] == "unfinished"
        assert captune("stop", folder).output.endswith("is not running\n")
    finally:
        if run.poll() is None:
            for process in [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]:
                process.kill()
