"""A captioner as two ONNX graphs, for ONNX Runtime on whatever it runs on, without torch and this package.

* `encoder.onnx`: `images` (uint8 [B, S, S, 3]) to the state before the first token: `memory_0`, … (facts of
  the image, the same at every step) and `carry_0`, … (what the tokens leave behind).
* `decoder_step.onnx`: `token` (int64 [B]) and the state's tensors to `logits` [B, V] and the new carry,
  `next_carry_0`, …

B is any number; so is how many tokens a transformer's carry, its cached keys and values, speaks of. Metadata
of both graphs tells what search for a caption needs: `image_size`, `vocabulary_size`, `max_tokens` and the
special tokens' ids `pad`, `bos`, `eos`, `unk`, of which only `eos` is ever to be written. Words are in the
artefact's `tokenizer.json`. Needs the extra `onnx`. How the captioner was made smaller is not this file's
business: int8 weights are to be given as the float matrices that they stand for.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from trainables.captioning.data.tokenizer import BOS, EOS, PAD, UNK
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.decoding import Decoder, State
from trainables.captioning.model.transformer import TransformerDecoder

ENCODER, DECODER_STEP = "encoder.onnx", "decoder_step.onnx"
_PACKAGES = ("onnx", "onnxscript")


def write_onnx(captioner: Captioner, folder: Path, *, max_tokens: int) -> str:
    """Writes both graphs into the existing `folder`, or none where the extra `onnx` is not installed.

    Args:
        captioner: in evaluation mode, on the CPU, its layers in float32 (low-rank factors are).
        folder: files of the same names are overwritten.
        max_tokens: longest caption, the end token included; goes into the metadata.

    Returns:
        A line for a person: what was written, or which package is missing and how it is installed.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        return f"no ONNX graphs: {' and '.join(missing)} not installed (pip install captune[onnx])"
    image_size, decoder = captioner.image_size, captioner.decoder
    # Two images and two tokens: torch.export may take sizes of 0 and 1 for constants.
    images = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    token = torch.full((2,), BOS)
    with torch.no_grad():
        state = decoder.start(captioner.encode(images))
        for _ in range(2):
            _, state = decoder.step(token, state)
    memory = [f"memory_{i}" for i in range(len(state.memory))]
    carry = [f"carry_{i}" for i in range(len(state.carry))]
    batch = {0: Dim("batch")}
    grown = batch | {3: Dim("length")} if isinstance(decoder, TransformerDecoder) else batch
    metadata = {
        "image_size": image_size,
        "vocabulary_size": captioner.vocabulary_size,
        "max_tokens": max_tokens,
        "pad": PAD,
        "bos": BOS,
        "eos": EOS,
        "unk": UNK,
    }
    _export(
        _Encoder(captioner),
        (images,),
        dynamic=(batch,),
        names=(["images"], [*memory, *carry]),
        metadata=metadata,
        path=folder / ENCODER,
    )
    _export(
        _Step(decoder, len(memory)),
        (token, *state.memory, *state.carry),
        dynamic=(batch, (*[batch] * len(memory), *[grown] * len(carry))),
        names=(["token", *memory, *carry], ["logits", *(f"next_{name}" for name in carry)]),
        metadata=metadata,
        path=folder / DECODER_STEP,
    )
    return f"ONNX graphs in {ENCODER} and {DECODER_STEP}"


class _Encoder(nn.Module):
    def __init__(self, captioner: Captioner):
        super().__init__()
        self.captioner = captioner

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        state = self.captioner.decoder.start(self.captioner.encode(images))
        return *state.memory, *state.carry


class _Step(nn.Module):
    def __init__(self, decoder: Decoder, memories: int):
        super().__init__()
        self.decoder = decoder
        self._memories = memories

    def forward(self, token: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        state = State(memory=tensors[: self._memories], carry=tensors[self._memories :])
        logits, state = self.decoder.step(token, state)
        return logits, *state.carry


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    dynamic: tuple[Any, ...],
    names: tuple[list[str], list[str]],
    metadata: dict[str, int],
    path: Path,
) -> None:
    """One graph into one file: `dynamic` dimensions of the inputs, `names` of inputs and outputs."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript.optimizer import optimize_ir

    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=names[0],
            output_names=names[1],
            optimize=False,
            verbose=False,
        )
    assert program is not None
    # Not by the exporter: it stores a matrix that is used twice (tied, shared) once more, transposed.
    # Runtimes transpose when they load.
    optimize_ir(program.model, should_fold=lambda node: False if node.op_type == "Transpose" else None)
    ClearMetadataAndDocStringPass()(program.model)  # stack traces with this machine's paths
    program.model.metadata_props.update({name: str(value) for name, value in metadata.items()})
    program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about packages that are not needed and its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
