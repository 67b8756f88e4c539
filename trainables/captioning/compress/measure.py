"""What a captioner costs where it runs: parameters, multiply-accumulates, bytes, memory, time.

None of it depends on what the model has learnt: a fixed number of tokens is generated. Parameters,
multiply-accumulates, bytes and memory are exact, whatever the machine. Times are those of one thread on
this machine's CPU: what a user waits now (`latency_ms`), and what the model costs however busy the machine
is (`latency_ratio`, `captions_per_s`).
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainables.captioning.compress.artefact import size_bytes
from trainables.captioning.compress.latency import fastest_cpu_seconds, one_thread, time_by_turns
from trainables.captioning.compress.memory import PeakMemory
from trainables.captioning.compress.reference import Reference
from trainables.captioning.data.tokenizer import BOS
from trainables.captioning.model.captioner import Captioner

_THROUGHPUT_BATCH = 32


class Cost(TypedDict):
    """What `measure` returns."""

    params: int
    """Weights, int8 ones included; without scales and batch statistics."""
    macs: int
    """Multiply-accumulates of matrix products and convolutions for one image and its caption."""
    size_mb: float
    """Size of the artefact's weights file in 10**6 bytes, the encoder included."""
    inference_memory_mb: float
    """Most memory that weights, image and intermediate results occupy at one time, in 10**6 bytes, when one
    image is captioned; see `memory.py`."""
    latency_ms: float
    """Median time to caption one image, batch 1, greedy, one thread, by the clock on the wall."""
    latency_p90_ms: float
    """Nine times in ten one image takes no longer."""
    latency_ratio: float
    """CPU time to caption one image by that of `reference.Reference`, run by turns with it: median."""
    latency_ratio_low: float
    latency_ratio_high: float
    """95 % interval of the ratio, between order statistics of its pairs of runs."""
    latency_noisy: bool
    """Whether other work on the machine disturbed the milliseconds; see `latency.Timing.noisy`."""
    captions_per_s: float
    """Images captioned per second of one core's time in batches of 32, greedy."""


#: Names of the figures in the order of `Cost`.
COST = tuple(Cost.__annotations__)


def measure(captioner: Captioner, *, image_size: int, max_tokens: int, seconds: float = 0.6) -> Cost:
    """The cost of `captioner` as it stands.

    Args:
        captioner: as shipped; is copied to the CPU if it lives elsewhere, so that a model costs the same
            wherever it was trained.
        image_size: side of the image, in pixels.
        max_tokens: how many tokens are generated, an end token or not.
        seconds: how long the timed runs go on; those in batches take a quarter as long again. A slow
            captioner takes longer, for it captions at least 8 images alone and two batches.
    """
    captioner = (
        captioner if next(captioner.parameters()).device.type == "cpu" else copy.deepcopy(captioner).cpu()
    )
    training = captioner.training
    try:
        captioner.eval()
        with one_thread():
            one = partial(caption_greedily, captioner, _images(1, image_size), max_tokens)
            batch = partial(caption_greedily, captioner, _images(_THROUGHPUT_BATCH, image_size), max_tokens)
            # Batches first: glibc stops mapping fresh pages for every large buffer once larger ones have been
            # freed. Before, an image through efficientnet_lite0 took 3,000 page faults and a tenth longer.
            batch_s = fastest_cpu_seconds(batch, seconds=seconds / 4)
            timing = time_by_turns(one, Reference(), seconds=seconds)
        return Cost(
            params=count_parameters(captioner),
            macs=count_macs(captioner, image_size=image_size, max_tokens=max_tokens),
            size_mb=size_bytes(captioner) / 1e6,
            inference_memory_mb=count_memory(captioner, image_size=image_size, max_tokens=max_tokens) / 1e6,
            latency_ms=timing.median_ms,
            latency_p90_ms=timing.p90_ms,
            latency_ratio=timing.ratio,
            latency_ratio_low=timing.ratio_low,
            latency_ratio_high=timing.ratio_high,
            latency_noisy=timing.noisy,
            captions_per_s=_THROUGHPUT_BATCH / batch_s,
        )
    finally:
        captioner.train(training)


def count_parameters(captioner: Captioner) -> int:
    """Weights of the model, trainable or not, int8 ones included."""
    # Quantised layers keep weights and bias as buffers; a bias counts as it did before.
    buffers = [
        buffer
        for name, buffer in captioner.named_buffers()
        if buffer.dtype == torch.int8 or name.endswith(".bias")
    ]
    return sum(tensor.numel() for tensor in [*captioner.parameters(), *buffers])


def count_macs(captioner: Captioner, *, image_size: int, max_tokens: int) -> int:
    """Multiply-accumulates of matrix products and convolutions for one image and `max_tokens` tokens.

    Counted on shapes alone (torch's meta device), where int8 layers show their matrix products too.
    """
    shapes = copy.deepcopy(captioner).to("meta").eval()
    image = torch.empty(1, image_size, image_size, 3, dtype=torch.uint8, device="meta")
    totals = []
    for tokens in range(3):
        with FlopCounterMode(display=False) as counter:
            caption_greedily(shapes, image, tokens)
        totals.append(counter.get_total_flops() // 2)
    # A step costs the same every time, or grows evenly with the keys it looks at: a quadratic in the number
    # of tokens, which three points fix (Newton's forward differences).
    first, second = totals[1] - totals[0], totals[2] - 2 * totals[1] + totals[0]
    return totals[0] + max_tokens * first + max_tokens * (max_tokens - 1) // 2 * second


def count_memory(captioner: Captioner, *, image_size: int, max_tokens: int) -> int:
    """Most bytes that tensors occupy at one time while one image gets `max_tokens` tokens, weights included.

    In evaluation mode, on the captioner's device, without gradients.
    """
    device = next(captioner.parameters()).device
    caption_greedily(
        captioner, _images(1, image_size).to(device), 1
    )  # what is made once and kept is there now
    with PeakMemory([*captioner.parameters(), *captioner.buffers()]) as memory:
        caption_greedily(captioner, _images(1, image_size).to(device), max_tokens)
    return memory.bytes


def _images(count: int, side: int) -> Tensor:
    """Noise as images: uint8 [count, side, side, 3]."""
    return torch.randint(
        256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@torch.no_grad()
def caption_greedily(captioner: Captioner, images: Tensor, max_tokens: int) -> None:
    """What is timed and counted: `max_tokens` tokens for images [B, S, S, 3], an end token or not.

    Never looks at the tokens, so it runs on meta too.
    """
    state = captioner.decoder.start(captioner.encode(images))
    token = torch.full((images.shape[0],), BOS, device=images.device)
    for _ in range(max_tokens):
        logits, state = captioner.decoder.step(token, state)
        token = logits.argmax(-1)
