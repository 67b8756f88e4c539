"""Every caption once an epoch, whoever trains; every held-out item on one worker."""

import numpy as np
import pytest
import torch

from trainables.captioning.data.augment import Changes, apply_changes, draw_changes
from trainables.captioning.data.cache import CaptionData, prepare
from trainables.captioning.data.loader import eval_batches, eval_images, steps_per_epoch, train_steps
from trainables.captioning.data.tokenizer import PAD
from trainables.captioning.settings import DataSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CaptionData:
    """20 images, 16 to train on, 5 captions each: 80 training captions."""
    cache = tmp_path_factory.mktemp("cache")
    return prepare(DataSettings(format="shapes", size=20, image_size=16, cache=cache, min_frequency=1))


def steps(data, **arguments):
    return list(train_steps(data, **{"epoch": 0, "seed": 0, "batch_size": 32, **arguments}))


def captions_of(step_lists) -> list[list[int]]:
    """Captions of each step over all ranks, in rank order."""
    return [
        [int(caption) for step in shares for batch in step.micro_batches for caption in batch.captions]
        for shares in zip(*step_lists, strict=True)
    ]


def test_an_epoch_holds_every_training_caption_once(data):
    (seen,) = [captions_of([steps(data)])]
    assert sorted(c for step in seen for c in step) == data.captions_of("train").tolist()
    assert [len(step) for step in seen] == [32, 32, 16]
    assert len(seen) == steps_per_epoch(data, 32)


def test_order_depends_on_seed_and_epoch(data):
    first = captions_of([steps(data)])
    assert captions_of([steps(data)]) == first
    assert captions_of([steps(data, epoch=1)]) != first
    assert captions_of([steps(data, seed=1)]) != first


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 33])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
class TestSharing:
    def shares(self, data, world_size, batch_size, micro_batch_size):
        return [
            steps(
                data, rank=r, world_size=world_size, batch_size=batch_size, micro_batch_size=micro_batch_size
            )
            for r in range(world_size)
        ]

    def test_global_batches_do_not_depend_on_the_workers(
        self, data, world_size, batch_size, micro_batch_size
    ):
        shares = self.shares(data, world_size, batch_size, micro_batch_size)
        assert captions_of(shares) == captions_of([steps(data, batch_size=batch_size)])

    def test_collectives_meet(self, data, world_size, batch_size, micro_batch_size):
        """Steps, passes and the number that the loss is divided by agree; no pass is empty."""
        for step in zip(*self.shares(data, world_size, batch_size, micro_batch_size), strict=True):
            assert len({len(share.micro_batches) for share in step}) == 1
            (global_tokens,) = {share.global_tokens for share in step}
            batches = [batch for share in step for batch in share.micro_batches]
            assert global_tokens == sum(int((batch.tokens[:, 1:] != PAD).sum()) for batch in batches)
            assert all(len(batch.inputs) == len(batch.tokens) >= 1 for batch in batches)
            assert all(len(batch.tokens) <= (micro_batch_size or batch_size) for batch in batches)
            sizes = [sum(len(batch.captions) for batch in share.micro_batches) for share in step]
            assert max(sizes) - min(sizes) <= 1
            assert step[0].captions == sum(sizes)


def test_a_batch_holds_the_images_and_tokens_of_its_captions(data):
    for step in steps(data, micro_batch_size=5):
        for batch in step.micro_batches:
            images = data.images[data.caption_image[batch.captions]]
            assert batch.inputs.dtype == torch.uint8 and (batch.inputs.numpy() == images).all()
            length = batch.tokens.shape[1]
            assert batch.tokens.dtype == torch.int64
            assert (batch.tokens.numpy() == data.tokens[batch.captions][:, :length]).all()
            assert (data.tokens[batch.captions][:, length:] == PAD).all()
            assert (batch.tokens[:, -1] != PAD).any()


def test_features_take_the_place_of_images(data):
    features = np.arange(20 * 4 * 3, dtype=np.float16).reshape(20, 4, 3)
    batch = steps(data, features=features)[0].micro_batches[0]
    assert batch.inputs.dtype == torch.float16
    assert (batch.inputs.numpy() == features[data.caption_image[batch.captions]]).all()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
class TestEvaluation:
    def test_every_caption_is_on_one_worker(self, data, world_size):
        batches = [
            batch
            for rank in range(world_size)
            for batch in eval_batches(data, rank=rank, world_size=world_size, batch_size=3)
        ]
        assert sorted(int(c) for batch in batches for c in batch.captions) == data.captions_of("val").tolist()
        assert sum(batch.target_tokens for batch in batches) == data.lengths[data.captions_of("val")].sum()

    def test_every_image_is_on_one_worker(self, data, world_size):
        seen = []
        for rank in range(world_size):
            shard = eval_images(data, split="train", rank=rank, world_size=world_size, batch_size=3)
            for indices, inputs in shard:
                assert (inputs.numpy() == data.images[indices]).all()
                seen += indices.tolist()
        assert sorted(seen) == data.splits["train"].tolist()


class TestAugmentation:
    def test_the_same_whatever_the_number_of_workers(self, data):
        alone = steps(data, augment=True)
        pair = [steps(data, augment=True, rank=r, world_size=2, micro_batch_size=3) for r in range(2)]
        for whole, *halves in zip(alone, *pair, strict=True):
            inputs = torch.cat([batch.inputs for half in halves for batch in half.micro_batches])
            assert (whole.micro_batches[0].inputs == inputs).all()

    def test_changes_images_anew_each_epoch(self, data):
        plain = steps(data)[0].micro_batches[0]
        changed = steps(data, augment=True)[0].micro_batches[0]
        assert changed.inputs.shape == plain.inputs.shape and changed.inputs.dtype == torch.uint8
        assert (changed.captions == plain.captions).all() and (changed.tokens == plain.tokens).all()
        assert (changed.inputs != plain.inputs).flatten(1).any(1).float().mean() > 0.9
        assert (steps(data, augment=True, epoch=1)[0].micro_batches[0].inputs != changed.inputs).any()

    def test_images_that_speak_of_sides_are_not_mirrored(self, data):
        speaks = data.speaks_of_sides
        assert 0 < speaks.sum() < len(speaks)
        for image, texts in enumerate(data.captions):
            assert speaks[image] == any("left" in t.lower() or "right" in t.lower() for t in texts)
        changes = draw_changes(np.random.default_rng(0), may_flip=np.arange(200) < 100, size=16)
        assert 30 < changes.flip[:100].sum() < 70
        assert not changes.flip[100:].any()

    def test_cached_features_turn_it_off_with_a_warning(self, data):
        features = np.zeros((20, 4, 3), dtype=np.float16)
        with pytest.warns(UserWarning, match="augmentation is off"):
            batch = steps(data, features=features, augment=True)[0].micro_batches[0]
        assert batch.inputs.shape[1:] == (4, 3)

    def test_each_change_does_what_it_says(self):
        """Against the plain formulas, one image at a time."""
        rng = np.random.default_rng(0)
        images = rng.integers(60, 180, (6, 16, 16, 3), dtype=np.uint8)
        changes = draw_changes(rng, may_flip=np.ones(6, dtype=bool), size=16)
        done = apply_changes(torch.from_numpy(images), changes).numpy()
        for index, image in enumerate(images):
            down, right = changes.shift[index]
            padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge").astype(float)
            expected = padded[2 + down : 18 + down, 2 + right : 18 + right]
            if changes.flip[index]:
                expected = expected[:, ::-1]
            brightness, contrast, saturation = changes.colour[index].astype(float)
            expected = expected * brightness
            expected = expected.mean() + contrast * (expected - expected.mean())
            gray = expected.mean(axis=2, keepdims=True)
            expected = gray + saturation * (expected - gray)
            assert np.abs(done[index] - expected.clip(0, 255)).max() <= 0.51

    def test_no_change_changes_nothing(self):
        images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
        still = Changes(np.zeros(2, bool), np.zeros((2, 2), np.int64), np.ones((2, 3), np.float32))
        assert (apply_changes(images, still) == images).all()


def test_captions_of_like_length_share_a_batch(data):
    whole = [step for step in steps(data, batch_size=8) if step.captions == 8]
    spread = [np.ptp(data.lengths[step.micro_batches[0].captions]) for step in whole]
    assert np.mean(spread) < 0.5 * np.ptp(data.lengths)
    longest = [int(data.lengths[step.micro_batches[0].captions].max()) for step in whole]
    assert longest != sorted(longest)  # short and long batches in turn, not one after the other
