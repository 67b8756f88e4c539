"""`captune monitoring`: the files with which Prometheus and Grafana follow what runs on a cluster.

`tuning.cli` finds it by the entry points `captune.commands`. Only click is imported at the top, as there.
"""

from __future__ import annotations

import shlex
import shutil
from importlib.resources import as_file, files
from pathlib import Path

import click

#: What is shipped: the dashboard for Grafana, the rules for Prometheus.
DASHBOARD, ALERTS = "captune.json", "captune-alerts.yml"
PROMETHEUS = """\
global: {{scrape_interval: 10s, evaluation_interval: 10s}}
rule_files: [{alerts}]
scrape_configs:
  - job_name: ray
    file_sd_configs: [{{files: [{nodes}]}}]
"""


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--ray-folder",
    default=Path("/tmp/ray"),
    show_default=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Ray's temporary folder on the head node; it lists there what is to be scraped.",
)
def monitoring(folder: Path, ray_folder: Path) -> None:
    """Write into FOLDER what Prometheus and Grafana need on the cluster's head node, and say how they start.

    \b
    Example:
      captune monitoring /etc/captune
    """
    folder.mkdir(parents=True, exist_ok=True)
    with as_file(files("cluster") / "monitoring") as shipped:
        for name in (DASHBOARD, ALERTS):
            shutil.copyfile(shipped / name, folder / name)
    nodes = ray_folder / "prom_metrics_service_discovery.json"
    prometheus = PROMETHEUS.format(alerts=ALERTS, nodes=nodes)
    (folder / "prometheus.yml").write_text(prometheus, encoding="utf-8")
    grafana = ray_folder / "session_latest" / "metrics" / "grafana"
    for words in (
        ["prometheus", f"--config.file={folder / 'prometheus.yml'}"],
        ["cp", str(folder / DASHBOARD), f"{grafana / 'dashboards'}/"],
        ["grafana", "server", "--config", str(grafana / "grafana.ini")],
    ):
        click.echo(shlex.join(words))
