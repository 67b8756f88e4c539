import itertools

import pytest
import torch

from trainables.captioning.data.tokenizer import BOS, EOS, PAD, UNK
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.decoding import State, _beam_search, generate
from trainables.captioning.settings import Settings

VOCABULARY = 7
WORDS = range(4, VOCABULARY)


class Table:
    """A decoder whose next-token logits are looked up: [image, position, previous token]."""

    def __init__(self, images: int, length: int, seed: int, ends: float = 0.0):
        generator = torch.Generator().manual_seed(seed)
        self.logits = 2 * torch.randn(images, length, VOCABULARY, VOCABULARY, generator=generator)
        self.logits[..., EOS] += ends
        self.features = torch.arange(images).view(-1, 1, 1).float()
        self.rows_computed = 0

    def start(self, features: torch.Tensor) -> State:
        image = features[:, 0, 0].long()
        return State(memory=(image,), carry=(torch.zeros_like(image),))

    def step(self, token: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        (image,), (position,) = state.memory, state.carry
        self.rows_computed += len(token)
        return self.logits[image, position, token].clone(), State(memory=(image,), carry=(position + 1,))

    def log_probabilities(self, image: int, position: int, previous: int) -> dict[int, float]:
        row = self.logits[image, position, previous].double().clone()
        row[[PAD, BOS, UNK]] = -torch.inf
        return dict(enumerate(row.log_softmax(-1).tolist()))


def score(table: Table, image: int, sequence: tuple[int, ...], length_penalty: float) -> float:
    total, previous = 0.0, BOS
    for position, token in enumerate(sequence):
        total += table.log_probabilities(image, position, previous)[token]
        previous = token
    return total / len(sequence) ** length_penalty


def without_end(sequence: tuple[int, ...]) -> list[int]:
    return [token for token in sequence if token != EOS]


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_wide_enough_finds_the_best_of_all_captions(length_penalty, seed):
    length = 4
    table = Table(3, length, seed)
    written = generate(
        table, table.features, max_tokens=length, beam_width=3**length, length_penalty=length_penalty
    )
    every = [(*body, EOS) for n in range(length) for body in itertools.product(WORDS, repeat=n)] + list(
        itertools.product(WORDS, repeat=length)
    )
    for image in range(3):
        best = max(every, key=lambda sequence: score(table, image, sequence, length_penalty))
        assert written[image] == without_end(best)


def plain_beam(table: Table, image: int, length: int, width: int, length_penalty: float) -> list[int]:
    """The same rules on Python lists, one image at a time, never stopping early."""
    alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for position in range(length):
        options = []
        for total, sequence in alive:
            previous = sequence[-1] if sequence else BOS
            for token, gain in table.log_probabilities(image, position, previous).items():
                if gain > -float("inf"):
                    options.append((total + gain, (*sequence, token)))
        options = sorted(options, reverse=True)[: width - len(ended)]
        finished = [option for option in options if option[1][-1] == EOS or position + 1 == length]
        ended += [(total / len(s) ** length_penalty, s) for total, s in finished]
        alive = [option for option in options if option not in finished]
    return without_end(max(ended)[1])


@pytest.mark.parametrize("width", [2, 3, 5])
@pytest.mark.parametrize("ends", [-1.0, 0.0, 2.0])
def test_a_narrow_beam_prunes_by_the_rules(width, ends):
    for seed in range(10):
        table = Table(6, 9, seed, ends)
        written = generate(table, table.features, max_tokens=9, beam_width=width, length_penalty=0.7)
        assert written == [plain_beam(table, image, 9, width, 0.7) for image in range(6)]


def test_a_beam_of_one_is_greedy():
    for seed in range(10):
        table = Table(5, 8, seed)
        greedy = generate(table, table.features, max_tokens=8, beam_width=1)
        assert greedy == [plain_beam(table, image, 8, 1, 0.7) for image in range(5)]
        beam = _beam_search(table, table.features, 8, 1, 0.7).tolist()
        assert [row[: row.index(EOS)] if EOS in row else row for row in beam] == greedy


@pytest.mark.parametrize("beam_width", [1, 3])
def test_special_tokens_are_never_written(beam_width):
    table = Table(4, 6, 0)
    table.logits[..., [PAD, BOS, UNK]] = 100.0
    for caption in generate(table, table.features, max_tokens=6, beam_width=beam_width):
        assert set(caption) <= set(WORDS)


@pytest.mark.parametrize("beam_width", [1, 3])
def test_a_caption_that_does_not_end_is_cut(beam_width):
    table = Table(2, 5, 0, ends=-1000.0)
    captions = generate(table, table.features, max_tokens=5, beam_width=beam_width)
    assert [len(caption) for caption in captions] == [5, 5]


@pytest.mark.parametrize("beam_width", [1, 3])
def test_nothing_is_computed_after_the_last_end(beam_width):
    table = Table(4, 50, 0, ends=1000.0)
    assert generate(table, table.features, max_tokens=50, beam_width=beam_width) == [[]] * 4
    assert table.rows_computed == 4 * beam_width


def test_images_that_are_done_leave_the_batch():
    table = Table(8, 40, 0, ends=-1000.0)
    table.logits[1:, 0, :, EOS] = 1000.0  # all but the first end at once
    generate(table, table.features, max_tokens=40, beam_width=3)
    assert table.rows_computed == 8 * 3 + 39 * 3


@pytest.mark.parametrize("kind", ["gru", "gru_attention", "transformer"])
@pytest.mark.parametrize("beam_width", [1, 3])
def test_a_caption_does_not_depend_on_batch_mates(kind, beam_width):
    torch.manual_seed(1)
    settings = Settings(decoder=kind, decoder_width=16, encoder_width=4, decoder_layers=2)
    captioner = Captioner(settings, 12, 16).double().eval()
    with torch.no_grad():
        for parameter in captioner.decoder.parameters():
            parameter *= 4  # far from uniform, so that captions differ
    # Images that differ on average too: the plain GRU sees nothing else.
    features = torch.randn(9, captioner.encoder.positions, captioner.encoder.channels).double()
    features += 3 * torch.randn(9, 1, captioner.encoder.channels)
    together = captioner.generate(features, max_tokens=10, beam_width=beam_width)
    alone = [captioner.generate(row[None], max_tokens=10, beam_width=beam_width)[0] for row in features]
    assert together == alone
    assert len({tuple(caption) for caption in together}) > 1
