"""Experiments as jobs of a Ray cluster: what is sent to its head node, and how a job is asked after.

Ray's job server runs a command on the head node, in a folder that was sent along and that every worker of the
job gets, too. The command is `captune run`; it joins its own cluster by the `RAY_ADDRESS` that Ray sets.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import shlex
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.metadata import job_metadata
from trainables.store import is_url, local
from trainables.trial import SHIPPED
from tuning.experiment import Experiment, ExperimentError
from tuning.experiment_file import read_experiment_file

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

#: Packages of this project; every job runs the code of who submits it.
CODE = ("tuning", "trainables", "search_spaces", "cluster")
#: What tells, in passing, of uploads and connections.
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
#: Seconds between SIGTERM and SIGKILL. Ray's 3 are too few to end trials and write the tables.
STOP_WAIT_S = 60


class UnknownJob(LookupError):
    """The job server knows no job of that name."""


class NoOtherNode(LookupError):
    """The cluster has no node but its head."""


class TokenRefused(PermissionError):
    """The cluster wants another token than the one it was given, or one at all."""


def load_for_cluster(file: str, overrides: Sequence[str] = ()) -> Experiment:
    """The validated experiment in `file`; refuses places that only the submitting machine knows.

    Data that are not on this machine are looked at by the head node, when the run starts.

    Raises:
        ExperimentError: a relative `storage` or `data.path`, or such a folder in `search.from`; all that
            `Experiment.load` refuses.
    """
    tree, source = read_experiment_file(Path(file), overrides)
    data, search = (part if isinstance(part, dict) else {} for part in map(tree.get, ("data", "search")))
    sources = search.get("from")
    written: dict[tuple[str | int, ...], Any] = {
        ("storage",): tree.get("storage", Experiment.model_fields["storage"].default),
        ("data", "path"): data.get("path"),
        **{
            ("search", "from", index): place
            for index, place in enumerate(sources if isinstance(sources, list) else [])
            if isinstance(place, str) and not _is_name(place)
        },
    }
    rule = "must start with /: name a folder that every machine of the cluster sees under that path"
    also: dict[tuple[str | int, ...], str] = {
        ("storage",): ", or the URL of an object store, as in s3://bucket/results"
    }
    problems = [
        source.problem(key, f"got {place!r}: {rule}{also.get(key, '')}")
        for key, place in written.items()
        if isinstance(place, str) and not Path(local(place)).is_absolute()
        if not (is_url(place) and key == ("storage",))
    ]
    if problems:
        raise ExperimentError(problems)
    path = data.get("path") if isinstance(data, dict) else None
    return Experiment.load(file, overrides, data_is_here=path is None or Path(str(path)).exists())


def _is_name(place: str) -> bool:
    """Whether `search.from` has here an experiment in `storage`, not a folder or a table."""
    return Path(place).name == place and not place.startswith(("~", ".")) and not place.endswith(".parquet")


def pack(file: str, trainable: str, folder: Path) -> None:
    """Put into `folder` what a job needs: the experiment file, this project's code, a trainable of one's own.

    The trainable's module goes with the modules beside it, its package as a whole, but only files of Python;
    what is installed is expected on the cluster, as are all requirements.
    """
    shutil.copy(file, folder)
    for name in CODE:
        _copy_code(_location(name), folder / name)
    # Entry points are how `tuning` finds `cluster`: the cluster need not have this project installed.
    ours = distribution("captune")
    metadata = folder / f"captune-{ours.version}.dist-info"
    metadata.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (metadata / name).write_text(ours.read_text(name) or "", encoding="utf-8")
    own = trainable.partition(":")[0].partition(".")[0]
    if trainable in SHIPPED or own in CODE:
        return
    location = _location(own)
    if Path(sysconfig.get_path("purelib")) in location.parents:
        return
    if location.is_dir():
        _copy_code(location, folder / own)
    else:
        for module in location.parent.glob("*.py"):
            if module.is_file() and module.name[0] != ".":  # an editor's lock is a link to nowhere
                shutil.copy(module, folder)


def _location(name: str) -> Path:
    """Where a top-level package (a folder) or module (a file) is imported from."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    found = next(iter(spec.submodule_search_locations or []), spec.origin)
    assert found is not None, name
    return Path(found)


def _copy_code(package: Path, target: Path) -> None:
    def no_code(parent: str, names: list[str]) -> list[str]:
        folders = {name for name in names if Path(parent, name).is_dir()} - {"__pycache__"}
        return [name for name in names if name[0] == "." or not (name.endswith(".py") or name in folders)]

    shutil.copytree(package, target, ignore=no_code)


class JobServer:
    """The job server of a Ray cluster, part of its dashboard.

    The token is found as Ray finds it: `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, then `~/.ray/auth_token`;
    `RAY_AUTH_MODE=disabled` sends none.

    Raises (from everything here):
        TokenRefused: no token, or the wrong one.
        ConnectionError: nothing answers, or no job server does.
        RuntimeError: the server answers with an error of its own.
    """

    def __init__(self, address: str):
        from ray._private.authentication.authentication_token_setup import (
            maybe_enable_token_auth_if_token_available,
        )
        from ray.job_submission import JobSubmissionClient

        self.address = address
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets it win over its argument
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._asking():
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            self._client = JobSubmissionClient(address)

    def submit(
        self,
        experiment: Experiment,
        file: str,
        *,
        options: Sequence[str],
        python: str,
        off_head: bool = False,
    ) -> str:
        """Send `file` and the code, and have a node run them; returns the job's id.

        Args:
            experiment: what `file` and `options` say; it becomes the job's metadata.
            options: of `captune run`.
            python: the interpreter on that node, a path or a name on its PATH.
            off_head: any node but the head, with which the driver would end; else the head.

        Raises:
            NoOtherNode: there is none.
        """
        command = [python, "-m", "tuning.cli", "run", Path(file).name, *options]
        with tempfile.TemporaryDirectory() as folder:
            pack(file, experiment.trainable, Path(folder))
            with self._asking():
                return self._client.submit_job(
                    entrypoint=shlex.join(command),
                    runtime_env={
                        "working_dir": folder,
                        "env_vars": {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                    },
                    metadata=job_metadata(experiment),
                    entrypoint_label_selector=self._not_the_head() if off_head else None,
                )

    def details(self, job: str) -> JobDetails:
        """Ray's record of a job: `status`, `message`, `metadata`, times in ms.

        Raises:
            UnknownJob: there is none of that name.
        """
        with self._asking(job):
            return self._client.get_job_info(job)

    def unfinished(self) -> list[JobDetails]:
        """Ray's records of the jobs that run or wait, the oldest first."""
        with self._asking():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(
            (job for job in found if not job.status.is_terminal()), key=lambda job: job.start_time or 0
        )

    def node_names(self) -> list[str]:
        """Names of the nodes that are alive."""
        return sorted(node["node_name"] for node in self._nodes())

    def _nodes(self) -> list[dict[str, Any]]:
        with self._asking():
            answer = self._client._do_request("GET", "/api/v0/nodes").json()
        return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]

    def _not_the_head(self) -> dict[str, str]:
        """The labels of all nodes but the head."""
        nodes = self._nodes()
        heads = [node["node_id"] for node in nodes if node["is_head_node"]]
        if len(nodes) == len(heads):
            raise NoOtherNode(
                f"--off-head: the cluster at {self.address} has no node but its head; leave it out"
            )
        return {"ray.io/node-id": f"!in({','.join(heads)})"}

    def usage(self) -> dict[str, tuple[float, float]]:
        """Of every resource of the cluster, how much is used and how much there is, some seconds ago.

        Their names are as the dashboard writes them: `CPU`, `GPU`, `memory` and `objectStoreMemory` (bytes);
        every node's own resource begins with `node:`.
        """
        with self._asking():
            answer = self._client._do_request("GET", "/api/cluster_status").json()
        report = (answer["data"]["clusterStatus"] or {}).get("loadMetricsReport") or {}
        return {name: (used, total) for name, (used, total) in report.get("usage", {}).items()}

    def log(self, job: str) -> str:
        """What the job printed so far. Raises as `details` does."""
        with self._asking(job):
            return self._client.get_job_logs(job)

    def follow(self, job: str, say: Callable[[str], None]) -> JobDetails:
        """Tell `say` what the job prints, from its beginning to its end. Raises as `details` does."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job):
                say(text)

        self.details(job)
        with self._asking(job):
            asyncio.run(tail())
        return self.details(job)

    def stop(self, job: str) -> bool:
        """Ask a job to end in good order, as Ctrl-C does; False where it had ended. Raises as `details`."""
        with self._asking(job):
            return self._client.stop_job(job)

    @contextlib.contextmanager
    def _asking(self, job: str = "") -> Iterator[None]:
        """Turn what Ray raises into what a user can act on."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise TokenRefused(
                f"{self.address} refused the token: put the cluster's into ~/.ray/auth_token or name "
                "its file in RAY_AUTH_TOKEN_PATH"
            ) from error
        except OSError as error:
            raise ConnectionError(
                f"no Ray job server answers at {self.address}: name the head node and the port of its "
                "dashboard, as in http://HEAD:8265"
            ) from error
        except RuntimeError as error:
            if job and "status code 404" in str(error):
                raise UnknownJob(f"no job {job!r} at {self.address}") from error
            raise
