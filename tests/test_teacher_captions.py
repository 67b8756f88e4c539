"""Captions that a teacher wrote stand where they should, end as captions do, and are written once."""

import numpy as np
import pytest
import torch

from trainables.captioning.compress.teacher import teacher_outputs
from trainables.captioning.compress.teacher_captions import with_teacher_captions
from trainables.captioning.data.cache import prepare
from trainables.captioning.data.loader import eval_batches, train_steps
from trainables.captioning.data.tokenizer import BOS, EOS, PAD
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import DataSettings, Settings

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    return prepare(DataSettings(format="shapes", size=20, image_size=16, min_frequency=1, cache=tmp_path))


def make(data, seed=0, **settings):
    """One that says something else of each image and stops at some time, though it was not trained."""
    torch.manual_seed(seed)
    fixed = {"encoder_width": 8, "decoder_width": 32, "beam_width": 2}
    captioner = Captioner(Settings.from_flat(fixed | settings), data.tokenizer.vocabulary_size, 16)
    with torch.no_grad():
        captioner.decoder.output.bias[EOS] += 0.3
        captioner.decoder.output.weight *= 3
    return captioner


def told(data, teacher, share=1.0):
    return with_teacher_captions(data, teacher, None, CPU, share=share)


def test_every_training_caption_is_what_the_teacher_says_of_its_image(data):
    teacher = make(data).train()
    lessons = told(data, teacher)
    assert teacher.training
    longest = data.tokens.shape[1] - 1
    images = torch.from_numpy(np.array(data.images))
    said = teacher.eval().generate(
        images, max_tokens=longest - 1, beam_width=2, length_penalty=teacher.settings.length_penalty
    )
    assert len(set(map(tuple, said))) > 1
    train = lessons.captions_of("train")
    for caption in train:
        row, length = lessons.tokens[caption], lessons.lengths[caption]
        assert row[0] == BOS and (row[length + 1 :] == PAD).all()
        assert row[1 : length + 1].tolist() == [*said[lessons.caption_image[caption]], EOS]
    others = np.setdiff1d(np.arange(len(data.tokens)), train)
    assert np.array_equal(lessons.tokens[others], data.tokens[others]), "the validation captions stay"
    assert data.key != lessons.key


def test_a_share_is_a_share_of_them_and_the_same_again(data):
    teacher = make(data)
    half, again = told(data, teacher, 0.5), told(data, teacher, 0.5)
    train = data.captions_of("train")
    changed = (half.tokens[train] != data.tokens[train]).any(1).sum()
    assert changed == pytest.approx(len(train) / 2, abs=1)
    assert np.array_equal(half.tokens, again.tokens) and np.array_equal(half.lengths, again.lengths)
    words = [text for texts in half.captions for text in texts]
    ids = [row[1 : length + 1].tolist() for row, length in zip(half.tokens, half.lengths, strict=True)]
    assert data.tokenizer.encode(words, half.tokens.shape[1] - 1) == ids, "told of sides by the same captions"
    assert [len(texts) for texts in half.captions] == [len(texts) for texts in data.captions]
    none = told(data, teacher, 0.0)
    assert np.array_equal(none.tokens, data.tokens) and none.captions == data.captions


def test_captions_are_written_once_and_by_another_teacher_or_search_anew(data, monkeypatch):
    asked = []
    generate = Captioner.generate
    monkeypatch.setattr(Captioner, "generate", lambda *a, **k: asked.append(1) or generate(*a, **k))

    def asks(*arguments):
        asked.clear()
        told(data, *arguments)
        return bool(asked)

    assert asks(make(data)) and not asks(make(data)) and not asks(make(data), 0.3)
    assert asks(make(data, beam_width=3)) and asks(make(data, seed=1))


def test_they_are_trained_on_and_the_teacher_is_asked_about_its_own(data):
    teacher = make(data)
    lessons = told(data, teacher)
    step = next(train_steps(lessons, epoch=0, seed=0, batch_size=8))
    (batch,) = step.micro_batches
    assert step.global_tokens == batch.target_tokens == lessons.lengths[batch.captions].sum()
    outputs = teacher_outputs(lessons, teacher, None, CPU, temperature=1.0)
    assert len(outputs.ids) == lessons.lengths[lessons.captions_of("train")].sum()
    logits = teacher.eval()(batch.inputs, batch.tokens[:, :-1])
    agreed = outputs.divergence(logits, batch.tokens[:, 1:], batch.captions)
    assert agreed.item() == pytest.approx(0, abs=1e-2), "of these captions, not of the data's"
    assert sum(len(each.captions) for each in eval_batches(lessons, split="val", batch_size=8)) > 0
