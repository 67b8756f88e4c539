"""An experiment with real DDP on a cluster of raylets, and its driver: `captune run` as a process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.line import begun, weight_after
from tests.raylets import Raylets
from tuning import Results, load
from tuning.tables.consistency import check_folder
from tuning.tables.storage import UnreadableResults

ROOT = Path(__file__).parents[2]


def surroundings() -> dict[str, str]:
    """Environment of a cluster whose workers find the trainable `line:Line` of the tests."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


class Driver:
    """`captune run` on a cluster, again and again with `--resume`, until its experiment is finished.

    Args:
        folder: for the experiment's file, its results, the diary of its epochs and what the driver says.
        changes: sections of the experiment file, instead of the usual ones.
    """

    def __init__(self, cluster: Raylets, folder: Path, *, seconds_per_epoch: float, **changes: Any):
        self.cluster, self.folder, self.diary = cluster, folder, folder / "diary"
        folder.mkdir()
        tree = {
            "name": "line",
            "trainable": "line:Line",
            "storage": str(folder / "results"),
            "model": {"seconds_per_epoch": seconds_per_epoch, "diary": str(self.diary)},
            "search_space": {"learning_rate": {"float": [0.001, 0.02], "log": True}},
            "objectives": [{"metric": "val_loss", "mode": "min"}],
            # What a trial is depends on its number only, whatever is killed when.
            "search": {"algorithm": "random", "seed": 0},
        }
        (folder / "line.yaml").write_text(yaml.safe_dump(tree | changes))
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start, or go on."""
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tuning.cli", "run", "line.yaml", "--resume"],
                cwd=self.folder,
                env=self.cluster.environment | {"RAY_ADDRESS": self.cluster.gcs_address},
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether its process does."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def finish(self, timeout_s: float) -> None:
        """Wait for the end of the experiment, which must be a good one."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -1
        assert code == 0, f"exit code {code}:\n" + (self.folder / "log").read_text()

    def results(self) -> Results | None:
        """Its tables; None before they are there."""
        with contextlib.suppress(LookupError, UnreadableResults):
            return load(self.folder / "results" / "line")
        return None

    def begun(self) -> list[tuple[str, int]]:
        """Trial and number of every epoch that was begun, as often as it was."""
        return [(line["trial"], line["epoch"]) for line in begun(self.diary)]

    def wait_for_epoch(self, more_than: int, timeout_s: float = 120) -> None:
        """Wait until more than so many epochs were begun."""
        deadline = time.monotonic() + timeout_s
        while len(self.begun()) <= more_than:
            assert self.runs and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def problems(self, trials: int) -> list[str]:
        """What is wrong with what is left of a finished experiment of so many trials, one line each."""
        results = load(self.folder / "results" / "line")
        problems = check_folder(results.folder)
        expected = [f"{number:05d}" for number in range(trials)]
        if sorted(results.trials["trial_id"]) != expected:
            problems.append(f"the trials are {list(results.trials['trial_id'])}")
        problems += [
            f"trial {row.trial_id} is {row.state}: {row.reason}"
            for row in results.trials.itertuples()
            if row.state not in ("completed", "paused")
        ]
        rates = results.trials.set_index("trial_id")["config/learning_rate"]
        for row in results.epochs.itertuples():
            loss = 1 - weight_after(row.epoch, rates[row.trial_id])
            if abs(row.val_loss - loss) > 1e-4 * loss:
                problems.append(f"trial {row.trial_id}, epoch {row.epoch}: {row.val_loss} is not {loss}")
        return problems
