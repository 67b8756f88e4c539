"""Students are narrower and bytes fall evenly; what a teacher says is kept as it was said, and pulls."""

import math

import numpy as np
import pytest
import torch

from trainables.captioning.compress import teacher as teacher_module
from trainables.captioning.compress.distil import narrowed, student
from trainables.captioning.compress.teacher import TeacherOutputs, teacher_outputs
from trainables.captioning.data.cache import prepare
from trainables.captioning.data.features import cached_features
from trainables.captioning.data.loader import eval_batches, steps_per_epoch, train_steps
from trainables.captioning.data.tokenizer import PAD
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.encoders import Encoder
from trainables.captioning.settings import DataSettings, Settings
from trainables.captioning.train import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    return prepare(DataSettings(format="shapes", size=20, image_size=16, min_frequency=1, cache=tmp_path))


def make(vocabulary=50, seed=0, size=16, **settings) -> Captioner:
    torch.manual_seed(seed)
    fixed = {"encoder_width": 8, "decoder_width": 32, "dropout": 0.2, "batch_size": 24, "learning_rate": 1e-2}
    return Captioner(Settings.from_flat(fixed | settings), vocabulary, size)


def bytes_of(captioner):
    return sum(math.prod(t.shape) * t.element_size() for t in captioner.state_dict().values())


# the student


@pytest.mark.parametrize(
    "settings",
    [
        {"decoder": "gru"},
        {"decoder": "gru_attention", "decoder_width": 256, "encoder_width": 32},
        {"decoder": "gru", "embedding_width": 34, "tie_embeddings": True, "decoder_layers": 2},
        {"decoder": "gru_attention", "embedding_width": 28, "share_layers": True, "decoder_layers": 2},
        {"decoder": "transformer", "decoder_width": 64, "embedding_width": 66},
        {"decoder": "transformer", "decoder_width": 96, "embedding_width": 48, "decoder_heads": 3},
        {"decoder": "transformer", "decoder_width": 80, "embedding_width": 80, "tie_embeddings": True},
    ],
)
def test_bytes_fall_with_the_strength_and_the_student_is_of_the_same_kind(settings):
    whole = make(**settings).to("meta")
    students = [student(whole, strength) for strength in np.linspace(0, 1, 101)]
    sizes = [bytes_of(small) for small in students]
    assert sizes[0] == bytes_of(whole)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.3 * sizes[0]
    assert max(before - after for before, after in zip(sizes, sizes[1:], strict=False)) < 0.13 * sizes[0]
    assert {type(small.decoder) for small in students} == {type(whole.decoder)}
    assert {small.settings.decoder_layers for small in students} == {whole.settings.decoder_layers}
    assert all(p.is_meta for small in students for p in small.parameters())


def test_a_student_on_the_meta_device_has_the_shapes_of_a_real_one():
    whole = make(decoder="transformer", decoder_width=64)
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in student(each, 0.6).state_dict().items()}
        for each in (whole, make(decoder="transformer", decoder_width=64).to("meta"))
    ]
    assert shapes[0] == shapes[1]


def test_a_student_is_new_repeatable_and_captions():
    whole = make().eval()
    before = [parameter.clone() for parameter in whole.parameters()]
    students = []
    for _ in range(2):
        torch.manual_seed(7)
        students.append(student(whole, 0.5))
    assert all(map(torch.equal, students[0].parameters(), students[1].parameters()))
    assert all(map(torch.equal, before, whole.parameters()))
    assert not students[0].training and student(make().train(), 0.5).training
    assert students[0].encodings == {}
    assert (students[0].vocabulary_size, students[0].image_size) == (50, 16)
    assert students[0].settings.encoder_width == 6
    captions = students[0].generate(torch.zeros(2, 16, 16, 3, dtype=torch.uint8), max_tokens=5)
    assert len(captions) == 2


@pytest.mark.parametrize("strength", np.linspace(0, 1, 21))
def test_heads_divide_the_width_and_stay_about_as_wide(strength):
    settings = Settings(decoder="transformer", decoder_width=256, decoder_heads=8)
    small = narrowed(settings, strength)
    assert small == Settings.model_validate(small.model_dump())  # within every bound
    assert small.decoder_width % small.decoder_heads == 0
    assert small.decoder_width < 24 or 16 <= small.decoder_width / small.decoder_heads <= 64


class Pretrained(Encoder):
    """In the place of EfficientNet, which would have to be downloaded: weights that are worth copying."""

    channels, positions, pretrained = 6, 4, True

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 6, 8, stride=8)

    def _grid(self, pixels):
        return self.convolution(pixels)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_pretrained_encoder_is_copied(monkeypatch, trainable):
    def build(settings, image_size, *, load_weights=True):
        encoder = Pretrained()
        encoder.frozen = not settings.encoder_trainable
        return encoder.requires_grad_(settings.encoder_trainable)

    monkeypatch.setattr("trainables.captioning.model.captioner.build_encoder", build)
    whole = make(encoder="efficientnet_lite0", encoder_trainable=trainable)
    small = student(whole, 0.5)
    for copied, original in zip(small.encoder.parameters(), whole.encoder.parameters(), strict=True):
        assert torch.equal(copied, original) and copied is not original
        assert copied.requires_grad == trainable
    assert small.encoder.frozen is not trainable
    assert small.settings.encoder_width == whole.settings.encoder_width  # of no encoder


# what the teacher says


def told(data, teacher, **changes) -> TeacherOutputs:
    arguments = {"features": None, "device": CPU, "temperature": 2.0} | changes
    return teacher_outputs(data, teacher, **arguments)


def full_distributions(teacher, batch, temperature):
    """float64 [B, T, V], computed anew."""
    with torch.no_grad():
        logits = teacher.eval()(batch.inputs, batch.tokens[:, :-1]).double()
    return (logits / temperature).softmax(-1)


def test_what_is_kept_is_what_the_teacher_says(data, monkeypatch):
    monkeypatch.setattr(teacher_module, "KEPT", 5)
    teacher = make(data.tokenizer.vocabulary_size).train()
    outputs = told(data, teacher)
    assert teacher.training
    seen = 0
    for batch in eval_batches(data, split="train", batch_size=7):
        whole = full_distributions(teacher, batch, 2.0)
        for row, caption in enumerate(batch.captions):
            length = data.lengths[caption]
            rows = outputs.starts[caption] + np.arange(length)
            kept = torch.from_numpy(np.exp(outputs.log_probabilities[rows].astype(np.float64)))
            best = whole[row, :length].topk(5)
            torch.testing.assert_close(kept[:, :5], best.values, rtol=3e-3, atol=0)
            torch.testing.assert_close(kept[:, 5], 1 - best.values.sum(-1), rtol=3e-3, atol=1e-6)
            chosen = whole[row, :length].gather(1, torch.from_numpy(outputs.ids[rows].astype(np.int64)))
            torch.testing.assert_close(chosen, best.values, rtol=1e-5, atol=0)  # ids, but for ties
            seen += length
    assert seen == len(outputs.ids) == data.lengths[data.captions_of("train")].sum()


def test_the_teacher_is_asked_once_and_another_teacher_anew(data, monkeypatch):
    asked = []
    forward = Captioner.forward
    monkeypatch.setattr(Captioner, "forward", lambda *arguments: asked.append(1) or forward(*arguments))

    def asks(teacher, **changes):
        asked.clear()
        outputs = told(data, teacher, **changes)
        return bool(asked), outputs

    size = data.tokenizer.vocabulary_size
    teacher = make(size, decoder="transformer", dropout=0)
    first, again = asks(teacher), asks(make(size, decoder="transformer", dropout=0.5))
    assert first[0] and not again[0]  # dropout does not change what is said
    assert np.array_equal(first[1].log_probabilities, again[1].log_probabilities)
    assert asks(teacher, temperature=1.0)[0]
    assert asks(make(size, decoder="transformer", decoder_heads=2))[0]  # the same weights
    with torch.no_grad():
        teacher.decoder.output.bias[3] += 1e-3
    changed = asks(teacher)
    assert changed[0] and not np.array_equal(first[1].log_probabilities, changed[1].log_probabilities)


def test_a_teacher_may_see_features(data):
    teacher = make(data.tokenizer.vocabulary_size).eval()
    features = cached_features(data, teacher.encoder)
    seen = told(data, teacher, features=features).log_probabilities.astype(np.float32)
    (folder,) = data.folder.glob("teacher-*[!k]")  # without the lock
    folder.rename(folder.with_name("elsewhere"))
    images = told(data, teacher).log_probabilities.astype(np.float32)
    np.testing.assert_allclose(seen, images, rtol=0.02, atol=0.02)


# the loss


def outputs_of(logits, lengths, kept, temperature):
    """As if a teacher had said `logits` float64 [B, T, V] at captions 0 to B - 1 of these lengths."""
    starts = np.cumsum(lengths) - lengths
    rows = torch.cat([row[:length] for row, length in zip(logits, lengths, strict=True)]) / temperature
    best = rows.softmax(-1).topk(kept)
    rest = 1 - best.values.sum(-1, keepdim=True)
    return TeacherOutputs(
        ids=best.indices.numpy().astype(np.uint16),
        log_probabilities=torch.cat([best.values, rest], 1).log().numpy().astype(np.float16),
        starts=starts,
        temperature=temperature,
    )


@pytest.fixture
def exam():
    """Logits of a student and a teacher, and targets: three captions of 6, 2 and 4 tokens, 40 words."""
    generator = torch.Generator().manual_seed(0)
    learner, teacher = 2 * torch.randn(2, 3, 6, 40, generator=generator, dtype=torch.float64)
    lengths = np.array([6, 2, 4])
    targets = torch.randint(4, 40, (3, 6), generator=generator)
    targets[torch.arange(6) >= torch.from_numpy(lengths)[:, None]] = PAD
    return learner, teacher, targets, lengths


def exact(learner, teacher, targets, kept, temperature):
    """In float64, by plain probabilities: over the kept words and all the others as one outcome."""
    total = 0.0
    for q, p, target in zip(learner.flatten(0, 1), teacher.flatten(0, 1), targets.flatten(), strict=True):
        if target != PAD:
            q, p = (q / temperature).softmax(-1), (p / temperature).softmax(-1)
            best = p.argsort(descending=True)[:kept]
            p, q = (torch.cat([each[best], 1 - each[best].sum(0, keepdim=True)]) for each in (p, q))
            total = total + temperature**2 * (p * (p / q).log()).sum()
    return total


@pytest.mark.parametrize("kept", [1, 5, 39])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_is_that_of_the_kept_words_and_the_rest(exam, kept, temperature):
    learner, teacher, targets, lengths = exam
    outputs = outputs_of(teacher, lengths, kept, temperature)
    logits = learner.float().requires_grad_()
    found = outputs.divergence(logits, targets, np.arange(3))
    exactly = learner.clone().requires_grad_()
    expected = exact(exactly, teacher, targets, kept, temperature)
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)  # answers are kept in float16
    (gradient,), (right,) = torch.autograd.grad(found, logits), torch.autograd.grad(expected, exactly)
    torch.testing.assert_close(gradient.double(), right, rtol=0, atol=2e-3 * right.abs().max().item())
    assert (gradient[targets == PAD] == 0).all() and (gradient[targets != PAD] != 0).any(-1).all()


def test_with_one_word_for_the_rest_the_divergence_is_the_whole_one(exam):
    learner, teacher, targets, lengths = exam
    found = outputs_of(teacher, lengths, 39, 1.0).divergence(learner, targets, np.arange(3))
    whole = (teacher.softmax(-1) * (teacher.log_softmax(-1) - learner.log_softmax(-1))).sum(-1)
    assert found.item() == pytest.approx(whole[targets != PAD].sum().item(), rel=2e-3)


def test_a_student_that_agrees_diverges_by_nothing(exam):
    _, teacher, targets, lengths = exam
    outputs = outputs_of(teacher, lengths, 5, 2.0)
    assert outputs.divergence(teacher, targets, np.arange(3)).item() == pytest.approx(0, abs=1e-4)


def test_captions_add_up_however_they_are_divided(exam):
    learner, teacher, targets, lengths = exam
    outputs = outputs_of(teacher, lengths, 5, 2.0)
    whole = outputs.divergence(learner, targets, np.arange(3))
    shares = [outputs.divergence(learner[part], targets[part], np.array(part)) for part in ([2], [1, 0])]
    assert sum(share.item() for share in shares) == pytest.approx(whole.item(), rel=1e-5)


# training


def trainer(data, captioner, teacher=None, epochs=1):
    worker = Trainer(
        captioner,
        captioner.settings,
        precision="fp32",
        steps_per_epoch=steps_per_epoch(data, captioner.settings.batch_size),
        max_epochs=epochs,
        device=CPU,
    )
    worker.teacher = teacher
    return worker


def epoch(worker, data, number=0):
    return worker.train_epoch(number, train_steps(data, epoch=number, seed=0, batch_size=24))


def taught(data, weight, teacher, epochs=1):
    settings = {"compression.distil_weight": weight, "dropout": 0.0, "decoder_width": 16}
    captioner = make(data.tokenizer.vocabulary_size, seed=1, **settings)
    return trainer(data, captioner, told(data, teacher), epochs)


def test_the_objective_is_shared_between_captions_and_teacher(data):
    teacher = make(data.tokenizer.vocabulary_size)
    (step,) = list(train_steps(data, epoch=0, seed=0, batch_size=10_000))
    tallies = [taught(data, weight, teacher)._accumulate(step) for weight in (0.0, 0.25, 1.0)]
    objective, likelihood, tokens = (torch.stack(tallies)[:, place] for place in range(3))
    assert objective[0] == likelihood[0]
    assert objective[1].item() == pytest.approx(0.75 * objective[0].item() + 0.25 * objective[2].item())
    assert (likelihood == likelihood[0]).all() and (tokens == step.global_tokens).all()


@pytest.mark.parametrize(
    "batch_size, workers, micro_batch_size", [(22, 2, None), (22, 1, 5), (22, 3, 7), (2, 3, None)]
)
def test_passes_and_workers_add_up_to_the_whole(data, batch_size, workers, micro_batch_size):
    """Two captions for three workers: one of them has a filler, which no teacher has heard of."""
    teacher = make(data.tokenizer.vocabulary_size)

    def gradients(shares):
        worker = taught(data, 0.5, teacher)
        tally = sum(worker._accumulate(share) for share in shares)
        return torch.cat([p.grad.flatten() for p in worker.parameters]), tally[:3]

    def share(rank, **division):
        return next(train_steps(data, rank=rank, epoch=0, seed=0, batch_size=batch_size, **division))

    parts = [share(rank, world_size=workers, micro_batch_size=micro_batch_size) for rank in range(workers)]
    gradient, tally = gradients(parts)
    # Each worker's gradient is scaled by their number, which is one in a process that is alone.
    whole, sums = gradients([share(0)])
    torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(tally, sums, rtol=1e-5, atol=0)


def test_a_teacher_pulls(data):
    size = data.tokenizer.vocabulary_size
    master = make(size, dropout=0.0)
    lessons = trainer(data, master, epochs=4)
    for number in range(4):
        epoch(lessons, data, number)
    worker = taught(data, 1.0, master, epochs=4)
    divergence = [epoch(worker, data, number)["train_loss"] for number in range(4)]
    assert divergence == sorted(divergence, reverse=True)
    assert divergence[-1] < 0.6 * divergence[0]


def test_replacing_without_a_teacher_ends_the_lessons(data):
    worker = taught(data, 0.5, make(data.tokenizer.vocabulary_size))
    worker.replace(worker.captioner)
    (step,) = list(train_steps(data, epoch=0, seed=0, batch_size=10_000))
    objective, likelihood = worker._accumulate(step)[:2]
    assert objective == likelihood
