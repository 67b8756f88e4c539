"""A local S3, which is moto's server, and a local Redis, in an environment of their own (see `make test`)."""

import contextlib
import os
import socket
import subprocess
import time
import uuid
from pathlib import Path

import pyarrow.fs
import pytest

COMMANDS = Path(__file__).parents[1] / ".venv-servers" / "bin"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3():
    """`HOST:PORT` of an S3 server."""
    with _serving("moto_server", "-H", "127.0.0.1", "-p") as address:
        yield address


@contextlib.contextmanager
def redis():
    """`HOST:PORT` of a Redis that keeps all in memory."""
    with _serving("redis-server", "--bind", "127.0.0.1", "--save", "", "--port") as address:
        yield address


@contextlib.contextmanager
def _serving(command, *options):
    """`HOST:PORT` of a server whose last option is a port, once it answers."""
    if not (COMMANDS / command).exists():
        pytest.skip(f"no {command}: make .venv-servers/.installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [COMMANDS / command, *options, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, f"{command} ended"
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def new_bucket(address):
    """URL of a fresh bucket at the server; credentials are put into the environment."""
    os.environ.update(CREDENTIALS)
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    options = {"endpoint_override": address, "scheme": "http", "region": "us-east-1"}
    pyarrow.fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir(name)
    return f"s3://{name}/results?endpoint_override={address}&scheme=http"
