import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from trainables.captioning.data.cache import prepare
from trainables.captioning.data.loader import eval_batches, eval_images, steps_per_epoch, train_steps
from trainables.captioning.evaluate import caption_quality, held_out_loss
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from trainables.captioning.settings import DataSettings, Settings
from trainables.captioning.train import Trainer
from trainables.trial import TrialDiverged

CPU = torch.device("cpu")


def small(**changes):
    fixed = {"encoder_width": 4, "decoder_width": 16, "dropout": 0, "batch_size": 24, "learning_rate": 1e-3}
    return Settings.from_flat({**fixed, **changes})


def shapes(cache):
    return prepare(DataSettings(format="shapes", size=30, image_size=16, cache=cache))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes(tmp_path_factory.mktemp("cache"))


def trainer(data, settings, precision="fp32", epochs=1):
    torch.manual_seed(0)
    captioner = Captioner(settings, data.tokenizer.vocabulary_size, data.images.shape[1])
    return Trainer(
        captioner,
        settings,
        precision=precision,
        steps_per_epoch=steps_per_epoch(data, settings.batch_size),
        max_epochs=epochs,
        device=CPU,
    )


def epoch(worker, data, number=0, rank=0, world_size=1):
    settings = worker.settings
    return worker.train_epoch(
        number,
        train_steps(
            data,
            rank=rank,
            world_size=world_size,
            epoch=number,
            seed=0,
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
        ),
    )


def evaluate(worker, data, rank=0, world_size=1):
    shard = {"rank": rank, "world_size": world_size, "batch_size": 7}
    captioner = worker.captioner
    return held_out_loss(captioner, eval_batches(data, **shard), CPU) | caption_quality(
        captioner, data, "val", eval_images(data, **shard), worker.settings, CPU
    )


def outcome(worker):
    return nn.utils.parameters_to_vector(worker.captioner.parameters()).detach()


def one_worker(data, settings):
    worker = trainer(data, settings)
    trained = epoch(worker, data)
    return {"weights": outcome(worker), "trained": trained, "evaluated": evaluate(worker, data)}


def test_accumulation_changes_nothing_but_memory(data):
    whole, pieces = (one_worker(data, small(micro_batch_size=size)) for size in (None, 5))
    torch.testing.assert_close(pieces["weights"], whole["weights"], rtol=0, atol=1e-5)
    assert pieces["trained"]["train_loss"] == pytest.approx(whole["trained"]["train_loss"], abs=1e-5)


def test_the_gradient_is_that_of_the_mean_over_the_tokens_of_the_batch(data):
    worker = trainer(data, small(optimizer="sgd", momentum=0, weight_decay=0, gradient_clip=None))
    (step,) = list(train_steps(data, epoch=0, seed=0, batch_size=10_000))
    (batch,) = step.micro_batches
    logits = worker.captioner(batch.inputs, batch.tokens[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), ignore_index=0)
    gradients = torch.autograd.grad(loss, worker.parameters)
    worker._accumulate(step)
    for parameter, gradient in zip(worker.parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


GANGS = (2, 3)  # workers


def _worker(rank, cache, results):
    """First a gang of two, then one of three; rank 2 joins the second only."""
    torch.set_num_threads(1)
    data = shapes(cache)
    for world_size in GANGS:
        if rank < world_size:
            meeting = f"file://{results}/gang-{world_size}"  # a port that is free now may not be so later
            dist.init_process_group("gloo", meeting, rank=rank, world_size=world_size)
            _train_together(rank, world_size, data, Path(results))
            dist.destroy_process_group()
    # All is on disk. Where Python ends in good order, what of DDP is in reference cycles is collected last,
    # and now and then waits there for ever, for a lock of the process group that is no more.
    os._exit(0)


def _train_together(rank, world_size, data, results):
    for pieces in (None, 5):
        worker = trainer(data, small(micro_batch_size=pieces))
        trained = epoch(worker, data, rank=rank, world_size=world_size)
        evaluated = evaluate(worker, data, rank, world_size)
        result = {"weights": outcome(worker), "trained": trained, "evaluated": evaluated}
        torch.save(result, results / f"{world_size}-{rank}-{pieces}.pt")
    lost = trainer(data, small())
    if rank == 1:  # one worker alone has the trouble, all must stop (DDP made the weights equal before)
        with torch.no_grad():
            lost.captioner.decoder.output.weight.fill_(math.nan)
    with pytest.raises(TrialDiverged) as caught:
        epoch(lost, data, rank=rank, world_size=world_size)
    (results / f"{world_size}-{rank}.txt").write_text(str(caught.value))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_any_number_of_workers_trains_and_evaluates_alike(data, tmp_path):
    mp.spawn(_worker, (data.folder, tmp_path), nprocs=3)
    alone = one_worker(data, small())
    for world_size in GANGS:
        for pieces in (None, 5):
            workers = [
                torch.load(tmp_path / f"{world_size}-{rank}-{pieces}.pt") for rank in range(world_size)
            ]
            torch.testing.assert_close(workers[0]["weights"], alone["weights"], rtol=0, atol=1e-5)
            for name in ("train_loss", "grad_norm", "learning_rate"):
                assert workers[0]["trained"][name] == pytest.approx(alone["trained"][name], abs=1e-4)
            assert workers[0]["evaluated"] == pytest.approx(alone["evaluated"], abs=1e-4)
            for other in workers[1:]:
                assert torch.equal(other["weights"], workers[0]["weights"])
                assert other["evaluated"] == workers[0]["evaluated"]
                assert other["trained"]["train_loss"] == workers[0]["trained"]["train_loss"]
        reasons = {(tmp_path / f"{world_size}-{rank}.txt").read_text() for rank in range(world_size)}
        assert len(reasons) == 1 and "nan" in reasons.pop()


def test_the_loss_falls_and_the_figures_are_sane(data):
    worker = trainer(data, small(learning_rate=1e-2), epochs=4)
    before = held_out_loss(worker.captioner, eval_batches(data, batch_size=8), CPU)
    trained = [epoch(worker, data, number) for number in range(4)]
    after = held_out_loss(worker.captioner, eval_batches(data, batch_size=8), CPU)
    assert before["val_loss"] == pytest.approx(math.log(data.tokenizer.vocabulary_size), rel=0.2)
    assert after["val_loss"] < 0.9 * before["val_loss"]
    assert trained[-1]["train_loss"] < trained[0]["train_loss"]
    assert all(figures["images_per_s"] > 0 and figures["grad_norm"] > 0 for figures in trained)
    assert [figures["learning_rate"] for figures in trained] == sorted(
        (f["learning_rate"] for f in trained), reverse=True
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_and_keeps_fp32_weights(data, precision):
    worker = trainer(data, small(learning_rate=1e-2), precision, epochs=3)
    losses = [epoch(worker, data, number)["train_loss"] for number in range(3)]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in worker.parameters} == {torch.float32}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adabelief"])
def test_every_optimizer_learns(data, name):
    worker = trainer(data, small(optimizer=name, learning_rate=0.1 if name == "sgd" else 1e-2), epochs=2)
    assert epoch(worker, data, 0)["train_loss"] > epoch(worker, data, 1)["train_loss"]


def test_an_exploding_loss_is_divergence(data):
    worker = trainer(data, small(optimizer="sgd", learning_rate=1e4, gradient_clip=None), epochs=2)
    with pytest.raises(TrialDiverged, match="loss|gradient"):
        for number in range(2):
            epoch(worker, data, number)


def test_a_loss_far_above_guessing_is_divergence(data):
    worker = trainer(data, small(warmup_fraction=0))
    with torch.no_grad():
        worker.captioner.decoder.output.bias[0] = 100  # certain of padding
    with pytest.raises(TrialDiverged, match="guessing"):
        epoch(worker, data)


def test_fp16_overflow_now_and_then_is_not_divergence_but_for_ever_is(data):
    worker = trainer(data, small(), "fp16")
    worker.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)  # overflows until it has halved enough
    assert math.isfinite(epoch(worker, data)["train_loss"])
    worker = trainer(data, small(), "fp16", epochs=20)
    assert worker.steps_per_epoch < 20
    worker.captioner.decoder.output.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrialDiverged, match="overflowed in 20 steps"):
        for number in range(20):
            epoch(worker, data, number)


def test_clipping_bounds_the_update(data):
    free, clipped = (
        trainer(
            data, small(optimizer="sgd", momentum=0, weight_decay=0, gradient_clip=clip, learning_rate=1.0)
        )
        for clip in (None, 1e-3)
    )
    start = outcome(clipped)
    for worker in (free, clipped):
        epoch(worker, data)
    steps = steps_per_epoch(data, 24)
    assert torch.linalg.norm(outcome(clipped) - start) <= 1e-3 * steps * 1.01
    assert torch.linalg.norm(outcome(free) - start) > 1e-3 * steps * 1.01


def test_groups_of_parameters(data):
    settings = small(weight_decay=0.1, encoder_learning_rate_factor=0.1)
    captioner = Captioner(settings, data.tokenizer.vocabulary_size, 16)
    optimizer = build_optimizer(captioner, settings)
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(found) == len(list(captioner.parameters()))
    assert found[id(captioner.decoder.output.weight)] == (1e-3, 0.1)
    assert found[id(captioner.decoder.output.bias)] == (1e-3, 0.0)
    assert found[id(captioner.decoder.embedding.weight)] == (1e-3, 0.0)
    assert found[id(captioner.encoder.stem[0].weight)] == (pytest.approx(1e-4), 0.1)
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.5)  # of the full rate, not of the last one
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([5e-5, 5e-4])


def test_frozen_parameters_stay(data):
    worker = trainer(data, small(encoder_trainable=False))
    before = [parameter.clone() for parameter in worker.captioner.encoder.parameters()]
    epoch(worker, data)
    assert all(map(torch.equal, before, worker.captioner.encoder.parameters()))


def test_schedule():
    factors = np.array([learning_rate_factor(step, 100, 0.1) for step in range(100)])
    assert (np.diff(factors[:10]) > 0).all() and (np.diff(factors[10:]) < 0).all()
    assert factors[0] > 0 and factors[10] == 1 and 0 < factors[-1] < 1e-3
    assert learning_rate_factor(0, 1, 0.0) == 1
