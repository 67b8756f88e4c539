"""The head of a cluster is killed and started again: with its state in a Redis, the run goes on."""

import subprocess
import sys
import time

import pytest
from line import begun
from raylets import APART, Raylets
from servers import redis
from test_cluster_of_three import EPOCHS, assert_nothing_left, assert_nothing_lost, captune, wait_for_epochs

# Of experiments of gangs of two workers, on the two nodes that are not the head.
from test_cluster_of_three import experiment as experiment


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_survives_the_restart_of_a_head_with_external_storage(tmp_path, experiment):
    if subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make PID namespaces")
    (file, diary), log = experiment, tmp_path / "log"
    with redis() as address, Raylets(3, head_cpus=0, apart=True, RAY_REDIS_ADDRESS=address) as cluster:
        command = captune(
            "submit", str(file), "--python", sys.executable, "--off-head", cluster=cluster, log=log
        )
        assert command.wait(60) == 0, log.read_text()
        job = log.read_text().split()[0]
        following = captune("logs", job, "-f", cluster=cluster, log=log)
        wait_for_epochs(EPOCHS + 2, diary, following, log)
        cluster.restart_head(down_s=2)
        assert following.wait(60) == 1, "it ends with the head"
        deadline = time.monotonic() + 200
        while state(job, cluster, tmp_path) not in ("SUCCEEDED", "FAILED"):
            assert time.monotonic() < deadline, begun(diary)
            time.sleep(1)
        assert state(job, cluster, tmp_path) == "SUCCEEDED", log.read_text()
        results, repeated = assert_nothing_lost(tmp_path / "results" / "line", diary)
        assert len(repeated) <= 1 and set(repeated.values()) <= {2}
        assert_nothing_left(cluster)


def state(job, cluster, folder):
    """Of a job, as `captune status` tells it."""
    log = folder / "status"
    captune("status", job, cluster=cluster, log=log).wait(60)
    return next((word for word in log.read_text().split() if word.isupper()), "")
