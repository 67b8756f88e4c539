"""A captioner that is compressed and fine-tuned by two workers is that of one."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainables.captioning.compress.hold import plain_state
from trainables.captioning.trial import Captioning
from trainables.trial import TrialContext

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = {
    "encoder_width": 16, "decoder_width": 48, "batch_size": 24, "learning_rate": 1e-3, "dropout": 0,
    "beam_width": 2,
}  # fmt: skip
FROZEN = {"encoder": "efficientnet_lite0", "encoder_trainable": False}
EPOCHS = 3
FIGURES = ("train_loss", "grad_norm", "val_loss", "token_accuracy", "compression_ratio", "size_mb", "cider")
#: Settings, and whether the captioner is made of a trained parent.
COURSES = {
    "gradually": ({"compression.method": "prune+int8", "compression.ratio": 0.85}, False),
    "gradual child": ({"compression.method": "prune+int8", "compression.ratio": 0.85}, True),
    "factors": ({"compression.method": "low_rank", "compression.ratio": 0.3}, False),
    "units of a child": ({"compression.method": "prune_units+int4", "compression.ratio": 0.9}, True),
    "shared": ({"compression.method": "share", "decoder": "transformer", "decoder_layers": 2}, False),
    "student": (
        {"compression.method": "distil", "compression.ratio": 0.5, "compression.attention_weight": 2.0},
        True,
    ),
    "pruned student": (
        {
            "compression.method": "distil+prune+int8",
            "compression.ratio": 0.9,
            "compression.teacher_captions": 0.5,
        },
        True,
    ),
    "frozen": ({**FROZEN, "compression.method": "prune+int4", "compression.ratio": 0.85}, False),
    "student of a frozen": ({**FROZEN, "compression.method": "distil+int8", "compression.ratio": 0.75}, True),
}


def section(cache):
    return {"format": "shapes", "size": 20, "image_size": 32, "min_frequency": 1, "cache": str(cache)}


def trial(cache, changes, rank=0, world_size=1):
    captioning = Captioning()
    context = TrialContext(
        trial_id="t", seed=1, max_epochs=EPOCHS, data=section(cache), rank=rank, world_size=world_size
    )
    captioning.setup({**SMALL, **changes}, context)
    return captioning


def run(captioning):
    """What the trial says at each epoch, and the weights at its end."""
    rows = []
    for number in range(EPOCHS):
        rows.append(captioning.train_epoch() | captioning.evaluate(full=number == EPOCHS - 1))
    chosen = [{name: row[name] for name in FIGURES if name in row} for row in rows]
    state = {name: tensor.clone() for name, tensor in plain_state(captioning.trainer.captioner).items()}
    return chosen, state


def _work(rank, folder, points):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/gang", rank=rank, world_size=2)
    torch.save(
        {name: run(trial(folder, point, rank, 2)) for name, point in points.items()}, folder / f"{rank}.pt"
    )
    dist.destroy_process_group()
    os._exit(0)  # see `_worker` in test_train.py


def test_two_workers_compress_and_fine_tune_as_one_does(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    points = {}
    for name, (changes, child) in COURSES.items():
        if child:
            parent = trial(tmp_path, {n: v for n, v in changes.items() if n in FROZEN})
            parent.train_epoch()
            (tmp_path / name).mkdir()
            parent.save(tmp_path / name)
            changes = {**changes, "compression.parent": str(tmp_path / name)}
        points[name] = changes
    workers = mp.spawn(_work, (tmp_path, points), nprocs=2, join=False)
    alone = {name: run(trial(tmp_path, point)) for name, point in points.items()}
    while not workers.join():
        pass
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, (rows, weights) in alone.items():
        assert first[name][0] == second[name][0], name
        torch.testing.assert_close(
            first[name][1], second[name][1], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
        for row, told in zip(rows, first[name][0], strict=True):
            assert told == pytest.approx(row, rel=1e-4, abs=1e-6), name
        # Where a gradient is all but 0, Adam makes a step of its rounding; a wrong one is many steps away.
        torch.testing.assert_close(
            first[name][1], weights, rtol=0, atol=SMALL["learning_rate"], msg=lambda m, n=name: f"{n}: {m}"
        )
