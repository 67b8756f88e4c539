"""The shipped manifests: valid by the schemas of their readers, and about commands that there are."""

import copy
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jsonschema
import psutil
import pytest
import yaml
from click.testing import CliRunner
from kuberay_schemas import validator
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.cli_manifest import MANIFESTS, manifest, read_manifest
from tuning.cli import main

ROOT = Path(__file__).parent.parent
IMAGE = f"REGISTRY/captune:{version('captune')}"
KUBERAY = {"kuberay-cluster": "RayCluster", "kuberay-job": "RayJob"}
RAY_UP = ("ray-up-aws", "ray-up-local")
#: Maps whose keys no schema can know.
FREE = {"labels", "rayStartParams", "requests", "limits", "resources", "node_config", "file_mounts"}


def parsed(name):
    return yaml.safe_load(read_manifest(name))


def check_kuberay(name, document):
    validator(KUBERAY[name]).validate(document)


def check_ray_up(name, document):
    """As `ray up` does, with the provider's defaults filled in."""
    validate_config(prepare_config(copy.deepcopy(document)))


def check(name, document):
    (check_kuberay if name in KUBERAY else check_ray_up)(name, document)


def misspelt(tree):
    """`tree` once for each key that a schema can know, with that key misspelt."""

    def keys(node, path):
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in pairs:
            if isinstance(node, dict):
                yield (*path, key)
            if key not in FREE:
                yield from keys(value, (*path, key))

    for path in keys(tree, ()):
        wrong = copy.deepcopy(tree)
        parent = wrong
        for key in path[:-1]:
            parent = parent[key]
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        yield path, wrong


@pytest.mark.parametrize("name", RAY_UP)
def test_the_dashboard_listens_on_loopback(name):
    """Also where the provider's defaults are filled in: Ray's for AWS open it to everybody."""
    (start,) = [each for each in prepare_config(parsed(name))["head_start_ray_commands"] if "--head" in each]
    assert "dashboard-host" not in start and "--autoscaling-config" in start


@pytest.mark.parametrize("name", [*KUBERAY, *RAY_UP])
def test_manifests_are_valid(name):
    check(name, parsed(name))


def test_a_head_that_keeps_its_state_is_three_marks_away():
    text = re.sub(r"^  # (?=gcsFault|  redis)", "  ", read_manifest("kuberay-cluster"), flags=re.MULTILINE)
    document = yaml.safe_load(text)
    assert document["spec"]["gcsFaultToleranceOptions"]["redisAddress"] == "REDIS:6379"
    check_kuberay("kuberay-cluster", document)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", KUBERAY)
def test_every_misspelt_key_of_a_kubernetes_resource_is_refused(name):
    known = validator(KUBERAY[name])
    tried = dict(misspelt(parsed(name)))
    assert len(tried) > 60
    assert [path for path, wrong in tried.items() if known.is_valid(wrong)] == []


@pytest.mark.parametrize("name", RAY_UP)
def test_every_misspelt_key_of_a_cluster_file_is_refused(name):
    accepted = []
    for path, wrong in misspelt(parsed(name)):
        try:
            check_ray_up(name, wrong)
        except Exception:  # whatever Ray says, it does not go on
            continue
        accepted.append(path)
    names = {("available_node_types", "gpu")}  # may be any, and it is not referred to
    # Ray's schema leaves what a provider wants to the provider.
    assert [path for path in accepted if path[0] != "provider" and path not in names] == []


@pytest.mark.parametrize(
    "path, value",
    [
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "eight"),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (
            (
                "spec",
                "workerGroupSpecs",
                0,
                "template",
                "spec",
                "containers",
                0,
                "resources",
                "limits",
                "cpu",
            ),
            "x",
        ),
        (("metadata", "name"), "Captune"),
    ],
)
def test_wrong_values_of_a_kubernetes_resource_are_refused(path, value):
    document = parsed("kuberay-cluster")
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_kuberay("kuberay-cluster", document)


def pods(name):
    """Pod specs of a manifest of KubeRay, the head's first."""
    spec = parsed(name)["spec"]
    spec = spec.get("rayClusterSpec", spec)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return spec, [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("name", KUBERAY)
def test_a_cluster_on_kubernetes_has_what_a_run_needs(name):
    spec, (head, worker) = pods(name)
    assert spec["rayVersion"] == version("ray")
    assert spec["authOptions"]["mode"] == "token" and spec["enableInTreeAutoscaling"] is True
    (group,) = spec["workerGroupSpecs"]
    assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in (head, worker):
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert set(mounts) == {each["name"] for each in pod["volumes"]}
        environment = {each["name"]: each["value"] for each in container["env"]}
        assert environment["CAPTUNE_CACHE"] == mounts["cache"]
        assert mounts["shared"] == "/shared"
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits == requests
        assert ("nvidia.com/gpu" in limits) == (pod is worker)
    gang_labels = {"volcano.sh/queue-name", "ray.io/gang-scheduling-enabled", "yunikorn.apache.org/app-id"}
    assert gang_labels < set(parsed(name)["metadata"]["labels"])


def run_options(words):
    """What `captune run` understands of a command line; refuses what it does not."""
    assert words[:2] == ["captune", "run"]
    file, *options = words[2:]
    command = main.commands["run"]
    with command.make_context("run", [str(ROOT / "examples" / "shapes.yaml"), *options]) as context:
        return {**context.params, "file": file}


def test_the_job_runs_captune_with_paths_that_its_pods_have():
    spec = parsed("kuberay-job")["spec"]
    asked = run_options(shlex.split(spec["entrypoint"]))
    assert asked["resume"], "a second attempt would be refused"
    _, (head, _) = pods("kuberay-job")
    mounts = {each["mountPath"] for each in head["containers"][0]["volumeMounts"]}
    paths = [asked["file"], asked["storage"], *(each.partition("=")[2] for each in asked["overrides"])]
    assert all(f"/{path.split('/')[1]}" in mounts for path in paths)
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["PYTHONUNBUFFERED"] == "1"


@pytest.mark.parametrize("name", RAY_UP)
def test_a_cluster_file_starts_containers_with_token_cache_and_shared_folder(name):
    document = parsed(name)
    options = shlex.split(" ".join(document["docker"]["run_options"]))
    assert document["docker"]["image"] == IMAGE
    assert "RAY_AUTH_MODE=token" in options and "CAPTUNE_CACHE=/cache" in options
    mounts = dict(each.split(":")[::-1] for each in options if re.match(r"/.+:/", each))
    assert mounts["/shared"] == "/shared" and mounts["/cache"] in " ".join(
        document["initialization_commands"]
    ).replace("~", "/home/ubuntu")
    assert document["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_the_image_has_the_versions_that_are_tested_and_every_package():
    text = read_manifest("image")
    assert f"FROM rayproject/ray:{version('ray')}-py311-gpu" in text
    assert IMAGE in text
    copied = [word for line in re.findall("^COPY (.*)", text, re.M) for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    packages = re.search(r"packages = (\[.*\])", (ROOT / "pyproject.toml").read_text())
    assert set(yaml.safe_load(packages[1])) < set(copied)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_command_prints_them_and_they_name_commands_that_there_are(name):
    printed = CliRunner().invoke(manifest, [name])
    assert printed.exit_code == 0 and printed.output == read_manifest(name)
    for line in re.findall(r"(?:^#   |\n {4})(captune .*)", printed.output):
        command = main.commands[shlex.split(line)[1]]
        assert command is not None
    unknown = CliRunner().invoke(manifest, ["kuberay-jobs"])
    assert unknown.exit_code == 2 and "kuberay-job" in unknown.output


SLURM = str(ROOT / "cluster" / "manifests" / "slurm.sh")


def test_the_slurm_script_is_sound():
    assert subprocess.run(["bash", "-n", SLURM]).returncode == 0
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run([shellcheck, SLURM], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


#: Stand-ins on PATH: each writes down its words; those that stay until they are ended do so, too.
FAKES = {
    "scontrol": 'if [ "$1" = show ]; then tr "," "\\n" <<< "$3"; fi',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "ray": 'if [ "$1" = start ]; then echo "pid $$" >> "$LOG"; exec sleep 60; fi; '
    'grep -q "ray start.*--head" "$LOG"',
    "python": "cat > /dev/null",
    "captune": 'stat -c "token %a $RAY_AUTH_MODE" "$RAY_AUTH_TOKEN_PATH" >> "$LOG"; eval "$RUN"',
    "rm": 'exec /bin/rm "$@"',
}


@pytest.fixture
def slurm(tmp_path):
    """Starts the script as Slurm would on some nodes; gives the process and how to read what was called."""
    tools = tmp_path / "venv" / "bin"
    tools.mkdir(parents=True)
    for name, body in FAKES.items():
        script = f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> "$LOG"\n{body}\n'
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    started = []

    def start(nodes, run="true", words=("photos.yaml", "--set", "a b=1")):
        environment = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "USER": "ada",
            "LOG": str(log),
            "RUN": run,
            "CAPTUNE_VENV": str(tmp_path / "venv"),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": nodes,
            "SLURM_CPUS_PER_TASK": "16",
        }
        started.append(subprocess.Popen(["bash", SLURM, *words], env=environment, cwd=tmp_path))
        return started[-1], lambda: log.read_text().splitlines()

    yield start
    for process in started:
        process.kill()
        process.wait()
    assert not list(tmp_path.glob(".captune-token*"))
    held = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("pid ")]
    assert not any(psutil.pid_exists(pid) for pid in held), "Ray outlives the job"


def test_slurm_starts_a_head_then_the_workers_then_the_run(slurm):
    process, calls = slurm("n1,n2,n3")
    assert process.wait(20) == 0
    steps = [line for line in calls() if line.startswith("srun")]
    on = "srun --cpus-per-task=16 --ntasks-per-node=1"
    start = "ray start --block --disable-usage-stats --num-cpus=16"
    scratch = "/tmp/captune-4711"
    assert steps == [
        f"{on} --nodes=1 --nodelist=n1 {start} --head --port=6379 --temp-dir={scratch}",
        f"{on} --nodes=2 --nodelist=n2,n3 {start} --address=n1:6379",
        f"{on} --nodes=3 rm -rf {scratch}",
    ]
    at = {
        word: [i for i, line in enumerate(calls()) if line.startswith(word)] for word in ("captune", "python")
    }
    (ran,), (waited,) = at["captune"], at["python"]
    assert calls()[ran] == "captune run photos.yaml --set a b=1 --resume"
    assert calls()[waited] == "python - 3" and waited < ran
    assert "token 600 token" in calls()
    # The options of Ray and of Captune are real ones.
    from ray.scripts.scripts import start as ray_start

    known = {option for parameter in ray_start.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in start.split() if word.startswith("--")} <= known
    run_options(["captune", "run", "photos.yaml", "--set", "a=1", "--resume"])


def test_slurm_on_one_node_starts_no_workers_and_ends_as_the_run_does(slurm):
    process, calls = slurm("n1", run="exit 3")
    assert process.wait(20) == 3
    assert [line.split()[-1] for line in calls() if line.startswith("srun")] == [
        "--temp-dir=/tmp/captune-4711",
        "/tmp/captune-4711",
    ]
    assert not any(line.startswith("scontrol requeue") for line in calls())


def test_slurm_without_a_file_says_how(slurm):
    process, calls = slurm("n1", words=())
    assert process.wait(5) == 2 and not calls()


@pytest.mark.parametrize("sent, again", [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_ends_the_run_in_good_order_and_goes_on_only_where_time_was_up(slurm, sent, again):
    # The run takes a moment to write its tables, then ends as after Ctrl-C.
    run = "trap 'sleep .3; echo ended >> \"$LOG\"; exit 130' TERM; while true; do sleep .05; done"
    process, calls = slurm("n1,n2", run=run)
    while not any(line.startswith("token") for line in calls()):
        time.sleep(0.05)
    time.sleep(0.2)  # the traps come right after the start
    process.send_signal(sent)
    assert process.wait(20) == 130
    assert "ended" in calls()
    assert ("scontrol requeue 4711" in calls()) is again
