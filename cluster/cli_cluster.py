"""`captune cluster`: this machine as a Ray cluster, started, looked at and ended.

`tuning.cli` finds it by the entry points `captune.commands`. Only click is imported at the top, as there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cluster.cli_manifest import manifest
from tuning.commands.parts import UserMistake, WorkFailed

if TYPE_CHECKING:
    from cluster.jobs import JobServer
    from cluster.local import LocalCluster

ANSWER_S = 60.0
GIGABYTES = {"memory": "memory (GB)", "objectStoreMemory": "object store (GB)"}


@click.group()
def cluster() -> None:
    """This machine as a Ray cluster that stays up, for jobs one after the other or side by side.

    \b
    Examples:
      captune cluster up
      captune submit photos.yaml --address http://127.0.0.1:8265 --storage ~/results --follow
      captune cluster status
      captune cluster down
    """


cluster.add_command(manifest)


@cluster.command()
@click.option(
    "--port", default=8265, show_default=True, type=click.IntRange(1024, 65535), help="Of the dashboard."
)
@click.option("--cpus", type=click.IntRange(1), help="Cores to offer; default: all.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to offer; default: all.")
def up(port: int, cpus: int | None, gpus: int | None) -> None:
    """Start a Ray head node here and leave it running; dashboard on loopback, token made if there is none.

    \b
    Example:
      captune cluster up --cpus 8
    """
    from cluster import local
    from cluster.token import ensure_token

    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        raise UserMistake(
            f"RAY_AUTH_MODE is {os.environ['RAY_AUTH_MODE']!r}, but this cluster asks for a token: unset it"
        )
    try:
        token = ensure_token()
    except FileNotFoundError as error:
        raise UserMistake(str(error)) from error
    with local.changing():
        found = local.find()
        if found is None:
            try:
                found = local.up(port=port, cpus=cpus, gpus=gpus)
            except local.PortTaken as error:
                raise UserMistake(str(error)) from error
            except local.StartFailed as error:
                raise WorkFailed(str(error)) from error
            _await_server(found)
        else:
            click.echo("it is already up")
    _say(_ways_in(found) | {"token": token})


@cluster.command()
def status() -> None:
    """Show what the cluster of this machine has, what of it is used, and which experiments run.

    \b
    Example:
      captune cluster status
    """
    found, server = _running()
    with _telling():
        _say(_ways_in(found) | _usage(server))
        jobs = server.unfinished()
    click.echo(f"\n{len(jobs)} unfinished job(s)")
    for job in jobs:
        about = job.metadata or {}
        click.echo(f"{job.submission_id}  {job.status.value}  {about.get('experiment', job.entrypoint)}")


@cluster.command()
def down() -> None:
    """End what `up` started, and nothing else; jobs that run are ended in good order before it.

    \b
    Example:
      captune cluster down
    """
    from cluster import local

    with local.changing():
        found = local.find()
        if found is None:
            local.forget()
            click.echo("nothing was up")
            return
        with contextlib.suppress(OSError, RuntimeError):  # what does not answer is ended all the same
            _stop_jobs(found)
        local.down(found)
    click.echo(f"{found.dashboard} is down")


def _running() -> tuple[LocalCluster, JobServer]:
    from cluster import local
    from cluster.jobs import JobServer

    found = local.find()
    if found is None:
        raise WorkFailed("no cluster is up here: captune cluster up starts one")
    with _telling():
        return found, JobServer(found.dashboard)


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """What the dashboard refuses, or does not answer, becomes a message."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise WorkFailed(str(error)) from error


def _await_server(found: LocalCluster) -> None:
    """The dashboard takes jobs some seconds after the head node is up."""
    from cluster.jobs import JobServer

    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            JobServer(found.dashboard).unfinished()
            return
        except ConnectionError as error:
            if time.monotonic() > deadline:
                raise WorkFailed(f"{error}; captune cluster down ends it") from error
            time.sleep(0.5)


def _stop_jobs(found: LocalCluster) -> None:
    from cluster.jobs import STOP_WAIT_S, JobServer

    server, deadline = JobServer(found.dashboard), time.monotonic() + STOP_WAIT_S
    for name in [job.submission_id or "" for job in server.unfinished()]:
        click.echo(f"{name} is being stopped")
        server.stop(name)
    while server.unfinished() and time.monotonic() < deadline:
        time.sleep(0.5)


def _ways_in(found: LocalCluster) -> dict[str, str]:
    from cluster.local import LOOPBACK_ONLY

    environment = {"RAY_ADDRESS": found.gcs_address, **LOOPBACK_ONLY}
    return {
        "dashboard": found.dashboard,
        "submit": f"captune submit FILE --address {found.dashboard}",
        "join": f"export {' '.join(f'{name}={value}' for name, value in environment.items())}",
    }


def _usage(server: JobServer) -> dict[str, str]:
    """The number of nodes, and `USED of TOTAL` by resource."""
    shown = {"nodes": f"{len(server.node_names())}"}
    for name, (used, total) in sorted(server.usage().items()):
        if name in GIGABYTES:
            shown[GIGABYTES[name]] = f"{used / 1e9:.3g} of {total / 1e9:.3g}"
        elif not name.startswith("node:"):
            shown[name] = f"{used:g} of {total:g}"
    return shown


def _say(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {value}")
