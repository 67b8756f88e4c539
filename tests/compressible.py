"""A trainable whose trials can be compressed, in formulas: `curves` with methods, what ships, what it costs.

The quality of a variant falls with what is removed; each fine-tuning epoch brings half of it back.
"""

import json
import os
import time
from pathlib import Path

from trainables.curves import Curves
from trainables.trial import SettingsError

SIZES = {"none": 1.0, "fp16": 0.5, "prune": None, "broken": 0.9, "unmeasurable": 0.45}
LOSSES = {"none": 0.0, "fp16": 0.0, "prune": 0.4, "broken": 0.0, "unmeasurable": 0.0}


class Compressible(Curves):
    @classmethod
    def check(cls, data, settings, searched):
        pass

    @classmethod
    def check_variants(cls, methods, ratios):
        for method in methods:
            if method not in SIZES:
                rule = f"got {method!r}: there are {', '.join(SIZES)}"
                raise SettingsError(("compression", "methods"), rule)

    @classmethod
    def variants(cls, checkpoint, methods, ratios):
        assert (checkpoint / "state.json").is_file(), "the parent's checkpoint is there"
        found, lines = [], []
        for method in methods:
            for ratio in ratios if method == "prune" else [None]:
                if ratio == 0.95:
                    lines.append("prune 0.95 would leave nothing")
                    continue
                found.append({"compression.parent": str(checkpoint), "compression.method": method})
                if ratio is not None:
                    found[-1]["compression.ratio"] = ratio
        return found, lines

    @classmethod
    def export(cls, checkpoint, folder):
        folder.mkdir(parents=True)
        state = (checkpoint / "state.json").read_text()
        (folder / "model.json").write_text(state)

    @classmethod
    def measure(cls, folder):
        state = json.loads((folder / "model.json").read_text())
        with Path(state["log"]).open("a") as file:
            file.write(f"{folder.name}\n")
        time.sleep(state["seconds"])
        if state["method"] == "unmeasurable":
            raise RuntimeError("no clock")
        return {"size_mb": 10 * state["size"] + 0.001, "latency_ms": 100 * state["size"]}

    def setup(self, config, context):
        config = dict(config)
        self.parent = config.pop("compression.parent", None)
        self.method = config.pop("compression.method", "none")
        self.ratio = config.pop("compression.ratio", None)
        self.log, self.seconds = config.pop("log", os.devnull), config.pop("seconds", 0.0)
        self.tuned, self.start = 0, 0
        super().setup(config, context)
        if self.parent is not None:
            self.start = json.loads((Path(self.parent) / "state.json").read_text())["epoch"]
        self.size = SIZES[self.method] or 1 - self.ratio

    def train_epoch(self):
        if self.method == "broken":
            raise RuntimeError("cannot be compressed")
        figures = super().train_epoch()
        if self.parent is None:
            return figures
        self.tuned = self.epoch - 1
        return {}

    def evaluate(self, full):
        if self.parent is None:
            return super().evaluate(full) | {"size_mb": 10.0, "macs": 1e6}
        mine, self.epoch = self.epoch, self.start
        score = self._score() - LOSSES[self.method] * (self.ratio or 1) * 0.5**self.tuned
        self.epoch = mine
        if not full:
            return {"val_loss": 1 - score}
        costs = {"size_mb": 10 * self.size, "macs": 1e6 * self.size, "compression_ratio": 1 - self.size}
        return {"val_loss": 1 - score, "score": score, **costs}

    def save(self, folder):
        state = {"epoch": self.epoch, "method": self.method, "size": self.size, "tuned": self.tuned}
        state |= {"log": self.log, "seconds": self.seconds}
        (folder / "state.json").write_text(json.dumps(state))
