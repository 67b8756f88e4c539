"""A local S3: moto's server, in an environment of its own (`make .venv-s3/.installed`)."""

import contextlib
import os
import socket
import subprocess
import time
import uuid
from pathlib import Path

import pyarrow.fs
import pytest

SERVER = Path(__file__).parents[1] / ".venv-s3" / "bin" / "moto_server"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def serving():
    """`HOST:PORT` of a server, once it answers."""
    if not SERVER.exists():
        pytest.skip("no local S3 server: make .venv-s3/.installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [SERVER, "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, "the S3 server ended"
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
