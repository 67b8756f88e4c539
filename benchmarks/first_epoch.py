"""From the command to the end of the first epoch: `submit` to a cluster that stands, and `run` without one.

The first epoch takes no time of its own, so what is measured is what one waits for: the start of the
job and the gang, and on the cold machine that of Ray. By turns, on one machine, the cluster idle meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import yaml

from benchmarks.disturbed.driver import surroundings
from tests.raylets import Raylets
from tuning import load

TURNS = 2
EXPERIMENT = {
    "trainable": "curves",
    "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
    "objectives": [{"metric": "score", "mode": "max"}],
    "scheduler": {"max_epochs": 1},
    "budget": {"trials": 1},
    "training": {"gangs": 1},
}


def seconds(name: str, folder: Path, words: list[str], environment: dict[str, str]) -> float:
    """From the start of a `captune` command to the report of its experiment's first epoch."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"name": name, "storage": str(folder / "results"), **EXPERIMENT}))
    command = [sys.executable, "-m", "tuning.cli", words[0], str(file), *words[1:]]
    begin = time.time()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return load(folder / "results" / name).epochs["at"].min().timestamp() - begin


def main(turns: int = TURNS) -> None:
    """Print the medians, and how many times longer the cold start takes."""
    taken: dict[str, list[float]] = {"submit, warm cluster": [], "run, cold machine": []}
    with tempfile.TemporaryDirectory() as name, Raylets(1, cpus=2, **surroundings()) as cluster:
        submit = ["submit", "--address", cluster.address, "--python", sys.executable, "--follow"]
        outside = {key: value for key, value in cluster.environment.items() if not key.startswith("RAY_")}
        for turn in range(turns):
            for column, words, environment in (
                ("submit, warm cluster", submit, cluster.environment),
                ("run, cold machine", ["run"], outside),
            ):
                label = f"{words[0]}-{turn}"
                taken[column].append(seconds(label, Path(name), words, environment))
                print(f"{column:<22}{taken[column][-1]:22.1f}", flush=True)
    print(f"{'':<22}{'s to the first epoch':>22}")
    for column, times in taken.items():
        print(f"{column:<22}{median(times):15.1f} median")
    warm, cold = map(median, taken.values())
    print(f"first_epoch ratio={cold / warm:.2f}")
