"""What a captioner costs where it runs: parameters, multiply-accumulates, bytes, milliseconds.

Figures of one image on one CPU thread. None depends on what the model has learnt: a fixed number of tokens
is generated. The measured time does depend on what else the machine does.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainables.captioning.compress.artefact import size_bytes
from trainables.captioning.data.tokenizer import BOS
from trainables.captioning.model.captioner import Captioner


class Cost(TypedDict):
    """What `measure` returns."""

    params: int
    """Weights, int8 ones included; without scales and batch statistics."""
    macs: int
    """Multiply-accumulates of matrix products and convolutions for one image and its caption."""
    size_mb: float
    """Size of the artefact's weights file in 10**6 bytes, the encoder included."""
    latency_ms: float
    """Median time to caption one image, batch 1, greedy, one thread."""


def measure(captioner: Captioner, *, image_size: int, max_tokens: int, seconds: float = 0.3) -> Cost:
    """The cost of `captioner` as it stands.

    Args:
        captioner: as shipped; is copied to the CPU if it lives elsewhere.
        image_size: side of the image, in pixels.
        max_tokens: how many tokens are generated, an end token or not.
        seconds: how long the timed runs go on; at least 3 are made.
    """
    captioner = (
        captioner if next(captioner.parameters()).device.type == "cpu" else copy.deepcopy(captioner).cpu()
    )
    return Cost(
        params=count_parameters(captioner),
        macs=count_macs(captioner, image_size=image_size, max_tokens=max_tokens),
        size_mb=size_bytes(captioner) / 1e6,
        latency_ms=time_caption(captioner, image_size=image_size, max_tokens=max_tokens, seconds=seconds),
    )


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
            _caption(shapes, image, tokens)
        totals.append(counter.get_total_flops() // 2)
    # A step costs the same every time, or grows evenly with the keys it looks at: a quadratic in the number
    # of tokens, which three points fix (Newton's forward differences).
    first, second = totals[1] - totals[0], totals[2] - 2 * totals[1] + totals[0]
    return totals[0] + max_tokens * first + max_tokens * (max_tokens - 1) // 2 * second


def time_caption(captioner: Captioner, *, image_size: int, max_tokens: int, seconds: float = 0.3) -> float:
    """Median milliseconds to caption one image on one thread, after a warm-up."""
    image = torch.randint(256, (1, image_size, image_size, 3), generator=torch.Generator().manual_seed(0))
    image = image.to(torch.uint8)
    threads, training = torch.get_num_threads(), captioner.training
    torch.set_num_threads(1)
    try:
        captioner.eval()
        _caption(captioner, image, max_tokens)
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:
            begin = time.perf_counter()
            _caption(captioner, image, max_tokens)
            times.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
        captioner.train(training)
    return statistics.median(times) * 1e3


@torch.no_grad()
def _caption(captioner: Captioner, image: Tensor, max_tokens: int) -> None:
    """Greedy generation that never stops early and never looks at the tokens, so it runs on meta too."""
    state = captioner.decoder.start(captioner.encode(image))
    token = torch.full((1,), BOS, device=image.device)
    for _ in range(max_tokens):
        logits, state = captioner.decoder.step(token, state)
        token = logits.argmax(-1)
