"""The Grafana dashboard and the alert rules: read by real parsers, and held to the metrics that there are."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml
from click.testing import CliRunner
from test_readme import table

from cluster.cli_monitoring import ALERTS, DASHBOARD, monitoring
from cluster.metrics import METRICS, PREFIX

FOLDER = Path(__file__).parent.parent / "cluster" / "monitoring"
BOARD = json.loads((FOLDER / DASHBOARD).read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / ALERTS).read_text())["groups"] for rule in group["rules"]]
KNOWN = {PREFIX + metric.name: metric for metric in METRICS}
PANELS = {panel["title"]: panel for panel in BOARD["panels"] if panel["type"] == "timeseries"}
STATS = {f"{panel['title']} now": panel for panel in BOARD["panels"] if panel["type"] == "stat"}
QUERIES = {title: panel["targets"][0]["expr"] for title, panel in (PANELS | STATS).items()}
QUERIES |= {rule["alert"]: rule["expr"] for rule in RULES}


def parsed(query):
    return promql_parser.parse(query.replace("$window", "5m"))


class Parts(list):
    """All parts of a query, from the outside in."""

    def __init__(self, query):
        super().__init__()
        promql_parser.walk(parsed(query), lambda part: self.append(part) or True)

    def of(self, kind):
        return [part for part in self if isinstance(part, kind)]


@pytest.mark.parametrize("title", QUERIES)
def test_queries_ask_for_what_there_is(title):
    parts = Parts(QUERIES[title])
    selectors = parts.of(promql_parser.VectorSelector)
    assert selectors
    for selector in selectors:
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= set(KNOWN[selector.name].tags), selector.name
    grouped = {label for part in parts.of(promql_parser.AggregateExpr) for label in part.modifier.labels}
    assert grouped <= {tag for selector in selectors for tag in KNOWN[selector.name].tags}


@pytest.mark.parametrize("title", QUERIES)
def test_only_what_grows_has_a_rate(title):
    for call in Parts(QUERIES[title]).of(promql_parser.Call):
        if call.func.name in ("rate", "increase"):
            (over,) = call.args
            assert KNOWN[over.vector_selector.name].grows, over.vector_selector.name


def test_every_metric_is_shown():
    shown = {
        selector.name
        for title in QUERIES
        for selector in Parts(QUERIES[title]).of(promql_parser.VectorSelector)
    }
    assert shown == set(KNOWN)


def test_a_query_that_is_wrong_is_noticed():
    with pytest.raises(ValueError, match="parenthesis"):
        parsed("sum by (gang) (rate(ray_captune_epochs[5m])")


@pytest.mark.parametrize("panel", BOARD["panels"], ids=lambda panel: panel["title"])
def test_legends_name_what_is_told_apart(panel):
    (target,) = panel["targets"]
    (outermost, *_) = Parts(target["expr"]).of(promql_parser.AggregateExpr)
    assert re.findall(r"{{(\w+)}}", target["legendFormat"]) == outermost.modifier.labels


def test_panels_fill_their_rows_without_overlap():
    taken = [
        (x, y)
        for at in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(taken) == len(set(taken)) == 24 * (1 + max(y for _, y in taken))
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def lost(before, after, place=""):
    """What `after` has not, or otherwise, of `before`."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            each
            for key, value in before.items()
            for each in (lost(value, after[key], f"{place}.{key}") if key in after else [f"{place}.{key}"])
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = zip(before, after, strict=True)
        return [each for n, (a, b) in enumerate(pairs) for each in lost(a, b, f"{place}[{n}]")]
    return [] if before == after else [place]


def through_grafana(board):
    """A dashboard read into the types of Grafana's own schema (Foundation SDK) and written again."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(board)))


def test_grafanas_schema_knows_every_key():
    assert lost(BOARD, through_grafana(BOARD)) == []
    panel = BOARD["panels"][-1]
    strange = panel | {
        "fieldConfig": {"defaults": {"units": "s", "custom": {"lineWidht": 2}}, "overrides": []}
    }
    places = lost(strange, through_grafana(BOARD | {"panels": [strange]})["panels"][0])
    assert places == [".fieldConfig.defaults.units", ".fieldConfig.defaults.custom.lineWidht"]


def test_the_alert_rules_fire_when_they_should(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (Debian: apt install prometheus)")
    cases = tmp_path / "cases.yml"
    text = (Path(__file__).parent / "alert_rules.yml").read_text()
    cases.write_text(text.replace("RULES", str(FOLDER / ALERTS)))
    told = subprocess.run([promtool, "test", "rules", cases], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_readme_explains_every_metric():
    told = [[f"`{each.name}`", f"`{each.tag}`" if each.tag else "", each.meaning] for each in METRICS]
    assert table("Watching") == told


def test_the_command_writes_what_prometheus_reads(tmp_path):
    to = tmp_path / "mon dir"
    outcome = CliRunner().invoke(monitoring, [str(to), "--ray-folder", "/scratch/ray"])
    assert outcome.exit_code == 0, outcome.output
    assert {path.name for path in to.iterdir()} == {DASHBOARD, ALERTS, "prometheus.yml"}
    config = yaml.safe_load((to / "prometheus.yml").read_text())
    assert config["rule_files"] == [ALERTS]
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": ["/scratch/ray/prom_metrics_service_discovery.json"]}]
    assert f"cp '{to / DASHBOARD}' /scratch/ray/session_latest/metrics/grafana/dashboards/" in outcome.output
