"""The ONNX graphs of `onnx_graphs.py` again, with weights in 8 bits: a quarter of the bytes, decoding faster.

* `encoder.int8.onnx`: filters and matrices lie in the file in int8, and a runtime makes float32 of them once,
  when it loads (constant folding): a captioner that ships in int8 has exactly the same features.
* `decoder_step.int8.onnx`: word vectors likewise; products in int8 by ONNX Runtime's `quantize_dynamic`,
  which rounds activations on the fly, one scale for the whole batch. `graph_figures.py` tells what it costs.

Convolutions stay in float32 arithmetic. In int8 (`ConvInteger`) the whole encoder took, on a Xeon with
AVX-512 VNNI, onnxruntime 1.32, one thread, 2026-11-25, CPU time relative to float32: `cnn` at 64 px 2.7, at
224 px 3.4, `efficientnet_lite0` at 224 px 9.3, where depthwise filters also lost the features (an error of
0.4 of their standard deviation). The encoder's few products in int8: 0.96 to 1.00, not worth the rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainables.captioning.compress.number_formats import FEWEST_WEIGHTS
from trainables.captioning.compress.onnx_graphs import DECODER_STEP, ENCODER

if TYPE_CHECKING:
    from onnx import ModelProto

ENCODER_INT8, DECODER_STEP_INT8 = "encoder.int8.onnx", "decoder_step.int8.onnx"


def write_int8(folder: Path, *, per_channel: bool = True) -> None:
    """Writes both int8 graphs beside those that `write_onnx` wrote into `folder`. Needs the extra `onnx`.

    Args:
        folder: files of the same names are overwritten.
        per_channel: a scale per output channel (and per word), or one per matrix; as the captioner's
            weights were rounded before, so that they are not rounded again.
    """
    import onnx

    encoder, step = (_folded(folder / name) for name in (ENCODER, DECODER_STEP))
    onnx.save(_stored_in_int8(encoder, per_channel), folder / ENCODER_INT8)
    _quantise_products(step, folder / DECODER_STEP_INT8, per_channel)
    metadata, step = step.metadata_props, onnx.load(folder / DECODER_STEP_INT8)
    del step.metadata_props[:]  # ONNX Runtime's own, which is not a number as all others are
    step.metadata_props.extend(metadata)
    onnx.save(_stored_in_int8(step, per_channel), folder / DECODER_STEP_INT8)


def _folded(path: Path) -> ModelProto:
    """The graph with matrices as their readers want them: transposed where they were to be at loading."""
    import onnx
    from onnxscript import optimizer

    return optimizer.optimize(onnx.load(path))


def _quantise_products(model: ModelProto, path: Path, per_channel: bool) -> None:
    """Large constant matrices that something is multiplied by, and the product, in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    sizes = {each.name: int(np.prod(each.dims)) for each in model.graph.initializer}
    small = [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and sizes.get(node.input[1], 0) < FEWEST_WEIGHTS
    ]
    with _quiet():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],  # `Gemm` is made one
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=small,
        )


def _stored_in_int8(model: ModelProto, per_channel: bool) -> ModelProto:
    """Changes `model`: its large float32 weights become int8, a cast, and a product with their scales."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    transposed = {node.input[1] for node in graph.node if _reads_transposed(node)}
    before: list[Any] = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < FEWEST_WEIGHTS:
            continue
        channels = int(tensor.name in transposed) if per_channel else None
        steps, scale = _rounded(values, channels)
        name, cast = tensor.name, f"{tensor.name}_float"
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(steps, f"{name}_steps"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        before.append(
            helper.make_node("Cast", [f"{name}_steps"], [cast], f"{cast}_cast", to=TensorProto.FLOAT)
        )
        before.append(helper.make_node("Mul", [cast, f"{name}_scale"], [name], f"{cast}_scaled"))
    for node in reversed(before):
        graph.node.insert(0, node)
    return model


def _reads_transposed(node: Any) -> bool:
    """Whether its matrix has the output channels in the second dimension, which are in the first else."""
    turned = node.op_type == "Gemm" and any(each.name == "transB" and each.i for each in node.attribute)
    return node.op_type in ("MatMul", "Gemm") and not turned


def _rounded(values: NDArray[np.float32], axis: int | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Whole steps, as `values`, and the size of a step, which broadcasts: one per channel, or in all.

    The largest value is 127 steps: of values on such a grid the steps are found again.
    """
    others = None if axis is None else tuple(each for each in range(values.ndim) if each != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / np.float32(127)
    steps = np.rint(values / np.where(scale > 0, scale, 1)).astype(np.int8)
    return steps, scale


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice to prepare the graph as `_folded` has done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
