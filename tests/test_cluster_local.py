"""One machine as a cluster: the token, the record of what was started, and a real one from up to down."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from raylets import free_ports

from cluster import local
from cluster.cli_cluster import cluster as command
from cluster.token import ensure_token
from tuning.driver import created_after_boot_s

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in [*filter(lambda name: name.startswith("RAY_"), os.environ), "XDG_STATE_HOME"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def sleeper():
    """A process that leads a session, and a child of it that outlives it."""
    code = (
        "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print(flush=True); time.sleep(60)"
    )
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    leader.stdout.readline()
    yield leader
    for process in local.family(leader.pid):
        process.kill()
    leader.wait()
    leader.stdout.close()


def remember(folder, pid, created):
    folder.mkdir()
    cluster = local.LocalCluster(
        pid=pid,
        since_boot_s=created,
        gcs_address="127.0.0.1:1",
        dashboard="http://127.0.0.1:1",
        folder=str(folder),
    )
    with local.changing():
        local._remember(cluster)
    return cluster


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_for_its_owner_only(home):
    path = Path(ensure_token())
    assert path == home / ".ray" / "auth_token" and permissions(path) == 0o600
    token = path.read_text()
    assert len(bytes.fromhex(token)) == 32
    path.chmod(0o644)  # as Ray leaves it
    assert ensure_token() == str(path)
    assert path.read_text() == token and permissions(path) == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["auth_token"]


def test_a_token_of_ones_own_is_left_in_its_place(home, monkeypatch):
    own = home / "own"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(own))
    with pytest.raises(FileNotFoundError, match="RAY_AUTH_TOKEN_PATH"):
        ensure_token()
    own.write_text("mine")
    assert ensure_token() == str(own) and own.read_text() == "mine" and permissions(own) == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN", "said")
    assert ensure_token() == "RAY_AUTH_TOKEN"
    assert not (home / ".ray").exists()


def test_a_cluster_is_found_again_and_ended_whole(home, sleeper, monkeypatch):
    monkeypatch.setattr(local, "LEAVE_S", 0.2)
    started = remember(home / "ray", sleeper.pid, created_after_boot_s(psutil.Process(sleeper.pid)))
    assert local.find() == started and len(started.processes()) == 2
    family = started.processes()
    local.down(started)
    assert not any(local._lives(process) for process in family)
    assert local.find() is None and not (home / "ray").exists()


def test_what_a_dead_cluster_left_is_found_by_its_session(home, sleeper):
    started = remember(home / "ray", sleeper.pid, created_after_boot_s(psutil.Process(sleeper.pid)))
    sleeper.kill()
    sleeper.wait()
    assert local.find() is None
    (orphan,) = started.processes()
    local.forget()
    assert not local._lives(orphan) and not (home / "ray").exists()


def test_a_pid_that_is_used_again_is_not_touched(home, sleeper):
    remember(home / "ray", sleeper.pid, created_after_boot_s(psutil.Process(sleeper.pid)) - 100)
    assert local.find() is None
    outcome = CliRunner().invoke(command, ["down"])
    assert outcome.exit_code == 0 and "nothing was up" in outcome.output
    assert sleeper.poll() is None and len(local.family(sleeper.pid)) == 2
    assert not local.state_file().exists()


def test_nothing_up_is_told(home):
    outcome = CliRunner().invoke(command, ["status"])
    assert outcome.exit_code == 1 and "captune cluster up" in outcome.output
    local.state_file().parent.mkdir(parents=True)
    local.state_file().write_text("{}")  # of another version
    assert CliRunner().invoke(command, ["status"]).exit_code == 1


def test_a_port_in_use_is_refused_before_ray_starts(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = CliRunner().invoke(command, ["up", "--port", str(port)])
    assert outcome.exit_code == 2 and f"port {port} is in use" in outcome.output
    assert not local.state_file().exists()


def test_a_cluster_without_a_token_is_refused(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "nowhere"))
    outcome = CliRunner().invoke(command, ["up"])
    assert outcome.exit_code == 2 and "RAY_AUTH_TOKEN_PATH names" in outcome.output
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    outcome = CliRunner().invoke(command, ["up"])
    assert outcome.exit_code == 2 and "RAY_AUTH_MODE is 'disabled'" in outcome.output
    assert not local.state_file().exists()


def captune(*words):
    """In a process of its own: Ray reads a token once per process."""
    start = "from tuning.cli import main; from cluster.cli_cluster import cluster; main.add_command(cluster)"
    return subprocess.run(
        [sys.executable, "-c", f"{start}; main()", *words], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_cluster_goes_up_runs_a_job_and_goes_down(home):
    (port,) = free_ports(1)
    try:
        up = captune("cluster", "up", "--cpus", "2", "--port", str(port))
        assert up.returncode == 0, up.stdout + up.stderr
        address = f"http://127.0.0.1:{port}"
        assert f"captune submit FILE --address {address}" in up.stdout
        assert permissions(home / ".ray" / "auth_token") == 0o600
        started = local.find()
        assert f"export RAY_ADDRESS={started.gcs_address} " in up.stdout
        addresses = {
            listening.laddr.ip
            for process in started.processes()
            for listening in process.net_connections("tcp")
            if listening.status == psutil.CONN_LISTEN
        }
        assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, "nobody else can join or look on"

        again = captune("cluster", "up")
        assert again.returncode == 0 and "already up" in again.stdout and address in again.stdout

        where = ["--address", address, "--storage", str(home / "results"), "--python", sys.executable]
        done = captune("submit", "examples/polynomial.yaml", *where, "--set", "budget.trials=2", "--follow")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 of 2 trials done" in done.stdout

        told = captune("cluster", "status")
        assert told.returncode == 0, told.stdout + told.stderr
        lines = dict(line.split("  ", 1) for line in told.stdout.splitlines() if "  " in line)
        assert lines["nodes"].strip() == "1" and lines["CPU"].strip() == "0 of 2"
        assert "0 unfinished job(s)" in told.stdout

        endless = ["--set", "budget.trials=100000", "--set", "name=endless"]
        job = captune("submit", "examples/polynomial.yaml", *where, *endless).stdout.strip()
        told = captune("cluster", "status")
        assert f"{job}  RUNNING  endless" in told.stdout or f"{job}  PENDING  endless" in told.stdout

        family = started.processes()
        down = captune("cluster", "down")
        assert down.returncode == 0 and f"{job} is being stopped" in down.stdout, down.stdout + down.stderr
        assert not any(local._lives(process) for process in family)
        assert not Path(started.folder).exists() and local.find() is None
    finally:
        captune("cluster", "down")
    assert [path.name for path in local.state_file().parent.iterdir()] == ["cluster.lock"]
