"""What an exported captioner's ONNX graphs are worth beside itself: their bytes, their captions, their time.

Measured, not assumed: products in int8 round what flows between the layers, and only captions of real images
tell what that costs. Knows artefact, graphs and prepared data; how it is told is the model card's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.captioning.compress.artefact import WEIGHTS, load_artefact
from trainables.captioning.compress.latency import one_thread, time_by_turns
from trainables.captioning.compress.measure import caption_greedily
from trainables.captioning.compress.onnx_captioner import OnnxCaptioner
from trainables.captioning.compress.onnx_graphs import DECODER_STEP, ENCODER
from trainables.captioning.compress.onnx_int8 import DECODER_STEP_INT8, ENCODER_INT8
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.metrics import caption_metrics

#: Of the validation split, the first so many images are captioned: an export is not to take minutes.
MOST_IMAGES = 500
#: Share of its CIDEr that a graph may lose without being called worse.
TOLERANCE = 0.05

TORCH, GRAPHS, INT8_GRAPHS = "PyTorch", "ONNX Runtime", "ONNX Runtime, int8"


class GraphFigures(TypedDict):
    """Of one way to run an exported captioner, captions written greedily."""

    way: str
    """`TORCH`, `GRAPHS` or `INT8_GRAPHS`."""
    bytes: int
    """Of the files that it needs, the tokenizer aside."""
    cider: float | None
    """CIDEr-D of the captions of `images` images; None where there is no data any more."""
    images: int
    ratio: float
    """CPU time of one image and its longest caption by that of PyTorch, by turns with it, on one thread."""
    ratio_low: float
    ratio_high: float
    """95 % interval of the ratio."""


def graph_figures(folder: Path, data: CaptionData | None, *, seconds: float = 1.0) -> list[GraphFigures]:
    """Figures of PyTorch, of the float32 graphs, and of the int8 graphs, where these were written.

    Args:
        folder: an artefact and its graphs.
        data: that the captioner was trained on.
        seconds: for how long each is timed against PyTorch.
    """
    artefact = load_artefact(folder)
    captioner, longest = artefact.captioner, artefact.max_tokens
    files = {GRAPHS: (ENCODER, DECODER_STEP), INT8_GRAPHS: (ENCODER_INT8, DECODER_STEP_INT8)}
    noise = np.random.default_rng(0).integers(256, size=(1, *[captioner.image_size] * 2, 3), dtype=np.uint8)
    in_torch = partial(caption_greedily, captioner, torch.from_numpy(noise), longest)
    images = [] if data is None else data.splits["val"][:MOST_IMAGES].tolist()

    def cider(write: Callable[[NDArray[np.uint8]], list[list[int]]]) -> float | None:
        """One image at a time, for int8 graphs round a batch together."""
        if data is None:
            return None
        texts = artefact.tokenizer.decode(
            [write(np.array(data.images[image])[np.newaxis])[0] for image in images]
        )
        return caption_metrics(texts, [data.captions[image] for image in images])["cider"]

    def by_torch(pixels: NDArray[np.uint8]) -> list[list[int]]:
        return captioner.generate(torch.from_numpy(pixels), max_tokens=longest)

    found = [
        GraphFigures(
            way=TORCH,
            bytes=(folder / WEIGHTS).stat().st_size,
            cider=cider(by_torch),
            images=len(images),
            ratio=1.0,
            ratio_low=1.0,
            ratio_high=1.0,
        )
    ]
    for way, names in files.items():
        paths = [folder / name for name in names]
        if not all(path.exists() for path in paths):
            continue
        graphs = OnnxCaptioner(*paths)
        with one_thread():
            timing = time_by_turns(partial(graphs.write, noise, longest), in_torch, seconds=seconds)
        found.append(
            GraphFigures(
                way=way,
                bytes=sum(path.stat().st_size for path in paths),
                cider=cider(graphs.captions),
                images=len(images),
                ratio=timing.ratio,
                ratio_low=timing.ratio_low,
                ratio_high=timing.ratio_high,
            )
        )
    return found


def warning(figures: Sequence[GraphFigures]) -> str:
    """A sentence where int8 graphs lose more of the float32 graphs' CIDEr than they may, else nothing."""
    cider = {each["way"]: each["cider"] for each in figures}
    whole, small = cider.get(GRAPHS), cider.get(INT8_GRAPHS)
    if whole is None or small is None or small >= whole * (1 - TOLERANCE):
        return ""
    return (
        f"The int8 graphs lose {1 - small / whole:.0%} of the CIDEr of the float32 ones ({whole:.3g} to "
        f"{small:.3g}), more than {TOLERANCE:.0%}: use the float32 graphs."
    )
