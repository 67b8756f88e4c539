"""One image to its caption on one CPU thread: PyTorch in float32 and in int8, ONNX Runtime likewise.

Four ways to run the same captioner: PyTorch as trained; with its large matrices as `Int8Linear`
(`torch._int_mm`); ONNX Runtime on the graphs that an export writes; the same with the decoder's matrices in
int8, as an export writes them of a captioner in int8. The encoder, a small `cnn` at 64
pixels, is in float32 on all sides. A caption has 20 tokens, an end token or not, so that weights need not be
trained. The four take turns, and each turn's times are set against PyTorch's of the same turn, for a
machine's speed drifts. The last table is of encoders alone.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainables.captioning.compress.arithmetic import Int8Linear
from trainables.captioning.compress.onnx_captioner import OnnxCaptioner, session
from trainables.captioning.compress.onnx_graphs import DECODER_STEP, ENCODER, write_onnx
from trainables.captioning.compress.onnx_int8 import DECODER_STEP_INT8, write_int8
from trainables.captioning.compress.swap import swap_layers
from trainables.captioning.data.tokenizer import BOS
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Settings

TOKENS = 20
ROUNDS = 25
IMAGE_SIZE = 64
DECODERS, WIDTHS, VOCABULARIES = ("gru_attention", "transformer"), (256, 512), (3_000, 8_000)
ENCODERS = (("cnn", 64), ("cnn", 224), ("efficientnet_lite0", 224))
#: Smaller matrices are no faster in int8 with torch; see `compress/int8.py`.
FEWEST_FOR_INT8 = 2**19

Way = Callable[[NDArray[np.uint8]], list[int]]
"""Token ids for one image, uint8 [1, S, S, 3]."""


def in_torch(captioner: Captioner) -> Way:
    """The captioner as it is."""

    @torch.inference_mode()
    def caption(image: NDArray[np.uint8]) -> list[int]:
        state = captioner.decoder.start(captioner.encode(torch.from_numpy(image)))
        token, written = torch.tensor([BOS]), []
        for _ in range(TOKENS):
            logits, state = captioner.decoder.step(token, state)
            token = logits.argmax(-1)
            written.append(int(token))
        return written

    return caption


def in_int8(captioner: Captioner) -> Captioner:
    """The captioner, changed: int8 arithmetic for its decoder's large matrices."""

    def make(_path: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) is nn.Linear and layer.weight.numel() >= FEWEST_FOR_INT8:
            return Int8Linear(layer)
        return None

    swap_layers(captioner.decoder, make)
    return captioner


def in_onnx_runtime(encoder: Path, step: Path) -> Way:
    """The graphs as a consumer runs them."""
    graphs = OnnxCaptioner(encoder, step)
    return lambda image: graphs.write(image, TOKENS)[0].tolist()


def contest(settings: Settings, vocabulary: int, folder: Path) -> dict[str, Way]:
    """The four ways to run a captioner of these settings; PyTorch in float32 comes first."""
    torch.manual_seed(0)
    captioner = Captioner(settings, vocabulary, IMAGE_SIZE).eval().requires_grad_(False)
    write_onnx(captioner, folder, max_tokens=TOKENS)
    write_int8(folder)
    encoder = folder / ENCODER
    torch.manual_seed(0)
    int8 = in_int8(Captioner(settings, vocabulary, IMAGE_SIZE).eval().requires_grad_(False))
    return {
        "torch fp32": in_torch(captioner),
        "torch int8": in_torch(int8),
        "ort fp32": in_onnx_runtime(encoder, folder / DECODER_STEP),
        "ort int8": in_onnx_runtime(encoder, folder / DECODER_STEP_INT8),
    }


@dataclass(frozen=True)
class Times:
    """Seconds [rounds] of each contestant, measured in turns."""

    seconds: dict[str, list[float]]

    def milliseconds(self, name: str) -> float:
        """The median."""
        return statistics.median(self.seconds[name]) * 1e3

    def relative(self, name: str) -> float:
        """Median over turns of the time over that of the first contestant in the same turn."""
        base = next(iter(self.seconds.values()))
        return statistics.median(own / other for own, other in zip(self.seconds[name], base, strict=True))


def take_turns(ways: dict[str, Callable[[], object]]) -> Times:
    """Each of `ways` once per round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(2 + ROUNDS):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    return Times({name: values[2:] for name, values in seconds.items()})


def picture(side: int) -> NDArray[np.uint8]:
    """Noise, uint8 [1, side, side, 3]."""
    return np.random.default_rng(0).integers(256, size=(1, side, side, 3), dtype=np.uint8)


def captions() -> list[float]:
    """Prints a row for each captioner; of each, PyTorch's time over ONNX Runtime's, both in float32."""
    print(f"{'decoder':14}{'width':>6}{'words':>7}", end="")
    print("".join(f"{name:>12}" for name in ("torch fp32", "torch int8", "ort fp32", "ort int8")))
    image, faster = picture(IMAGE_SIZE), []
    for decoder, width, vocabulary in itertools.product(DECODERS, WIDTHS, VOCABULARIES):
        settings = Settings(decoder=decoder, decoder_width=width)
        with tempfile.TemporaryDirectory() as folder:
            ways = contest(settings, vocabulary, Path(folder))
            assert ways["ort fp32"](image) == ways["torch fp32"](image)
            times = take_turns({name: partial(way, image) for name, way in ways.items()})
        row = "".join(f"{times.relative(name):12.2f}" for name in list(ways)[1:])
        print(
            f"{decoder:14}{width:6}{vocabulary:7}{times.milliseconds('torch fp32'):9.1f} ms{row}", flush=True
        )
        faster.append(1 / times.relative("ort fp32"))
    return faster


def encoders() -> None:
    """Prints a row for each encoder, in float32."""
    print(f"\n{'encoder':20}{'pixels':>7}{'torch fp32':>12}{'ort fp32':>12}")
    for kind, side in ENCODERS:
        # The smallest decoder: what it makes of the features is nothing beside them.
        captioner = Captioner(Settings(encoder=kind, decoder="gru", decoder_width=8), 16, side).eval()
        image = picture(side)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            write_onnx(captioner, Path(folder), max_tokens=TOKENS)
            times = take_turns(
                {
                    "torch": partial(captioner.encode, torch.from_numpy(image)),
                    "ort": partial(session(Path(folder) / ENCODER).run, None, {"images": image}),
                }
            )
        print(
            f"{kind:20}{side:7}{times.milliseconds('torch'):9.1f} ms{times.relative('ort'):12.2f}", flush=True
        )


def main() -> None:
    """Print the tables and the ratio."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        print("times relative to torch fp32: below 1 is faster")
        faster = captions()
        encoders()
    finally:
        torch.set_num_threads(threads)
    print(f"inference ratio={statistics.geometric_mean(faster):.2f}")
