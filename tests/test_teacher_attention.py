"""Where a teacher's encoder looks: by hand, kept once, and pulling at the student as much as it says."""

import numpy as np
import pytest
import torch

from trainables.captioning.compress.teacher import teacher_outputs
from trainables.captioning.compress.teacher_attention import teacher_attention
from trainables.captioning.data.cache import prepare
from trainables.captioning.data.loader import steps_per_epoch, train_steps
from trainables.captioning.data.tokenizer import PAD
from trainables.captioning.model.captioner import Captioner, token_loss
from trainables.captioning.settings import DataSettings, Settings
from trainables.captioning.train import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    return prepare(DataSettings(format="shapes", size=20, image_size=16, min_frequency=1, cache=tmp_path))


def make(data, seed, **settings):
    torch.manual_seed(seed)
    fixed = {"encoder_width": 8, "decoder_width": 32, "dropout": 0.0, "batch_size": 12}
    return Captioner(Settings.from_flat(fixed | settings), data.tokenizer.vocabulary_size, 16)


def maps_of(captioner, images):
    """In float64, by hand."""
    with torch.no_grad():
        features = captioner.eval().encode(torch.from_numpy(np.array(images))).double().numpy()
    strength = (features**2).mean(-1)
    return strength / np.linalg.norm(strength, axis=1, keepdims=True)


def test_maps_are_those_of_the_training_images_and_are_made_once(data, monkeypatch):
    teacher = make(data, 0).train()
    told = teacher_attention(data, teacher, CPU)
    assert teacher.training
    train = np.unique(data.caption_image[data.captions_of("train")])
    np.testing.assert_allclose(told.maps[train], maps_of(teacher, data.images[train]), atol=1e-6)
    assert not told.maps[np.setdiff1d(np.arange(len(data.names)), train)].any()
    monkeypatch.setattr(Captioner, "encode", None)
    np.testing.assert_array_equal(teacher_attention(data, teacher, CPU).maps, told.maps)


def test_another_width_is_compared_as_it_is_and_the_teacher_itself_has_no_distance(data):
    teacher, narrow = make(data, 0), make(data, 1, encoder_width=4)
    told = teacher_attention(data, teacher, CPU)
    captions = data.captions_of("train")[:9]
    images = data.caption_image[captions]
    expected = ((maps_of(narrow, data.images[images]) - maps_of(teacher, data.images[images])) ** 2).sum(1)
    found = told.distance(narrow.encode(torch.from_numpy(np.array(data.images[images]))), captions)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-6)
    own = told.distance(teacher.encode(torch.from_numpy(np.array(data.images[images]))), captions)
    assert own.abs().max() < 1e-6


def gradients(data, weight, micro_batch_size=None):
    """Of the first step, and the objective that they are of."""
    teacher = make(data, 0)
    settings = {"compression.attention_weight": weight, "compression.distil_weight": 0.25}
    student = make(data, 1, encoder_width=4, micro_batch_size=micro_batch_size, **settings)
    steps = steps_per_epoch(data, 12)
    trainer = Trainer(
        student, student.settings, precision="fp32", steps_per_epoch=steps, max_epochs=1, device=CPU
    )
    trainer.teacher = teacher_outputs(data, teacher, None, CPU, temperature=1.0)
    trainer.attention = teacher_attention(data, teacher, CPU)
    (step, *_) = train_steps(
        data, rank=0, world_size=1, epoch=0, seed=0, batch_size=12, micro_batch_size=micro_batch_size
    )
    student.train()
    objective = trainer._accumulate(step)[0] / step.global_tokens
    return objective.item(), {name: p.grad.clone() for name, p in student.named_parameters()}, trainer, step


def test_it_counts_by_its_weight_and_the_tokens_of_each_caption(data):
    without, before, *_ = gradients(data, 0.0)
    with_it, after, trainer, step = gradients(data, 3.0)
    (batch,) = step.micro_batches
    with torch.no_grad():
        features = trainer.captioner.encode(batch.inputs)
        distance = trainer.attention.distance(features, batch.captions)
        tokens = (batch.tokens[:, 1:] != PAD).sum(1)
        _, _, count = token_loss(trainer.captioner(batch.inputs, batch.tokens[:, :-1]), batch.tokens[:, 1:])
    assert with_it - without == pytest.approx(3 * float((tokens * distance).sum() / count), rel=1e-4)
    changed = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-7)}
    assert changed and all(name.startswith("encoder.") for name in changed)
    assert trainer.captioner.encoder._forward_hooks == {}, "a copy of the captioner would have it, too"


def test_a_batch_in_parts_has_the_same_gradient(data):
    _, whole, *_ = gradients(data, 3.0)
    _, parts, *_ = gradients(data, 3.0, micro_batch_size=5)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
