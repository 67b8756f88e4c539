"""What a killed process leaves in the temporary folder, and who takes it away."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trainables.scratch import scratch_folder, sweep

WAITING = """
from trainables.scratch import scratch_folder
folder = scratch_folder()
print(folder.name, flush=True)
input()
"""


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """A process with a folder, and that folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def test_what_a_killed_process_left_is_swept_and_nothing_else(waiting, tmp_path):
    process, left = waiting
    # Of a machine whose name begins like this one's, of another, of Ray, of somebody.
    longer = left.name.replace(f"-{process.pid}-", f"-0-{process.pid}-")
    others = [tmp_path / name for name in (longer, "captune-elsewhere-1-1-x", "captune-ray-y", "mine")]
    for folder in others:
        folder.mkdir()
    with scratch_folder() as own:
        sweep()
        assert left.is_dir(), "its process lives"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert left.is_dir()
        sweep()
        assert not left.exists() and Path(own).is_dir() and all(folder.is_dir() for folder in others)
    assert not Path(own).exists()
