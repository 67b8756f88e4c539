"""The contract of every method and sequence of methods, and what each of them does on its own."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from trainables.captioning.compress import METHODS, compress, find_strength, stored_bytes
from trainables.captioning.compress.arithmetic import Int8Linear, Int8TiedEmbedding, fast, float_state
from trainables.captioning.compress.encoding import Encoding, decode, encode, encoded_bytes, on_grid
from trainables.captioning.compress.hold import hold, plain_state, prune_further, released
from trainables.captioning.compress.low_rank import LowRank, LowRankConv2d, LowRankLinear, low_rank
from trainables.captioning.compress.prune import prune, sparsity, sparsity_at
from trainables.captioning.compress.rebuild import rebuilt
from trainables.captioning.compress.share import share
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.words import TiedEmbedding
from trainables.captioning.settings import METHODS as NAMES
from trainables.captioning.settings import Compression, Settings
from trainables.trial import SettingsError

VOCABULARY, SIZE = 60, 16
SHARED = {"tie_embeddings": True, "share_layers": True}
every_decoder = pytest.mark.parametrize("kind", ["gru", "gru_attention", "transformer"])
sharing = pytest.mark.parametrize("shared", [{}, SHARED], ids=["whole", "shared"])
TUNABLE = ["prune_units", "low_rank", "prune", "distil"]
SEQUENCES = {
    **{name: 0.6 if name in TUNABLE else None for name in NAMES},
    "prune_units+low_rank": 0.7,
    "prune+int8": 0.85,
    "low_rank+int8": 0.85,
    "share+prune_units+prune+int4": 0.92,
    "distil+fp16": 0.8,
}
every_sequence = pytest.mark.parametrize("sequence", SEQUENCES)


def make(kind: str = "gru", seed: int = 0, vocabulary: int = VOCABULARY, **settings) -> Captioner:
    torch.manual_seed(seed)
    settings = {"decoder_width": 48, "encoder_width": 16, "decoder_layers": 2, "dropout": 0.0} | settings
    return Captioner(Settings(decoder=kind, **settings), vocabulary, SIZE).eval()


def batch(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (rows, SIZE, SIZE, 3), generator=generator).to(torch.uint8)
    return images, torch.randint(4, VOCABULARY, (rows, 6), generator=generator)


def by_steps(captioner: Captioner, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    state, logits = captioner.decoder.start(captioner.encode(images)), []
    for t in range(tokens.shape[1]):
        step, state = captioner.decoder.step(tokens[:, t], state)
        logits.append(step)
    return torch.stack(logits, 1)


def smaller(captioner: Captioner, sequence: str, ratio: float | None = None) -> Captioner:
    return compress(captioner, sequence.split("+"), ratio or SEQUENCES[sequence])


def removed(captioner: Captioner, small: Captioner) -> float:
    return 1 - stored_bytes(small) / stored_bytes(captioner)


class TestEverySequence:
    """What is promised of each method, and of several one after the other."""

    @every_sequence
    @every_decoder
    def test_it_removes_what_it_is_asked_to_and_leaves_the_original_alone(self, kind, sequence):
        captioner, (images, tokens) = make(kind), batch()
        before = captioner(images, tokens)
        small = smaller(captioner.train(), sequence)
        assert small.training
        assert torch.equal(captioner.eval()(images, tokens), before)
        if SEQUENCES[sequence]:
            assert removed(captioner, small) == pytest.approx(SEQUENCES[sequence], abs=0.05)
        else:
            assert removed(captioner, small) > 0.01
        logits = small.eval()(images, tokens)
        assert logits.shape == before.shape and logits.isfinite().all()
        torch.testing.assert_close(by_steps(small, images, tokens), logits, rtol=1e-4, atol=1e-5)

    @every_sequence
    def test_shapes_tell_the_bytes(self, sequence):
        captioner = make("transformer")
        names = sequence.split("+")
        shapes_only = compress(copy.deepcopy(captioner).to("meta"), names, SEQUENCES[sequence])
        real = smaller(captioner, sequence)
        assert abs(stored_bytes(shapes_only) - stored_bytes(real)) < 0.01 * stored_bytes(captioner)

    @every_sequence
    @every_decoder
    def test_gradients_flow_and_what_is_trained_is_what_ships(self, kind, sequence):
        held, (images, tokens) = hold(smaller(make(kind).train(), sequence)), batch()
        optimizer = torch.optim.AdamW(held.parameters(), 1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            held(images, tokens).square().mean().backward()
            without = [name for name, p in held.named_parameters() if p.grad is None or not p.grad.any()]
            assert without == []
            optimizer.step()
        shipped = released(held)
        torch.testing.assert_close(shipped(images, tokens), held.eval()(images, tokens))
        again = released(shipped)
        for name, tensor in shipped.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
            if name in shipped.encodings:
                assert torch.equal(on_grid(tensor, shipped.encodings[name].kind), tensor)

    @every_sequence
    @sharing
    def test_its_weights_can_be_put_into_another_captioner(self, sequence, shared):
        if shared and "share" in sequence:
            pytest.skip("nothing is left to share")
        if shared:
            sequence_ratio = min(SEQUENCES[sequence] or 0.6, 0.85 if "int4" not in sequence else 0.92)
        held = hold(smaller(make(**shared), sequence, sequence_ratio if shared else None))
        state = plain_state(held)
        with torch.device("meta"):
            empty = Captioner(held.settings, VOCABULARY, SIZE)
        other = rebuilt(empty, {name: tuple(tensor.shape) for name, tensor in state.items()}).to_empty(
            device="cpu"
        )
        other.load_state_dict(state)
        other.encodings = held.encodings
        images, tokens = batch()
        torch.testing.assert_close(released(other)(images, tokens), released(held)(images, tokens))

    @every_sequence
    def test_what_a_trained_captioner_says_survives_a_little_of_it(self, sequence):
        if "distil" in sequence or "share" in sequence:
            pytest.skip("starts anew, or merges what has not been merged before")
        captioner, (images, tokens) = make(), batch()
        names = sequence.split("+")
        least = {
            "low_rank": 0.05, "prune": 0.1, "prune_units": 0.05, "prune_units+low_rank": 0.05,
            "prune+int8": 0.73, "low_rank+int8": 0.73,
        }.get(sequence)  # fmt: skip
        small = released(compress(captioner, names, least))
        before, after = (model(images, tokens).log_softmax(-1) for model in (captioner, small))
        assert (after.exp() - before.exp()).abs().max() < 0.02
        assert not torch.equal(before, after)

    @every_sequence
    def test_nonsense_is_refused_with_what_can_be_done(self, sequence):
        if not any(METHODS[name].tunable for name in sequence.split("+")):
            pytest.skip("has no ratio")
        with pytest.raises(SettingsError, match=r"0\.999: .* removes between -?0\.\d+ and (0\.\d+) of this"):
            smaller(make(), sequence, 0.999)
        # So small a captioner has nothing left that some of them could remove.
        with pytest.raises(SettingsError, match=r"0\.999: (there is nothing|.* removes between -?0)"):
            smaller(make(decoder_width=8, encoder_width=4), sequence, 0.999)


def test_the_names_in_the_settings_are_those_of_the_methods():
    assert tuple(METHODS) == NAMES


def test_the_ratio_of_a_fixed_method_does_not_matter():
    assert find_strength(make(), ["int8"], None) == find_strength(make(), ["int8"], 0.1)


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("int8+prune", "prune+int8"),
        (["int4", "distil", "prune"], "distil+prune+int4"),
        ("none", "none"),
        ("low_rank", "low_rank"),
    ],
)
def test_methods_come_in_the_order_of_their_application(given, becomes):
    assert Compression(method=given).method == becomes
    assert "+".join(Compression(method=given).methods) or becomes == "none"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("prune+int9", "no method 'int9'; did you mean 'int8'"),
        ("quantum", "no method 'quantum'; .*prune_units"),
        ("int8+int8", "'int8' is there twice"),
        ("int8+int4", "int8 and int4 are number formats; keep one"),
        (3, "a method, methods joined by"),
    ],
)
def test_what_is_no_method_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Compression(method=given)


# encodings


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8", "int8_per_tensor", "int4"])
@pytest.mark.parametrize("shape", [(7, 45), (12, 3, 3, 3), (5, 1), (64,), (3, 64)])
@pytest.mark.parametrize("sparse", [False, True])
def test_what_is_read_is_what_was_computed_with_and_takes_the_bytes_that_were_said(kind, shape, sparse):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    if sparse:
        weight *= torch.rand(shape) < 0.3
    density = weight.count_nonzero().item() / weight.numel() if sparse else 1.0
    encoding = Encoding(kind, density)
    stored = encode(weight, encoding)
    assert torch.equal(decode(stored, shape, encoding), on_grid(weight, kind))
    assert torch.equal(on_grid(on_grid(weight, kind), kind), on_grid(weight, kind))
    total = sum(part.numel() * part.element_size() for part in stored.values())
    if not (sparse and kind == "int4"):  # what is rounded to zero is left out, too
        assert total == encoded_bytes(shape, encoding)
    assert total <= encoded_bytes(shape, encoding)


@pytest.mark.parametrize(("kind", "steps"), [("int8", 127), ("int8_per_tensor", 127), ("int4", 7)])
def test_a_grid_is_as_fine_as_its_bits_allow(kind, steps):
    torch.manual_seed(0)
    weight = torch.randn(4, 32, dtype=torch.float64)
    peak = weight.abs().amax() if kind == "int8_per_tensor" else weight.abs().amax(1, keepdim=True)
    # Half a step, and what a scale of few digits adds at the ends.
    bound = (
        peak / steps * (0.5 + steps / (2 if kind == "int4" else 0.5) * 2 ** -(8 if kind == "int4" else 11))
    )
    assert ((on_grid(weight.float(), kind).double() - weight).abs() <= bound).all()


# int8 arithmetic


def rounded(matrix: torch.Tensor) -> torch.Tensor:
    """Each row to the nearest of 255 even steps, in float64."""
    step = matrix.double().abs().amax(-1, keepdim=True) / 127
    return torch.round(matrix.double() / step) * step


def test_int8_linear_is_a_product_of_rounded_rows():
    torch.manual_seed(0)
    linear, x = nn.Linear(37, 21), 3 * torch.randn(2, 5, 37)
    expected = rounded(x) @ rounded(linear.weight).T + linear.bias
    torch.testing.assert_close(Int8Linear(linear)(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_int8_linear_without_bias_and_with_a_row_of_zeros():
    linear = nn.Linear(8, 3, bias=False)
    out = Int8Linear(linear)(torch.stack([torch.zeros(8), torch.ones(8)]))
    assert out[0].abs().max() == 0
    torch.testing.assert_close(out[1], linear.weight.sum(1), rtol=0.05, atol=0.05)


def test_a_tied_int8_matrix_is_looked_up_and_multiplied_in_the_same_rounding():
    torch.manual_seed(0)
    embedding, x = TiedEmbedding(40, 32), torch.randn(2, 5, 32)
    with torch.no_grad():
        embedding.bias.normal_()
    small, matrix = Int8TiedEmbedding(embedding), rounded(embedding.weight)
    tokens = torch.tensor([[3, 39], [0, 0]])
    torch.testing.assert_close(small(tokens).double(), matrix[tokens] * 32**0.5, rtol=1e-5, atol=1e-6)
    expected = rounded(x) @ matrix.T + embedding.bias
    torch.testing.assert_close(small.logits(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def everything_in_int8(monkeypatch):
    monkeypatch.setattr("trainables.captioning.compress.arithmetic.FEWEST_WEIGHTS", 1024)


@every_decoder
@sharing
def test_int8_arithmetic_says_the_same_and_keeps_the_weights(kind, shared, everything_in_int8):
    shipped, (images, tokens) = released(smaller(make(kind, **shared), "int8")), batch()
    quick = fast(shipped)
    assert any(isinstance(module, Int8Linear) for module in quick.modules())
    assert (quick(images, tokens).softmax(-1) - shipped(images, tokens).softmax(-1)).abs().max() < 5e-3
    torch.testing.assert_close(by_steps(quick, images, tokens), quick(images, tokens), rtol=0, atol=2e-3)
    state = float_state(quick)
    assert state.keys() == shipped.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in shipped.state_dict().items())
    assert stored_bytes(quick) == stored_bytes(shipped)


@every_decoder
def test_an_int8_caption_does_not_depend_on_batch_mates(kind, everything_in_int8):
    small, (images, tokens) = fast(released(smaller(make(kind), "int8"))), batch()
    images[0] = 255  # an outlier must not coarsen the others
    alone = torch.cat([small(images[i : i + 1], tokens[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(small(images, tokens), alone, rtol=0, atol=2e-3)


def test_other_formats_are_computed_in_float(everything_in_int8):
    for kind in ("int8_per_tensor", "int4", "fp16"):
        assert not any(isinstance(m, Int8Linear) for m in fast(released(smaller(make(), kind))).modules())


# low rank


def test_the_factors_are_the_best_approximation():
    torch.manual_seed(0)
    linear = nn.Linear(20, 30).double()
    values = torch.linalg.svdvals(linear.weight)
    error = torch.linalg.matrix_norm(LowRankLinear(linear, 7).weight - linear.weight)
    torch.testing.assert_close(error, values[7:].square().sum().sqrt())  # Eckart & Young
    x = torch.randn(4, 20).double()
    torch.testing.assert_close(LowRankLinear(linear, 20)(x), linear(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_filter_of_full_rank_is_the_filter(stride):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 8, 3, stride=stride, padding=1).double(), torch.randn(2, 6, 9, 9).double()
    torch.testing.assert_close(LowRankConv2d(layer, 8)(x), layer(x))


def test_rank_goes_where_the_energy_is():
    captioner = make(decoder_layers=1)
    plain, flat = captioner.decoder.gru.hidden[0], captioner.decoder.initial
    with torch.no_grad():
        plain.weight.copy_(torch.outer(torch.randn(144), torch.randn(48)))  # of rank 1
    small = low_rank(captioner, 0.5)
    assert small.decoder.gru.hidden[0].left.shape[1] == 1
    factors = small.decoder.initial
    assert not isinstance(factors, LowRank) or factors.left.shape[1] > 0.5 * min(flat.weight.shape) / 2
    torch.testing.assert_close(small.decoder.gru.hidden[0].weight, plain.weight, rtol=1e-4, atol=1e-4)


def test_a_frozen_encoder_stays_whole():
    captioner = make()
    captioner.encoder.frozen = True
    assert not any(name.startswith("encoder.") for name in prune(captioner, 0.5).encodings)
    assert not any(isinstance(m, LowRank) for m in low_rank(captioner, 0.9).encoder.modules())
    assert any(isinstance(m, LowRank) for m in low_rank(make(), 0.9).encoder.modules())


# pruning


def test_the_smallest_are_zero_by_lamp_scores():
    captioner = make()
    small = prune(captioner, 0.5)
    zeros = total = 0
    scores = {True: [], False: []}
    for name in small.encodings:
        weight = captioner.get_parameter(name).detach().double().square()
        kept = small.get_parameter(name) != 0
        zeros, total = zeros + int((~kept).sum()), total + kept.numel()
        flat = weight.flatten()
        for index in range(0, flat.numel(), 97):  # by definition, one by one
            score = flat[index] / flat[flat >= flat[index]].sum()
            scores[bool(kept.flatten()[index])].append(float(score))
        assert torch.equal(small.get_parameter(name)[kept], captioner.get_parameter(name)[kept])
    assert zeros / total == pytest.approx(sparsity(0.5), abs=1e-3)
    assert max(scores[False]) <= min(scores[True]) * (1 + 1e-9)


def test_zhu_and_gupta():
    assert [sparsity_at(progress) for progress in (0, 0.5, 1, 2)] == [0, 0.875, 1, 1]


def test_more_is_pruned_in_place_and_stays_pruned():
    held, (images, tokens) = hold(prune(make().train(), 0.2)), batch()
    optimizer = torch.optim.AdamW(held.parameters(), 1e-2)
    for target in (0.2, 0.6):
        if target > 0.2:
            prune_further(held, target)
        for _ in range(2):
            optimizer.zero_grad()
            held(images, tokens).square().mean().backward()
            optimizer.step()
        shipped, state = released(held), plain_state(held)
        for each in (shipped.state_dict(), state):
            zeros = sum(int((each[name] == 0).sum()) for name in held.encodings)
            assert zeros / sum(each[name].numel() for name in held.encodings) == pytest.approx(
                target, abs=0.01
            )
    assert stored_bytes(released(held)) < 0.75 * stored_bytes(make())


# sharing


@every_decoder
@pytest.mark.parametrize("widths", [{}, {"embedding_width": 24}], ids=["as-wide", "narrow-words"])
def test_what_was_shared_in_fact_stays_as_it_was(kind, widths):
    """Layers and word vectors that are equal already lose nothing, where widths let them be equal."""
    captioner, (images, tokens) = make(kind, **widths), batch()
    decoder = captioner.decoder
    with torch.no_grad():
        layers = decoder.layers if kind == "transformer" else decoder.gru.hidden
        layers[1].load_state_dict(layers[0].state_dict())
        if kind != "transformer":
            if widths:
                inputs = decoder.gru.input
                inputs[0].weight.copy_(inputs[1].weight @ torch.randn(48, 24))
                inputs[0].bias.copy_(inputs[1].bias)
            else:
                decoder.gru.input[1].load_state_dict(decoder.gru.input[0].state_dict())
        factor = decoder.embedding.weight.shape[1] ** 0.5 / (48**0.5 if kind == "transformer" else 1)
        if decoder.output.weight.shape[1] == decoder.embedding.weight.shape[1]:
            decoder.output.weight.copy_(decoder.embedding.weight / factor)
        else:
            decoder.output.weight.copy_(decoder.embedding.weight @ torch.randn(24, 48))
    small = share(captioner, 1.0)
    assert small.settings.tie_embeddings and small.settings.share_layers
    torch.testing.assert_close(small(images, tokens), captioner(images, tokens), rtol=1e-3, atol=1e-3)


def test_nothing_left_to_share_is_refused():
    with pytest.raises(SettingsError, match="shared already"):
        share(make(**SHARED), 1.0)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_compression_needs_no_ray():
    code = "import sys, trainables.captioning.compress.artefact; print({'ray', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("method", ["low_rank", "prune", "prune_units", "distil"])
def test_a_method_that_finds_nothing_to_remove_says_so(method):
    tiny = make(vocabulary=20, decoder_width=8, encoder_width=4, decoder_layers=1)
    with pytest.raises(SettingsError, match=f"nothing in this captioner for {method} .*it removes nothing"):
        compress(tiny, [method], 0.5)


def test_what_the_others_of_a_sequence_remove_is_told_where_one_finds_nothing():
    pytest.importorskip("efficientnet_lite_pytorch")
    frozen = {"encoder": "efficientnet_lite0", "encoder_trainable": False}
    tiny = make(vocabulary=20, decoder_width=8, decoder_layers=1, embedding_width=8, **frozen)
    with pytest.raises(
        SettingsError, match=r"nothing .* for prune_units .*: prune_units\+int8 removes 0\.7\d\d"
    ):
        compress(tiny, ["prune_units", "int8"], 0.5)
