import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainables.captioning.compress import as_shipped
from trainables.captioning.compress.artefact import size_bytes
from trainables.captioning.compress.measure import (
    _caption,
    count_macs,
    count_parameters,
    measure,
    time_caption,
)
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Compression, Settings

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
    captioner = as_shipped(make(kind), Compression(method=method, ratio=0.5))
    with FlopCounterMode(display=False) as counter:
        _caption(captioner, torch.zeros(1, 16, 16, 3, dtype=torch.uint8), 9)
    expected = counter.get_total_flops() // 2
    if kind == "transformer":  # the counter overlooks the CPU's fused attention: keys so far, and 64 cells
        expected += 2 * sum(2 * 48 * (t + 64) for t in range(1, 10))
    assert count_macs(captioner, image_size=16, max_tokens=9) == expected


@every_decoder
def test_int8_changes_bytes_and_neither_weights_nor_macs(kind):
    captioner = make(kind)
    small = as_shipped(captioner, Compression(method="int8"))
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
    small = as_shipped(captioner, Compression(method="low_rank", ratio=0.6))
    assert count_parameters(small) < 0.8 * count_parameters(captioner)
    assert size_bytes(small) < 0.8 * size_bytes(captioner)
    assert count_macs(small, image_size=16, max_tokens=5) < count_macs(captioner, image_size=16, max_tokens=5)


def test_the_time_is_that_of_all_tokens_and_leaves_the_process_as_it_was():
    captioner = make("gru").train()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        short = time_caption(captioner, image_size=16, max_tokens=2, seconds=0.05)
        long = time_caption(captioner, image_size=16, max_tokens=100, seconds=0.05)
        assert long > 4 * short > 0
        assert torch.get_num_threads() == 2
        assert captioner.training
    finally:
        torch.set_num_threads(threads)


def test_measure_has_all_four_figures_and_leaves_the_captioner_as_it_was():
    captioner = make("transformer")
    before = {name: tensor.clone() for name, tensor in captioner.state_dict().items()}
    cost = measure(captioner, image_size=16, max_tokens=5, seconds=0.02)
    assert cost["params"] == sum(parameter.numel() for parameter in captioner.parameters())
    assert cost["size_mb"] == size_bytes(captioner) / 1e6
    assert cost["macs"] > 0 and cost["latency_ms"] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in captioner.state_dict().items())
