"""The ONNX graphs as a consumer runs them: numpy arrays in and out, ONNX Runtime on one CPU thread.

Knows the two files (see `onnx_graphs.py` for what stands in them) and neither torch nor the captioner.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def session(path: Path) -> InferenceSession:
    """A graph on the thread that calls."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxCaptioner:
    """Two graphs that write captions, greedily."""

    def __init__(self, encoder: Path, step: Path):
        self._encoder, self._step = session(encoder), session(step)
        self._first = [output.name for output in self._encoder.get_outputs()]
        self._following = [output.name.removeprefix("next_") for output in self._step.get_outputs()]
        self._facts = {
            name: int(value) for name, value in self._step.get_modelmeta().custom_metadata_map.items()
        }

    def write(self, images: NDArray[np.uint8], count: int, never: Sequence[int] = ()) -> NDArray[np.int64]:
        """`count` tokens for each image [B, S, S, 3], an end token or not: int64 [B, count].

        Args:
            images: of the size of the graphs' metadata.
            count: how many.
            never: tokens that are not to be written.
        """
        state = dict(zip(self._first, self._encoder.run(None, {"images": images}), strict=True))
        token, written = np.full(len(images), self._facts["bos"]), []
        for _ in range(count):
            answers = dict(zip(self._following, self._step.run(None, {"token": token, **state}), strict=True))
            logits = answers.pop("logits")  # [B, V]
            logits[:, list(never)] = -np.inf
            token = logits.argmax(-1)
            state |= answers
            written.append(token)
        return np.stack(written, 1)

    def captions(self, images: NDArray[np.uint8]) -> list[list[int]]:
        """Token ids of each image's caption, without the end token; as long as the metadata allows."""
        never = [self._facts[name] for name in ("pad", "bos", "unk")]
        rows, eos = self.write(images, self._facts["max_tokens"], never).tolist(), self._facts["eos"]
        return [row[: row.index(eos)] if eos in row else row for row in rows]
