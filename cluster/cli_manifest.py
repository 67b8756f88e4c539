"""The command `captune cluster manifest`: files that start a Ray cluster elsewhere, as they ship.

They lie in `cluster/manifests/`; each says at its top what it needs and how it is used.
"""

from __future__ import annotations

from importlib.resources import files

import click

#: What is shipped, by the name that the command takes.
MANIFESTS = {
    "image": "Dockerfile",
    "kuberay-cluster": "kuberay_cluster.yaml",
    "kuberay-job": "kuberay_job.yaml",
    "ray-up-aws": "ray_up_aws.yaml",
    "ray-up-local": "ray_up_local.yaml",
    "slurm": "slurm.sh",
}


def read_manifest(name: str) -> str:
    """The text of a manifest; `name` is a key of `MANIFESTS`."""
    return (files("cluster") / "manifests" / MANIFESTS[name]).read_text(encoding="utf-8")


@click.command()
@click.argument("name", type=click.Choice(list(MANIFESTS)))
def manifest(name: str) -> None:
    """Print the file NAME, which starts a Ray cluster on Kubernetes, Slurm or machines reached by SSH.

    Its first lines say how it is used; words in capitals are to be filled in.

    \b
    Examples:
      captune cluster manifest kuberay-job > job.yaml
      captune cluster manifest slurm > slurm.sh
    """
    click.echo(read_manifest(name), nl=False)
