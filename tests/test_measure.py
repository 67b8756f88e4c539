from itertools import accumulate

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainables.captioning.compress import compress
from trainables.captioning.compress.arithmetic import fast
from trainables.captioning.compress.artefact import size_bytes
from trainables.captioning.compress.hold import released
from trainables.captioning.compress.latency import Timing
from trainables.captioning.compress.measure import (
    COST,
    caption_greedily,
    count_macs,
    count_memory,
    count_parameters,
    measure,
)
from trainables.captioning.compress.memory import PeakMemory
from trainables.captioning.compress.reference import Reference
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Settings
from tuning.tables import schema

every_decoder = pytest.mark.parametrize("kind", ["gru", "gru_attention", "transformer"])


def make(kind: str, **settings) -> Captioner:
    torch.manual_seed(0)
    settings = {"decoder_width": 48, "encoder_width": 4, "decoder_layers": 2} | settings
    return Captioner(Settings(decoder=kind, **settings), 90, 16).eval()


def test_macs_are_those_one_counts_by_hand():
    captioner = make("gru", decoder_width=32, embedding_width=20, decoder_layers=1)
    encoder = 64 * 9 * (3 * 4)  # the stem: 8x8 cells, 3x3 kernel, 3 -> 4 channels
    encoder += 64 * 9 * (4 * 4 + 4 * 4)  # stage 1, no projection
    encoder += 64 * 9 * (4 * 8 + 8 * 8) + 64 * 4 * 8  # stage 2 with its 1x1 shortcut
    initial, step = 8 * 32, 20 * 96 + 32 * 96 + 32 * 90
    assert count_macs(captioner, image_size=16, max_tokens=11) == encoder + initial + 11 * step


@every_decoder
@pytest.mark.parametrize("method", ["none", "low_rank"])
def test_macs_are_those_of_a_whole_generation(kind, method):
    captioner = compress(make(kind), [] if method == "none" else [method], 0.5)
    with FlopCounterMode(display=False) as counter:
        caption_greedily(captioner, torch.zeros(1, 16, 16, 3, dtype=torch.uint8), 9)
    expected = counter.get_total_flops() // 2
    if kind == "transformer":  # the counter overlooks the CPU's fused attention: keys so far, and 64 cells
        expected += 2 * sum(2 * 48 * (t + 64) for t in range(1, 10))
    assert count_macs(captioner, image_size=16, max_tokens=9) == expected


@every_decoder
def test_int8_changes_bytes_and_neither_weights_nor_macs(kind):
    captioner = make(kind)
    small = fast(released(compress(captioner, ["int8"])))
    assert (
        count_parameters(small)
        == count_parameters(captioner)
        == sum(p.numel() for p in captioner.parameters())
    )
    assert count_macs(small, image_size=16, max_tokens=5) == count_macs(
        captioner, image_size=16, max_tokens=5
    )
    assert size_bytes(small) < 0.5 * size_bytes(captioner)


@every_decoder
def test_low_rank_has_fewer_of_everything(kind):
    captioner = make(kind)
    small = compress(captioner, ["low_rank"], 0.6)
    assert count_parameters(small) < 0.8 * count_parameters(captioner)
    assert size_bytes(small) < 0.8 * size_bytes(captioner)
    assert count_macs(small, image_size=16, max_tokens=5) < count_macs(captioner, image_size=16, max_tokens=5)


def allocated(captioner, inputs):
    """Bytes of the weights and the most that torch's allocator had given out beside them, by its own log."""
    weights = {t.data_ptr(): t.nbytes for t in [*captioner.parameters(), *captioner.buffers()]}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
        caption_greedily(captioner, inputs, 9)
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return sum(weights.values()) + max(accumulate(event.nbytes() for event in events))


@every_decoder
@pytest.mark.parametrize("method", ["none", "low_rank"])
def test_memory_is_what_the_allocator_gave(kind, method):
    captioner = compress(make(kind), [] if method == "none" else [method], 0.5)
    features = torch.zeros(5, 64, 8)
    with PeakMemory([*captioner.parameters(), *captioner.buffers()]) as memory:
        caption_greedily(captioner, features, 9)
    assert memory.bytes - features.nbytes == allocated(captioner, features)
    # Convolutions have some more of their own for as long as they run, how much depends on the processor.
    images = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    counted = count_memory(captioner, image_size=16, max_tokens=9) - images.nbytes
    assert 0.7 * allocated(captioner, images) < counted <= allocated(captioner, images)


@every_decoder
@pytest.mark.parametrize("method", ["none", "low_rank", "int8"])
def test_memory_does_not_depend_on_what_ran_before(kind, method):
    fresh, used = (compress(make(kind), [] if method == "none" else [method], 0.5) for _ in range(2))
    caption_greedily(used, torch.zeros(4, 16, 16, 3, dtype=torch.uint8), 9)
    sizes = {"image_size": 16, "max_tokens": 9}
    assert count_memory(fresh, **sizes) == count_memory(used, **sizes) == count_memory(used, **sizes)


def test_memory_grows_with_the_image_and_with_the_cache_of_a_transformer():
    gru, transformer = make("gru"), make("transformer")
    short, long, large = (16, 5), (16, 105), (64, 5)

    def memory(captioner, sizes):
        return count_memory(captioner, image_size=sizes[0], max_tokens=sizes[1])

    assert memory(make("gru"), large) > memory(gru, short) + 4 * 3 * (64**2 - 16**2)
    assert memory(gru, long) == memory(gru, short)
    cache = 100 * 4 * 2 * 48 * 2  # tokens, bytes, keys and values, width, layers
    assert cache <= memory(transformer, long) - memory(transformer, short) <= 2 * cache


def test_tensors_count_once_and_as_long_as_they_live():
    weights, outside = torch.zeros(100), torch.zeros(30)
    with PeakMemory([weights, weights[10:]]) as memory:
        assert memory.bytes == 400
        first = torch.ones(1000)
        first += 1
        view = first.view(10, 100)[3:]
        del first
        assert memory.bytes == 400 + 4000
        small = torch.ones(50)
        assert memory.bytes == 400 + 4000 + 200  # all of what the view looks at
        del view, small
        second = torch.ones(900)
        assert memory.bytes == 400 + 4000 + 200
        third = second + 1
        assert memory.bytes == 400 + 2 * 3600
        del second, third
        _ = outside * 2  # was there all the time
    assert memory.bytes == 400 + 120 + 2 * 3600


def test_the_reference_does_what_it_always_did():
    state = torch.random.get_rng_state()
    reference = Reference()
    with FlopCounterMode(display=False) as counter:
        tokens = reference()
    convolutions = 32**2 * 16 * 27 + 16**2 * 32 * 144 + 8**2 * 64 * 288
    step = 2 * 256 * 768 + 256 * 2000
    assert counter.get_total_flops() // 2 == convolutions + 64 * 256 + 24 * step
    assert len(tokens) == 24 and len(set(tokens)) > 12  # chosen by what came before
    assert tokens == reference() == Reference()()
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_is_timed_are_all_tokens_of_one_image_and_of_32(monkeypatch):
    captioner = make("gru").train()
    steps = []
    step = type(captioner.decoder).step

    def noted(self, token, state):
        steps.append((len(token), token.device.type, self.training, torch.get_num_threads()))
        return step(self, token, state)

    def by_turns(candidate, reference, *, seconds):
        candidate()
        assert isinstance(reference, Reference) and seconds == 2.0
        values = {"median_ms": 3.0, "p90_ms": 4.0, "ratio": 1.5, "ratio_low": 1.0, "ratio_high": 2.0}
        return Timing(**values, noisy=True)

    def fastest(run, *, seconds):
        run()
        assert seconds == 0.5
        return 0.25

    monkeypatch.setattr("trainables.captioning.compress.measure.time_by_turns", by_turns)
    monkeypatch.setattr("trainables.captioning.compress.measure.fastest_cpu_seconds", fastest)
    monkeypatch.setattr(type(captioner.decoder), "step", noted)
    cost = measure(captioner, image_size=16, max_tokens=7, seconds=2.0)
    assert steps[:14] == [(32, "cpu", False, 1)] * 7 + [(1, "cpu", False, 1)] * 7
    assert {name: cost[name] for name in COST if "latency" in name or "_s" in name} == {
        "latency_ms": 3.0,
        "latency_p90_ms": 4.0,
        "latency_ratio": 1.5,
        "latency_ratio_low": 1.0,
        "latency_ratio_high": 2.0,
        "latency_noisy": True,
        "captions_per_s": 128.0,
    }


@pytest.mark.parametrize("kind", ["gru", "gru_attention", "transformer", "efficientnet_lite0"])
def test_measure_has_all_figures_and_leaves_everything_as_it_was(kind):
    if kind == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
        captioner = make("gru_attention", encoder=kind)
    else:
        captioner = make(kind)
    captioner.train()
    before = {name: tensor.clone() for name, tensor in captioner.state_dict().items()}
    threads, random = torch.get_num_threads(), torch.random.get_rng_state()
    cost = measure(captioner, image_size=16, max_tokens=5, seconds=0.02)
    assert tuple(cost) == COST and captioner.training
    assert cost["params"] == sum(parameter.numel() for parameter in captioner.parameters())
    assert cost["size_mb"] == size_bytes(captioner) / 1e6
    assert cost["inference_memory_mb"] == count_memory(captioner.eval(), image_size=16, max_tokens=5) / 1e6
    assert 4 * cost["params"] / 1e6 < cost["inference_memory_mb"]
    assert 0 < cost["latency_ms"] <= cost["latency_p90_ms"]
    assert 0 < cost["latency_ratio_low"] <= cost["latency_ratio"] <= cost["latency_ratio_high"]
    assert cost["macs"] > 0 and cost["captions_per_s"] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in captioner.state_dict().items())
    assert torch.get_num_threads() == threads and torch.equal(torch.random.get_rng_state(), random)


def test_every_figure_has_a_column():
    assert {column.name for column in schema.MODEL_COSTS} == set(COST)
    for name in COST:
        assert schema.figure_column(name) == name
        tells_nothing_alone = name in ("latency_ratio_low", "latency_ratio_high", "latency_noisy")
        best = None if tells_nothing_alone else "max" if name == "captions_per_s" else "min"
        assert schema.BETTER.get(name) == best
