"""The share of their time in which gangs train, with 1, 2 and 4 gangs; ideal is 1, at whatever number.

Epochs sleep instead of computing: so 4 gangs do not compete for two cores, and what keeps them from training
is what Captune and Ray do around them, with the cores that they have for that. Trials are as many per gang,
of one length, and looking ends when the first gang has no trial any more, so that no gang waits for the last.
"""

from __future__ import annotations

import tempfile

import pandas as pd

from cluster.connect import connect
from tuning import Experiment, Results, run

GANGS = (1, 2, 4)
TRIALS_PER_GANG = 8
EPOCHS = 3
SECONDS_PER_EPOCH = 0.5


def search(gangs: int, trials_per_gang: int, storage: str) -> Results:
    """Trials on so many gangs of one worker each."""
    experiment = Experiment.from_dict(
        {
            "name": f"busy-{gangs}",
            "trainable": "curves",
            "model": {"seconds_per_epoch": SECONDS_PER_EPOCH},
            "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
            "objectives": [{"metric": "score", "mode": "max"}],
            "search": {"algorithm": "tpe"},
            "scheduler": {"algorithm": "none", "max_epochs": EPOCHS},
            "budget": {"trials": gangs * trials_per_gang},
            "training": {"workers": 1, "gangs": gangs, "gpus_per_worker": 0},
            "storage": storage,
        }
    )
    return run(experiment)


def busy_fraction(epochs: pd.DataFrame) -> float:
    """Share of the gangs' time that lies in epochs, from all of them at work to the first without."""
    gang, ends = epochs["gang"], epochs["at"]
    starts = ends - pd.to_timedelta(epochs["seconds"], unit="s")
    begin, end = starts.groupby(gang).min().max(), ends.groupby(gang).max().min()
    worked = (ends.clip(upper=end) - starts.clip(lower=begin)).dt.total_seconds().clip(lower=0).sum()
    return worked / (gang.nunique() * (end - begin).total_seconds())


def main(gangs: tuple[int, ...] = GANGS, trials_per_gang: int = TRIALS_PER_GANG) -> None:
    """Print the table, and the fraction of the most gangs over that of the fewest."""
    busy = {}
    print(f"{'gangs':>5}{'busy':>8}{'ideal':>8}")
    with tempfile.TemporaryDirectory() as storage, connect("local", cpus=max(gangs)):
        for count in gangs:
            busy[count] = busy_fraction(search(count, trials_per_gang, storage).epochs)
            print(f"{count:5}{busy[count]:8.3f}{1:8.3f}", flush=True)
    print(f"busy_gangs ratio={busy[max(gangs)] / busy[min(gangs)]:.3f}")
