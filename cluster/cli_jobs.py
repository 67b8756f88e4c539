"""The commands around jobs of a Ray cluster: submit; status, logs, stop, of runs that are no jobs as well.

`tuning.cli` finds them by the entry points `captune.commands`. Only click is imported at the top, as there.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tuning.commands import local
from tuning.commands.parts import (
    UserMistake,
    WorkFailed,
    file_argument,
    set_option,
    storage_option,
    with_storage,
)

if TYPE_CHECKING:
    from cluster.jobs import JobServer

_job = click.argument("job")


def _is_url(context: click.Context, parameter: click.Parameter, address: str | None) -> str | None:
    if address is not None and not address.startswith(("http://", "https://")):
        raise click.BadParameter(f"must be the dashboard's, as in http://HEAD:8265, but got {address!r}")
    return address


def _address(*, required: bool) -> Callable[..., Any]:
    elsewhere = "" if required else " Without it, JOB is an experiment that was run here."
    return click.option(
        "--address",
        required=required,
        envvar="RAY_API_SERVER_ADDRESS",
        show_envvar=True,
        callback=_is_url,
        metavar="URL",
        help=f"The dashboard of the cluster's head node, as in http://HEAD:8265.{elsewhere}",
    )


@click.command()
@file_argument
@_address(required=True)
@click.option("--follow", is_flag=True, help="Show what the job prints, to its end; end as it does.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run; finished trials are kept.")
@set_option
@click.option(
    "--storage",
    metavar="DIR",
    help="For the results: a folder that every machine of the cluster sees, or a URL such as s3://bucket/results.",
)
@click.option(
    "--python",
    default="python",
    show_default=True,
    metavar="PATH",
    help="The interpreter on the driver's node.",
)
@click.option(
    "--off-head",
    is_flag=True,
    help="Run the driver on another node: it survives the head, where that keeps its state in Redis.",
)
def submit(
    file: str,
    address: str,
    follow: bool,
    resume: bool,
    overrides: tuple[str, ...],
    storage: str | None,
    python: str,
    off_head: bool,
) -> None:
    """Run the experiment in FILE as a job of a Ray cluster, and print the job's id.

    FILE and this version of the code are sent along; what they require must be installed there. Places in
    FILE (`storage`, `data.path`) must be folders that every machine of the cluster sees; `storage` may be a
    URL, too.

    \b
    Examples:
      captune submit photos.yaml --address http://head:8265 --storage /shared/results
      captune submit photos.yaml --address http://head:8265 --resume --follow
    """
    from cluster.jobs import load_for_cluster

    options = [word for override in overrides for word in ("--set", override)]
    options += [] if storage is None else ["--storage", storage]
    options += ["--resume"] if resume else []
    experiment = load_for_cluster(file, with_storage(overrides, storage))
    with _talking_to(address) as server:
        job = server.submit(experiment, file, options=options, python=python, off_head=off_head)
        click.echo(job)
        if follow:
            _follow(server, job)


@click.command()
@_job
@_address(required=False)
@storage_option
def status(job: str, address: str | None, storage: str) -> None:
    """Show how JOB stands, and what it is about: a job of a cluster, or a run on this machine by its name.

    \b
    Examples:
      captune status raysubmit_4LamXRuQpYdSMg7J --address http://head:8265
      captune status photos
    """
    if address is None:
        local.show_status(job, storage)
        return
    with _talking_to(address) as server:
        found = server.details(job)
    lines = {"status": found.status.value, "message": found.message, **(found.metadata or {})}
    for name, milliseconds in (("started", found.start_time), ("ended", found.end_time)):
        if milliseconds:
            lines[name] = f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    for name, value in lines.items():
        click.echo(f"{name:<10}  {value}")


@click.command()
@_job
@click.option("-f", "--follow", is_flag=True, help="Go on to the job's end; end as it does.")
@_address(required=False)
@storage_option
def logs(job: str, follow: bool, address: str | None, storage: str) -> None:
    """Show what JOB printed: a job of a cluster, or the runs of an experiment on this machine.

    \b
    Examples:
      captune logs raysubmit_4LamXRuQpYdSMg7J -f --address http://head:8265
      captune logs photos -f
    """
    if address is None:
        local.show_log(job, storage, follow=follow)
        return
    with _talking_to(address) as server:
        if follow:
            _follow(server, job)
        else:
            click.echo(server.log(job), nl=False)


@click.command()
@_job
@_address(required=False)
@storage_option
def stop(job: str, address: str | None, storage: str) -> None:
    """End JOB in good order, as Ctrl-C ends a run; --resume goes on from there.

    \b
    Examples:
      captune stop raysubmit_4LamXRuQpYdSMg7J --address http://head:8265
      captune stop photos
    """
    if address is None:
        local.stop_run(job, storage)
        return
    with _talking_to(address) as server:
        stopping = server.stop(job)
        state = server.details(job).status.value
    click.echo(f"{job} is being stopped" if stopping else f"{job} had ended: {state}")


@contextlib.contextmanager
def _talking_to(address: str) -> Iterator[JobServer]:
    """The job server at `address`; its refusals become messages and exit codes."""
    from cluster.jobs import JobServer, NoOtherNode, UnknownJob

    try:
        yield JobServer(address)
    except (NoOtherNode, UnknownJob) as error:
        raise UserMistake(str(error)) from error
    except (ConnectionError, RuntimeError) as error:
        raise WorkFailed(str(error)) from error


def _follow(server: JobServer, job: str) -> None:
    try:
        ended = server.follow(job, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        ends = shlex.join(["captune", "stop", job, "--address", server.address])
        click.echo(f"{job} goes on; {ends} ends it", err=True)
        click.get_current_context().exit(130)
    if ended.status.value != "SUCCEEDED":
        raise WorkFailed(f"{job}: {ended.status.value}: {ended.message}")
