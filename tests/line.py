"""A trainable with real DDP whose weight after every epoch is known in closed form.

One weight w from 0; the worker of rank r pulls it to 0.5 + r, so two workers' mean gradient to 1: after n
steps w = 1 - (1 - learning_rate)^n. An epoch lost, repeated or trained by half the gang shows in `val_loss`.
"""

import json
import os
import time
from pathlib import Path

import ray
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trainables.trial import LeftEarly

STEPS = 8


def weight_after(epochs, learning_rate):
    return 1 - (1 - learning_rate) ** (STEPS * epochs)


def begun(diary):
    """What `Line` noted at the beginning of every epoch: trial, epoch, the address of each rank's node."""
    lines = Path(diary).read_text().splitlines() if Path(diary).exists() else []
    return [json.loads(line) for line in lines]


class Line:
    """Settings: `learning_rate`, `seconds_per_epoch`, and `diary`, a file for `begun`."""

    def setup(self, config, context):
        self.config, self.context, self.epoch, self.step = config, context, 0, 0
        self.net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.net.weight)
        self.model = DistributedDataParallel(self.net) if context.world_size > 1 else self.net
        self.optimizer = torch.optim.SGD(self.net.parameters(), config["learning_rate"])

    def train_epoch(self):
        nodes = [None] * self.context.world_size
        dist.all_gather_object(nodes, ray.util.get_node_ip_address())
        if self.context.rank == 0 and self.step == 0:
            self._note({"trial": self.context.trial_id, "epoch": self.epoch + 1, "nodes": nodes})
        while self.step < STEPS:
            time.sleep(self.config["seconds_per_epoch"] / STEPS)
            loss = 0.5 * (self.model(torch.ones(1, 1)) - 0.5 - self.context.rank).square().sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            if self._leaves() and self.step < STEPS:
                raise LeftEarly
        self.epoch, self.step = self.epoch + 1, 0
        return {"train_loss": float(loss), "nodes": len(set(nodes))}

    def _leaves(self):
        told = torch.tensor(float(self.context.leaving()))
        if self.context.world_size > 1:
            dist.all_reduce(told)
        return bool(told)

    def evaluate(self, full):
        return {"val_loss": abs(1 - self.net.weight.item())}

    def save(self, folder):
        state = {"epoch": self.epoch, "step": self.step, "net": self.net.state_dict()}
        torch.save(state, folder / "state.pt")

    def load(self, folder):
        state = torch.load(folder / "state.pt")
        self.epoch, self.step = state["epoch"], state["step"]
        self.net.load_state_dict(state["net"])

    def close(self):
        pass

    def _note(self, line):
        file = os.open(self.config["diary"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, (json.dumps(line) + "\n").encode())
        os.close(file)
