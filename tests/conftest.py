"""One Ray for the whole test session, two cores, as on the machines that CI runs on."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts this in the background has SIGINT ignored, by the commands that tests interrupt, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cluster():
    """Connected to a Ray of this machine; with two cores."""
    here = [os.getcwd(), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(here)
    from cluster.connect import connect

    with connect("local", cpus=2):
        yield
