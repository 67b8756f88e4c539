import math
import re

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainables.captioning.data.tokenizer import BOS, EOS, PAD
from trainables.captioning.model.captioner import Captioner, token_loss
from trainables.captioning.model.decoders import build_decoder
from trainables.captioning.model.recurrent import Gru
from trainables.captioning.settings import Settings
from trainables.trial import SettingsError

CHANNELS, POSITIONS, VOCABULARY = 12, 9, 30
every_decoder = pytest.mark.parametrize("kind", ["gru", "gru_attention", "transformer"])
depths = pytest.mark.parametrize("layers", [1, 2])
WHOLE = {"tie_embeddings": False, "share_layers": False}
sharing = pytest.mark.parametrize(
    "shared",
    [
        WHOLE,
        {"tie_embeddings": True},  # word vectors narrower than the decoder: a projection between
        {"tie_embeddings": True, "embedding_width": None},
        {"share_layers": True},
        {"tie_embeddings": True, "share_layers": True},
    ],
    ids=["whole", "tied", "tied-as-wide", "shared", "tied-shared"],
)


def make(kind: str, layers: int = 1, **settings) -> nn.Module:
    torch.manual_seed(0)
    settings = {"decoder_width": 24, "decoder_heads": 3, "embedding_width": 16, "dropout": 0.0} | settings
    return build_decoder(
        Settings(decoder=kind, decoder_layers=layers, **settings),
        channels=CHANNELS,
        positions=POSITIONS,
        vocabulary_size=VOCABULARY,
    ).double()


def batch(rows: int = 3, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + length)
    features = torch.randn(rows, POSITIONS, CHANNELS, generator=generator, dtype=torch.float64)
    return features, torch.randint(4, VOCABULARY, (rows, length), generator=generator)


@every_decoder
@depths
@sharing
def test_step_by_step_is_teacher_forcing(kind, layers, shared):
    decoder, (features, tokens) = make(kind, layers, **shared).eval(), batch()
    logits = decoder(features, tokens)
    assert logits.shape == (3, 7, VOCABULARY)
    state = decoder.start(features)
    for t in range(tokens.shape[1]):
        step, state = decoder.step(tokens[:, t], state)
        torch.testing.assert_close(step, logits[:, t])


@every_decoder
def test_a_padded_caption_is_read_like_one_alone(kind):
    decoder, (features, tokens) = make(kind).eval(), batch()
    tokens[1, 4:] = PAD
    together = decoder(features, tokens)
    torch.testing.assert_close(together[1:2, :4], decoder(features[1:2], tokens[1:2, :4]))


@every_decoder
def test_no_token_sees_what_follows(kind):
    decoder, (features, tokens) = make(kind).eval(), batch()
    changed = tokens.clone()
    changed[:, 4] = (tokens[:, 4] - 3) % (VOCABULARY - 4) + 4
    before, after = decoder(features, tokens), decoder(features, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().max() > 1e-3


@every_decoder
def test_the_image_decides(kind):
    decoder, (features, tokens) = make(kind).eval(), batch()
    assert (decoder(features, tokens) - decoder(features.flip(0), tokens)).abs()[0].max() > 1e-4


@pytest.mark.parametrize("kind", ["gru_attention", "transformer"])
def test_where_in_the_image_matters(kind):
    decoder, (features, tokens) = make(kind).eval(), batch()
    assert (decoder(features, tokens) - decoder(features.flip(1), tokens)).abs().max() > 1e-5


@every_decoder
@depths
@sharing
def test_every_parameter_is_used(kind, layers, shared):
    """DDP hangs or complains otherwise."""
    decoder, (features, tokens) = make(kind, layers, dropout=0.1, **shared).train(), batch()
    decoder(features, tokens).square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []


@every_decoder
@pytest.mark.parametrize("share_layers", [False, True])
def test_rows_can_be_repeated_followed_and_kept(kind, share_layers):
    decoder, (features, tokens) = make(kind, 2, share_layers=share_layers).eval(), batch()
    _, state = decoder.step(tokens[:, 0], decoder.start(features))
    twice = state.repeat(2)
    _, twice = decoder.step(tokens[:, :2].flatten(), twice)  # two beams per image read different words
    swapped = twice.follow(torch.tensor([1, 0, 2, 3, 5, 5])).keep(torch.tensor([0, 4]))
    logits, _ = decoder.step(tokens[[0, 2], 2], swapped)
    expected = torch.cat(
        [
            decoder(features[:1], tokens[:1, [0, 1, 2]])[:, -1],  # image 0, the beam that read word 1
            decoder(features[2:], tokens[2:, [0, 1, 2]])[:, -1],
        ]
    )
    torch.testing.assert_close(logits, expected)


@depths
@pytest.mark.parametrize(("inputs", "shared"), [(5, False), (6, True)])
def test_gru_is_torchs(layers, inputs, shared):
    torch.manual_seed(0)
    gru = Gru(inputs, 6, layers, 0.0, shared=shared).double()
    oracle = nn.GRU(inputs, 6, layers, batch_first=True).double()
    for i in range(layers):
        kept = 0 if shared else i
        with torch.no_grad():
            getattr(oracle, f"weight_ih_l{i}").copy_(gru.input[kept].weight)
            getattr(oracle, f"bias_ih_l{i}").copy_(gru.input[kept].bias)
            getattr(oracle, f"weight_hh_l{i}").copy_(gru.hidden[kept].weight)
            getattr(oracle, f"bias_hh_l{i}").copy_(gru.hidden[kept].bias)
    x, start = torch.randn(2, 4, inputs).double(), torch.randn(2, layers, 6).double()
    expected, end = oracle(x, start.transpose(0, 1).contiguous())
    torch.testing.assert_close(gru(x, start), expected)
    state = start
    for t in range(4):
        out, state = gru.step(x[:, t], state)
        torch.testing.assert_close(out, expected[:, t])
    torch.testing.assert_close(state, end.transpose(0, 1))


def test_attention_is_the_papers_formula():
    decoder, (features, tokens) = make("gru_attention").eval(), batch(2, 3)
    decoder.requires_grad_(False)
    logits, attention = decoder.explain(features, tokens)
    values, state = decoder.normalise(decoder.project(features)) + decoder.place, decoder.start(features)
    hidden = decoder.gru(decoder.embedding(tokens), state.carry[0])
    for b in range(2):
        for t in range(3):
            scores = [
                float(
                    decoder.score.weight[0]
                    @ torch.tanh(
                        decoder.query.weight @ hidden[b, t]
                        + decoder.key.weight @ values[b, p]
                        + decoder.key.bias
                    )
                )
                for p in range(POSITIONS)
            ]
            weights = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
            torch.testing.assert_close(attention[b, t], torch.tensor(weights).double())
            context = sum(w * values[b, p] for p, w in enumerate(weights))
            read = torch.tanh(decoder.read(torch.cat([hidden[b, t], context])))
            torch.testing.assert_close(logits[b, t], decoder.output(read))


def test_step_keeps_the_attention_it_paid():
    decoder, (features, tokens) = make("gru_attention").eval(), batch()
    _, attention = decoder.explain(features, tokens)
    _, state = decoder.step(tokens[:, 0], decoder.start(features))
    torch.testing.assert_close(state.attention, attention[:, 0])


def test_transformer_is_torchs():
    decoder, (features, tokens) = make("transformer", 2).eval(), batch()
    memory = decoder.normalise(decoder.project(features)) + decoder.place
    length, width = tokens.shape[1], 24
    x = decoder.widen(decoder.embedding(tokens)) * math.sqrt(width)
    for t in range(length):
        for i in range(width // 2):
            angle = t / 10_000 ** (i / (width // 2))
            x[:, t, i] += math.sin(angle)
            x[:, t, width // 2 + i] += math.cos(angle)
    mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
    for layer in decoder.layers:
        oracle = nn.TransformerDecoderLayer(
            width, 3, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
        ).eval()
        with torch.no_grad():
            for ours, theirs in ((layer.itself, oracle.self_attn), (layer.across, oracle.multihead_attn)):
                parts = (ours.query, ours.key, ours.value)
                theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
                theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
                theirs.out_proj.load_state_dict(ours.out.state_dict())
        oracle.linear1.load_state_dict(layer.expand.state_dict())
        oracle.linear2.load_state_dict(layer.contract.state_dict())
        for norm, ours in zip((oracle.norm1, oracle.norm2, oracle.norm3), layer.norms, strict=True):
            norm.load_state_dict(ours.state_dict())
        x = oracle(x, memory, tgt_mask=mask)
    # Sines are float32 in the decoder.
    torch.testing.assert_close(
        decoder(features, tokens), decoder.output(decoder.final(x)), rtol=1e-5, atol=1e-6
    )


@every_decoder
def test_layers_that_share_weights_are_layers_that_happen_to_be_equal(kind):
    """Shared: one layer applied three times. So a copy of it for each application computes the same."""
    shared = make(kind, 3, share_layers=True, embedding_width=None).eval()
    copies = make(kind, 3, embedding_width=None).eval()
    weights = copies.state_dict()
    for name, tensor in shared.state_dict().items():
        for copy in range(3):
            weights[re.sub(r"(layers|input|hidden)\.0\.", rf"\1.{copy}.", name)] = tensor
    copies.load_state_dict(weights)
    features, tokens = batch()
    torch.testing.assert_close(shared(features, tokens), copies(features, tokens))
    assert sum(p.numel() for p in shared.parameters()) < sum(p.numel() for p in copies.parameters())


@every_decoder
@pytest.mark.parametrize("embedding_width", [None, 16])
def test_tied_words_are_ranked_by_their_own_vectors(kind, embedding_width):
    """A change of one word's vector changes that word's logit and, unless it is read, no other."""
    decoder, (features, tokens) = make(kind, embedding_width=embedding_width, tie_embeddings=True), batch()
    tokens = tokens.clamp(max=VOCABULARY - 2)  # the last word is never read
    before = decoder.eval()(features, tokens)
    with torch.no_grad():
        decoder.embedding.weight[VOCABULARY - 1, 0] += 1.0
    after = decoder(features, tokens)
    torch.testing.assert_close(after[..., :-1], before[..., :-1])
    assert (after[..., -1] - before[..., -1]).abs().min() > 1e-6
    matrices = [tuple(p.shape) for p in decoder.parameters() if VOCABULARY in p.shape and p.ndim == 2]
    assert matrices == [(VOCABULARY, embedding_width or 24)]


def _half_a_batch(rank, store):
    """One of two workers: its half of the gradient, averaged by DDP, must be that of the whole batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    for kind in ("gru", "gru_attention", "transformer"):
        decoder, (features, tokens) = make(kind, 3, tie_embeddings=True, share_layers=True), batch(4)
        decoder(features, tokens).square().mean().backward()
        alone = [parameter.grad.clone() for parameter in decoder.parameters()]
        decoder.zero_grad()
        parallel = DistributedDataParallel(decoder)  # it averages only as long as it lives
        half = slice(2 * rank, 2 * rank + 2)
        parallel(features[half], tokens[half]).square().mean().backward()
        for parameter, gradient in zip(decoder.parameters(), alone, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_two_workers_train_shared_weights_as_one_does(tmp_path):
    mp.spawn(_half_a_batch, (tmp_path / "store",), nprocs=2)


def test_heads_that_do_not_divide_the_width_are_refused_with_the_nearest_that_do():
    with pytest.raises(SettingsError, match="5 heads must divide decoder_width 24.* is 4"):
        make("transformer", decoder_heads=5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_token_loss_is_the_formula_and_leaves_padding_out(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 6, requires_grad=True)
    targets = torch.tensor([[4, 5, EOS, PAD], [5, EOS, PAD, PAD]])
    loss, correct, count = token_loss(logits, targets, label_smoothing=smoothing)
    expected = hits = 0.0
    for b in range(2):
        for t in range(4):
            if targets[b, t] != PAD:
                row = logits[b, t].double().tolist()
                logs = [value - math.log(sum(map(math.exp, row))) for value in row]
                wanted = logs[int(targets[b, t])]
                expected -= (1 - smoothing) * wanted + smoothing * sum(logs) / 6
                hits += wanted == max(logs)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert (int(correct), int(count)) == (hits, 5)
    loss.backward()
    assert logits.grad[targets == PAD].abs().max() == 0


@every_decoder
@sharing
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains(kind, dtype, shared):
    torch.manual_seed(0)
    fixed = {"decoder_width": 16, "encoder_width": 4, "decoder_layers": 2, "embedding_width": 8}
    settings = Settings(decoder=kind, **fixed | shared)
    captioner = Captioner(settings, VOCABULARY, 16)
    images = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    tokens = torch.randint(4, VOCABULARY, (2, 5))
    with torch.autocast("cpu", dtype):
        loss, *_ = token_loss(captioner(images, tokens), tokens)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in captioner.parameters())
    with torch.autocast("cpu", dtype):
        assert len(captioner.eval().generate(images, max_tokens=4, beam_width=2)) == 2


@every_decoder
def test_features_computed_ahead_stand_for_the_images(kind):
    torch.manual_seed(0)
    settings = Settings(decoder=kind, decoder_width=16, encoder_width=4, encoder_trainable=False)
    captioner = Captioner(settings, VOCABULARY, 16).eval()
    images = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    tokens = torch.randint(4, VOCABULARY, (2, 5))
    features = captioner.encode(images).half()
    torch.testing.assert_close(captioner(features, tokens), captioner(images, tokens), rtol=0, atol=5e-3)


@every_decoder
@pytest.mark.parametrize("shared", [WHOLE, {"tie_embeddings": True, "share_layers": True}])
def test_it_learns_to_tell_two_images_apart(kind, shared):
    torch.manual_seed(0)
    layers = 2 if shared["share_layers"] else 1
    settings = Settings(
        decoder=kind, decoder_width=32, encoder_width=4, dropout=0.0, decoder_layers=layers, **shared
    )
    captioner = Captioner(settings, VOCABULARY, 16)
    images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    images[1, :, :8] = 255
    captions = torch.tensor([[BOS, 5, 6, 7, EOS, PAD], [BOS, 9, 6, 8, 10, EOS]])
    optimizer = torch.optim.Adam(captioner.parameters(), 1e-2)
    for _ in range(40):
        loss, _, count = token_loss(captioner(images, captions[:, :-1]), captions[:, 1:])
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    for beam_width in (1, 3):
        written = captioner.eval().generate(images, max_tokens=8, beam_width=beam_width)
        assert written == [[5, 6, 7], [9, 6, 8, 10]]
